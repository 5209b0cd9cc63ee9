"""Keras 3's loss classes: a function with its options and a reduction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from . import functions
from .evaluation import reduced
from .reduction import check_reduction


class Loss:
    """A loss function with its options and a reduction; its subclasses are Keras's classes, by name.

    Parameters
    ----------
    **options
        Of the loss function, such as ``delta``.
    reduction : str or None
        As of `value_and_grad`.
    name : str, optional
        Kept in the config.

    Arguments go by keyword. Unlike Keras's, it computes in the dtype of ``y_pred``.

    >>> MeanSquaredError(reduction="sum")([[1.0, 2.0]], [[1.0, 4.0]])
    2.0
    """

    function: Any  # the loss function

    def __init__(
        self, *, reduction: str | None = "sum_over_batch_size", name: str | None = None, **options: Any
    ) -> None:
        if not hasattr(self, "function"):
            raise TypeError("Loss is abstract: use one of its subclasses, such as MeanSquaredError")
        check_reduction(reduction)
        self.reduction = reduction
        self.name = name or self.function.__name__
        self.options = {key: value.item() if isinstance(value, np.generic) else value for key, value in options.items()}
        self._form = self.function.form(options)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """The reduced loss, a float; without a reduction an array of weighted values."""
        return reduced(self._form, y_true, y_pred, sample_weight, self.reduction)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**self.options, "reduction": self.reduction, "name": self.name}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Loss:
        """The loss that ``get_config`` described."""
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, Loss) and other.get_config() == self.get_config()

    def __hash__(self) -> int:
        return hash((type(self), self.name, self.reduction))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


class MeanSquaredError(Loss):
    """`mean_squared_error`, reduced."""

    function = staticmethod(functions.mean_squared_error)


class MeanAbsoluteError(Loss):
    """`mean_absolute_error`, reduced."""

    function = staticmethod(functions.mean_absolute_error)


class MeanAbsolutePercentageError(Loss):
    """`mean_absolute_percentage_error`, reduced."""

    function = staticmethod(functions.mean_absolute_percentage_error)


class MeanSquaredLogarithmicError(Loss):
    """`mean_squared_logarithmic_error`, reduced."""

    function = staticmethod(functions.mean_squared_logarithmic_error)


class Hinge(Loss):
    """`hinge`, reduced."""

    function = staticmethod(functions.hinge)


class SquaredHinge(Loss):
    """`squared_hinge`, reduced."""

    function = staticmethod(functions.squared_hinge)


class CategoricalHinge(Loss):
    """`categorical_hinge`, reduced."""

    function = staticmethod(functions.categorical_hinge)


class BinaryCrossentropy(Loss):
    """`binary_crossentropy`, reduced."""

    function = staticmethod(functions.binary_crossentropy)


class CategoricalCrossentropy(Loss):
    """`categorical_crossentropy`, reduced."""

    function = staticmethod(functions.categorical_crossentropy)


class SparseCategoricalCrossentropy(Loss):
    """`sparse_categorical_crossentropy`, reduced."""

    function = staticmethod(functions.sparse_categorical_crossentropy)


class KLDivergence(Loss):
    """`kl_divergence`, reduced."""

    function = staticmethod(functions.kl_divergence)


class Poisson(Loss):
    """`poisson`, reduced."""

    function = staticmethod(functions.poisson)


class CosineSimilarity(Loss):
    """`cosine_similarity`, reduced."""

    function = staticmethod(functions.cosine_similarity)


class Huber(Loss):
    """`huber`, reduced."""

    function = staticmethod(functions.huber)


class LogCosh(Loss):
    """`log_cosh`, reduced."""

    function = staticmethod(functions.log_cosh)
