"""The losses of Keras 2.3: as in Keras 3, but for their names and what the docstrings say.

Source: https://github.com/keras-team/keras/blob/2.3.1/keras/losses.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...losses import (
    BinaryCrossentropy,
    CategoricalCrossentropy,
    CategoricalHinge,
    Hinge,
    Huber,
    KLDivergence,
    LogCosh,
    Loss,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    MeanSquaredLogarithmicError,
    Poisson,
    SparseCategoricalCrossentropy,
    SquaredHinge,
    categorical_hinge,
    hinge,
    mean_absolute_error,
    mean_absolute_percentage_error,
    mean_squared_error,
    mean_squared_logarithmic_error,
    poisson,
    squared_hinge,
)
from ...losses import crossentropies as _crossentropies
from ...losses import functions as _modern
from ...losses import value_and_grad as _value_and_grad
from ...losses.evaluation import loss_function
from ...losses.form import Form
from ..keras_2_2.losses import NORM_EPSILON, kullback_leibler_divergence, logcosh
from ..names import find_2

__all__ = [
    "KLD",
    "MAE",
    "MAPE",
    "MSE",
    "MSLE",
    "BinaryCrossentropy",
    "CategoricalCrossentropy",
    "CategoricalHinge",
    "CosineSimilarity",
    "Hinge",
    "Huber",
    "KLDivergence",
    "LogCosh",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanSquaredError",
    "MeanSquaredLogarithmicError",
    "Poisson",
    "SparseCategoricalCrossentropy",
    "SquaredHinge",
    "binary_crossentropy",
    "categorical_crossentropy",
    "categorical_hinge",
    "cosine",
    "cosine_proximity",
    "cosine_similarity",
    "get",
    "hinge",
    "huber_loss",
    "kld",
    "kullback_leibler_divergence",
    "logcosh",
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
def binary_crossentropy(y_true: Any, y_pred: Any, from_logits: bool = False, label_smoothing: float = 0) -> Any:
    """Compute the loss as in Keras 3, without an axis."""
    options = {"from_logits": from_logits, "label_smoothing": label_smoothing}
    return _crossentropies.binary_crossentropy.form(options)


@loss_function
def categorical_crossentropy(y_true: Any, y_pred: Any, from_logits: bool = False, label_smoothing: float = 0) -> Any:
    """Compute the loss as in Keras 3, without an axis."""
    options = {"from_logits": from_logits, "label_smoothing": label_smoothing}
    return _crossentropies.categorical_crossentropy.form(options)


@loss_function
def sparse_categorical_crossentropy(y_true: Any, y_pred: Any, from_logits: bool = False, axis: int = -1) -> Any:
    """Compute the loss as in Keras 3, without a class to ignore."""
    return _crossentropies.sparse_categorical_crossentropy.form({"from_logits": from_logits, "axis": axis})


@loss_function
def huber_loss(y_true: Any, y_pred: Any, delta: float = 1.0) -> Any:
    """Mean of e² / 2 where |e| ≤ δ, else of δ |e| − δ² / 2.

    One value per sample like any other loss; that of Keras 2.3 is one per element, whose mean is the same.
    """
    return _modern.huber.form({"delta": delta})


@loss_function
def cosine_proximity(y_true: Any, y_pred: Any, axis: int = -1) -> Any:
    """−Σ t̂ p̂ along ``axis``, −1 for the same direction."""
    return Form(_modern.COSINE, (NORM_EPSILON,), mean=False, axis=axis)


mse = MSE = mean_squared_error
mae = MAE = mean_absolute_error
mape = MAPE = mean_absolute_percentage_error
msle = MSLE = mean_squared_logarithmic_error
kld = KLD = kullback_leibler_divergence
cosine = cosine_similarity = cosine_proximity


class CosineSimilarity(Loss):
    """`cosine_proximity`, reduced."""

    function = staticmethod(cosine_proximity)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: function for name, function in globals().items() if hasattr(function, "form")
}
"""Every name of this era → function."""

CLASSES: dict[str, type[Loss]] = {
    name: kind for name, kind in globals().items() if isinstance(kind, type) and kind.__base__ is Loss
}
"""Class name → class."""


def get(identifier: Any) -> Any:
    """A loss function from its name, an instance from a class's name; None gives None, a callable itself.

    Raises
    ------
    ValueError
        If the name is unknown, or the identifier is of another kind.
    """
    if isinstance(identifier, str) and identifier in CLASSES:
        return CLASSES[identifier]()
    return None if identifier is None else find_2(identifier, FUNCTIONS, "loss function")


def value_and_grad(loss: Any, **options: Any) -> Any:
    """`fastopt.losses.value_and_grad`, with the names of this era."""
    return _value_and_grad(get(loss), **options)
