"""The objectives of Keras 1.0: as the losses of 2.2, but for cosine_proximity and the names that came later.

Source: https://github.com/keras-team/keras/blob/1.0.8/keras/objectives.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...losses import functions as _modern
from ...losses import value_and_grad as _value_and_grad
from ...losses.evaluation import loss_function
from ...losses.form import Form
from ..keras_2_2.losses import (
    NORM_EPSILON,
    binary_crossentropy,
    categorical_crossentropy,
    hinge,
    kullback_leibler_divergence,
    mean_absolute_error,
    mean_absolute_percentage_error,
    mean_squared_error,
    mean_squared_logarithmic_error,
    poisson,
    sparse_categorical_crossentropy,
    squared_hinge,
)
from ..names import find_1

__all__ = [
    "KLD",
    "MAE",
    "MAPE",
    "MSE",
    "MSLE",
    "binary_crossentropy",
    "categorical_crossentropy",
    "cosine",
    "cosine_proximity",
    "get",
    "hinge",
    "kld",
    "kullback_leibler_divergence",
    "mae",
    "mape",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_error",
    "mean_squared_logarithmic_error",
    "mse",
    "msle",
    "poisson",
    "sparse_categorical_crossentropy",
    "squared_hinge",
    "value_and_grad",
]


@loss_function
def cosine_proximity(y_true: Any, y_pred: Any) -> Any:
    """−*mean* of t̂ p̂: the cosine divided by the dimension, as up to 2.0.8."""
    return Form(_modern.COSINE, (NORM_EPSILON,), mean=True)


mse = MSE = mean_squared_error
mae = MAE = mean_absolute_error
mape = MAPE = mean_absolute_percentage_error
msle = MSLE = mean_squared_logarithmic_error
kld = KLD = kullback_leibler_divergence
cosine = cosine_proximity

FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: function for name, function in globals().items() if hasattr(function, "form")
}
"""Every name of this era → function."""


def get(identifier: Any) -> Any:
    """An objective from its name; all else is returned as it is.

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    return find_1(identifier, FUNCTIONS, "objective")


def value_and_grad(loss: Any, **options: Any) -> Any:
    """`fastopt.losses.value_and_grad`, with the names of this era."""
    return _value_and_grad(get(loss), **options)
