"""Keras 2.2."""
