"""Keras 2.2.4: `optimizers`, whose classes are here too."""

from . import optimizers
from .optimizers import SGD, Adadelta, Adagrad, Adam, Adamax, Nadam, RMSprop

__all__ = ["SGD", "Adadelta", "Adagrad", "Adam", "Adamax", "Nadam", "RMSprop", "optimizers"]
