"""Keras 2.3.1: `optimizers`, whose classes are here too, `losses` (`objectives`), `activations` and `callbacks`."""

from . import activations, callbacks, losses, optimizers
from . import losses as objectives
from .optimizers import SGD, Adadelta, Adagrad, Adam, Adamax, Nadam, RMSprop

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "Adamax",
    "Nadam",
    "RMSprop",
    "activations",
    "callbacks",
    "losses",
    "objectives",
    "optimizers",
]
