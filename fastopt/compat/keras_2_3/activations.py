"""The activations of Keras 2.3: those of 2.2.

Source: https://github.com/keras-team/keras/blob/2.3.1/keras/activations.py
"""

from ..keras_2_2.activations import (
    FUNCTIONS,
    backward,
    elu,
    exponential,
    get,
    hard_sigmoid,
    linear,
    relu,
    selu,
    sigmoid,
    softmax,
    softplus,
    softsign,
    tanh,
)

__all__ = [
    "FUNCTIONS",
    "backward",
    "elu",
    "exponential",
    "get",
    "hard_sigmoid",
    "linear",
    "relu",
    "selu",
    "sigmoid",
    "softmax",
    "softplus",
    "softsign",
    "tanh",
]
