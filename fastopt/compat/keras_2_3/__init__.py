"""Keras 2.3."""
