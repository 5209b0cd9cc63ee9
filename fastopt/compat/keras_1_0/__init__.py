"""Keras 1.0."""
