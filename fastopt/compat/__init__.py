"""Keras's old releases."""
