"""Keras 2.3.1's optimizers for Keras 3: `optimizers`, whose classes are here too."""

from . import optimizers
from .optimizers import SGD, Adadelta, Adagrad, Adam, Adamax, Nadam, RMSprop

__all__ = ["SGD", "Adadelta", "Adagrad", "Adam", "Adamax", "Nadam", "RMSprop", "optimizers"]
