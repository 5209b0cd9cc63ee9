"""The activations of Keras 1.0: as in Keras 2.2, but for what the docstrings say and the names that came later.

Source: https://github.com/keras-team/keras/blob/1.0.8/keras/activations.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...activations import backward as _backward
from ...activations import relu as _modern_relu
from ...activations.forms import AlongAxes, activation
from ...kernels.activations.engine import SOFTMAX
from ..keras_2_2.activations import hard_sigmoid, linear, sigmoid, softplus, softsign, tanh
from ..names import find_1

__all__ = [
    "backward",
    "get",
    "hard_sigmoid",
    "linear",
    "relu",
    "sigmoid",
    "softmax",
    "softplus",
    "softsign",
    "tanh",
]


@activation
def softmax(x: Any) -> Any:
    """Over the last axis, for arrays of two or three axes; others are a ValueError (in 1.0 a plain Exception)."""
    refusal = "Cannot apply softmax to a tensor that is not 2D or 3D. Here, ndim={ndim}"
    return AlongAxes(SOFTMAX, -1, (2, 3), refusal)


@activation
def relu(x: Any, alpha: float = 0.0, max_value: float | None = None) -> Any:
    """max(x, 0), limited to ``max_value`` if there is one; ``alpha`` x for x < 0."""
    return _modern_relu.form(alpha, max_value)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (softmax, softplus, softsign, relu, tanh, sigmoid, hard_sigmoid, linear)
}
"""Every name of this era → function."""


def get(identifier: Any) -> Any:
    """An activation from its name; None gives `linear`, all else is returned as it is.

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    return linear if identifier is None else find_1(identifier, FUNCTIONS, "activation function")


def backward(identifier: Any, **options: Any) -> Callable[..., Any]:
    """`fastopt.activations.backward`, with the names of this era."""
    return _backward(get(identifier), **options)
