"""Keras 1.0.2's optimizers for Keras 3: `optimizers`, whose classes are here too."""

from . import optimizers
from .optimizers import SGD, Adadelta, Adagrad, Adam, Adamax, RMSprop

__all__ = ["SGD", "Adadelta", "Adagrad", "Adam", "Adamax", "RMSprop", "optimizers"]
