"""Keras as it was: the signatures and semantics of earlier releases, over the same kernels."""
