"""Specialising, caching and the operations that Python lacks: the only place that compiles for CPUs."""
