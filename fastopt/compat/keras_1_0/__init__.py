"""Keras 1.0.2: `optimizers`, whose classes are here too, `objectives`, `activations` and `callbacks`."""

from . import activations, callbacks, objectives, optimizers
from .optimizers import SGD, Adadelta, Adagrad, Adam, Adamax, RMSprop
from .optimizers import __getattr__ as __getattr__

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "Adamax",
    "RMSprop",
    "activations",
    "callbacks",
    "objectives",
    "optimizers",
]
