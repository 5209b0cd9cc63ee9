"""The losses of Keras 2.2: as in Keras 3, but for what the docstrings say.

There are no options: predictions are probabilities, targets are taken as they are.

Source: https://github.com/keras-team/keras/blob/2.2.4/keras/losses.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...losses import (
    categorical_hinge,
    mean_absolute_error,
    mean_absolute_percentage_error,
    mean_squared_error,
    mean_squared_logarithmic_error,
    poisson,
)
from ...losses import crossentropies as _crossentropies
from ...losses import functions as _modern
from ...losses import value_and_grad as _value_and_grad
from ...losses.evaluation import loss_function
from ...losses.form import Form
from ..names import find_2

__all__ = [
    "KLD",
    "MAE",
    "MAPE",
    "MSE",
    "MSLE",
    "binary_crossentropy",
    "categorical_crossentropy",
    "categorical_hinge",
    "cosine",
    "cosine_proximity",
    "get",
    "hinge",
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

NORM_EPSILON = 1e-6
"""Least norm that a vector is divided by: the root of 1e-12, which bounds its square in TensorFlow. Keras 3: 1e-7."""


@loss_function
def hinge(y_true: Any, y_pred: Any) -> Any:
    """Mean of max(1 − t p, 0), for targets −1 and 1; targets of 0 and 1 are not converted, as they are from 2.3 on."""
    return Form(_modern.HINGE)


@loss_function
def squared_hinge(y_true: Any, y_pred: Any) -> Any:
    """Mean of max(1 − t p, 0)²; targets as of `hinge`."""
    return Form(_modern.SQUARED_HINGE)


@loss_function
def logcosh(y_true: Any, y_pred: Any) -> Any:
    """Mean of log(cosh(p − t)); Keras 3 calls it log_cosh."""
    return _modern.log_cosh.form({})


@loss_function
def categorical_crossentropy(y_true: Any, y_pred: Any) -> Any:
    """−Σ t log p, p divided by their sum, then clipped to [ε, 1 − ε]."""
    return _crossentropies.categorical_crossentropy.form({})


@loss_function
def sparse_categorical_crossentropy(y_true: Any, y_pred: Any) -> Any:
    """−log p of the class that ``y_true`` names, p as of `categorical_crossentropy`.

    Labels are whole numbers with a last axis of one element, ``np.expand_dims(y, -1)``; without that axis they are
    taken too. Models of this era on TensorFlow clipped first and divided then, which for probabilities is the same to
    1e-7.
    """
    return _crossentropies.sparse_categorical_crossentropy.form({})


@loss_function
def binary_crossentropy(y_true: Any, y_pred: Any) -> Any:
    """Mean of −t log p − (1 − t) log(1 − p), p clipped to [ε, 1 − ε]."""
    return _crossentropies.binary_crossentropy.form({})


@loss_function
def kullback_leibler_divergence(y_true: Any, y_pred: Any) -> Any:
    """Sum of t log(t / p), both clipped to [ε, 1]; Keras 3 calls it kl_divergence."""
    return _modern.kl_divergence.form({})


@loss_function
def cosine_proximity(y_true: Any, y_pred: Any) -> Any:
    """−Σ t̂ p̂, −1 for the same direction. Up to 2.0.8 it was divided by the dimension, see ``keras_1_0``."""
    return Form(_modern.COSINE, (NORM_EPSILON,), mean=False)


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
    """A loss function from its name; None gives None, a callable is returned as it is.

    Raises
    ------
    ValueError
        If the name is unknown, or the identifier is of another kind.
    """
    return None if identifier is None else find_2(identifier, FUNCTIONS, "loss function")


def value_and_grad(loss: Any, **options: Any) -> Any:
    """`fastopt.losses.value_and_grad`, with the names of this era."""
    return _value_and_grad(get(loss), **options)
