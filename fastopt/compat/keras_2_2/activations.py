"""The activations of Keras 2.2.3 and later: as in Keras 3, but for what the docstrings say.

Source: https://github.com/keras-team/keras/blob/2.2.4/keras/activations.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...activations import backward as _backward
from ...activations import (
    elu,
    exponential,
    linear,
    selu,
    sigmoid,
    softplus,
    softsign,
    tanh,
)
from ...activations import relu as _modern_relu
from ...activations.forms import AlongAxes, Elementwise, activation
from ...kernels.activations.engine import SOFTMAX
from ...kernels.activations.piecewise import HARD_SIGMOID
from ..names import find_2

__all__ = [
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


@activation
def softmax(x: Any, axis: int = -1) -> Any:
    """Compute `softmax` as in Keras 3, for arrays of two axes or more."""
    return AlongAxes(SOFTMAX, axis, range(2, 65), "Cannot apply softmax to a tensor that is {ndim}D")


@activation
def relu(x: Any, alpha: float = 0.0, max_value: float | None = None, threshold: float = 0.0) -> Any:
    """Compute `relu` as in Keras 3, which calls ``alpha`` ``negative_slope``."""
    return _modern_relu.form(alpha, max_value, threshold)


@activation
def hard_sigmoid(x: Any) -> Any:
    """0.2 x + 0.5 limited to [0, 1] (Keras 3: x / 6 + 0.5)."""
    return Elementwise(HARD_SIGMOID, (0.2,))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        softmax, elu, selu, softplus, softsign, relu, tanh, sigmoid, hard_sigmoid, exponential, linear,
    )
}  # fmt: skip
"""Every name of this era → function."""


def get(identifier: Any) -> Any:
    """An activation from its name; None gives `linear`, a callable is returned as it is.

    Raises
    ------
    ValueError
        If the name is unknown, or the identifier is of another kind.
    """
    return linear if identifier is None else find_2(identifier, FUNCTIONS, "activation function")


def backward(identifier: Any, **options: Any) -> Callable[..., Any]:
    """`fastopt.activations.backward`, with the names of this era."""
    return _backward(get(identifier), **options)
