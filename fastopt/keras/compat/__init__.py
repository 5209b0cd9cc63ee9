"""The optimizers of Keras 1 and 2 as optimizers of Keras 3."""
