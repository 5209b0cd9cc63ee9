"""Benchmarks: fastopt against the memory's speed and against other libraries, as ratios."""
