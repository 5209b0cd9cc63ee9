"""Keras 3's loss classes: a function with its options and a reduction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from . import crossentropies, functions
from .arrays import in_dtype
from .evaluation import reduced
from .reduction import check_reduction


class Loss:
    """A loss function with its options and a reduction; its subclasses are Keras's classes, by name.

    Parameters
    ----------
    reduction : str or None
        As of `value_and_grad`.
    name : str, optional
        Kept in the config.
    dtype : "float32", "float64" or None
        What predictions are converted to, and everything is computed in; a Keras dtype policy stands for its
        ``compute_dtype``. None is the dtype of ``y_pred`` (in Keras, ``floatx()``).
    **options
        Of the loss function, such as ``delta``; subclasses have them as arguments, in Keras's order.

    >>> MeanSquaredError(reduction="sum")([[1.0, 2.0]], [[1.0, 4.0]])
    2.0
    """

    function: Any  # the loss function

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
        **options: Any,
    ) -> None:
        if not hasattr(self, "function"):
            raise TypeError("Loss is abstract: use one of its subclasses, such as MeanSquaredError")
        check_reduction(reduction)
        self.reduction = reduction
        self.name = name or self.function.__name__
        self.dtype = _dtype_name(dtype)
        self.options = {key: _plain(value) for key, value in options.items()}
        self._form = self.function.form(options)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """The reduced loss, a float; without a reduction an array of weighted values."""
        return reduced(self._form, y_true, in_dtype(y_pred, self.dtype), sample_weight, self.reduction)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments; the dtype only if there is one."""
        config = {**self.options, "reduction": self.reduction, "name": self.name}
        return config if self.dtype is None else {**config, "dtype": self.dtype}

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


def _dtype_name(dtype: Any) -> str | None:
    if dtype is None:
        return None
    dtype = getattr(dtype, "compute_dtype", dtype)
    for known in ("float32", "float64"):
        if dtype == known or dtype == getattr(np, known):
            return known
    raise ValueError(f"dtype must be 'float32', 'float64' or None, got {dtype!r}")


def _plain(value: Any) -> Any:
    """An option as a config can hold it."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


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

    function = staticmethod(crossentropies.binary_crossentropy)

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction, name, dtype, from_logits=from_logits, label_smoothing=label_smoothing, axis=axis)


class CategoricalCrossentropy(Loss):
    """`categorical_crossentropy`, reduced."""

    function = staticmethod(crossentropies.categorical_crossentropy)

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction, name, dtype, from_logits=from_logits, label_smoothing=label_smoothing, axis=axis)


class SparseCategoricalCrossentropy(Loss):
    """`sparse_categorical_crossentropy`, reduced."""

    function = staticmethod(crossentropies.sparse_categorical_crossentropy)

    def __init__(
        self,
        from_logits: bool = False,
        ignore_class: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        axis: int = -1,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction, name, dtype, from_logits=from_logits, ignore_class=ignore_class, axis=axis)


class KLDivergence(Loss):
    """`kl_divergence`, reduced."""

    function = staticmethod(functions.kl_divergence)


class Poisson(Loss):
    """`poisson`, reduced."""

    function = staticmethod(functions.poisson)


class CosineSimilarity(Loss):
    """`cosine_similarity`, reduced."""

    function = staticmethod(functions.cosine_similarity)

    def __init__(
        self, axis: int = -1, reduction: str | None = "sum_over_batch_size", name: str | None = None, dtype: Any = None
    ) -> None:
        super().__init__(reduction, name, dtype, axis=axis)


class Huber(Loss):
    """`huber`, reduced."""

    function = staticmethod(functions.huber)

    def __init__(
        self,
        delta: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "huber_loss",
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction, name, dtype, delta=delta)


class LogCosh(Loss):
    """`log_cosh`, reduced."""

    function = staticmethod(functions.log_cosh)


class BinaryFocalCrossentropy(Loss):
    """`binary_focal_crossentropy`, reduced."""

    function = staticmethod(crossentropies.binary_focal_crossentropy)

    def __init__(
        self,
        apply_class_balancing: bool = False,
        alpha: float = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            reduction,
            name,
            dtype,
            apply_class_balancing=apply_class_balancing,
            alpha=alpha,
            gamma=gamma,
            from_logits=from_logits,
            label_smoothing=label_smoothing,
            axis=axis,
        )


class CategoricalFocalCrossentropy(Loss):
    """`categorical_focal_crossentropy`, reduced."""

    function = staticmethod(crossentropies.categorical_focal_crossentropy)

    def __init__(
        self,
        alpha: Any = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            reduction,
            name,
            dtype,
            alpha=alpha,
            gamma=gamma,
            from_logits=from_logits,
            label_smoothing=label_smoothing,
            axis=axis,
        )


class CategoricalGeneralizedCrossEntropy(Loss):
    """`categorical_generalized_cross_entropy`, reduced."""

    function = staticmethod(crossentropies.categorical_generalized_cross_entropy)

    def __init__(
        self, q: float = 0.5, reduction: str | None = "sum_over_batch_size", name: str | None = None, dtype: Any = None
    ) -> None:
        super().__init__(reduction, name, dtype, q=q)


class Dice(Loss):
    """`dice`, reduced."""

    function = staticmethod(functions.dice)

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        axis: int | tuple[int, ...] | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction, name, dtype, axis=axis)


class Tversky(Loss):
    """`tversky`, reduced."""

    function = staticmethod(functions.tversky)

    def __init__(
        self,
        alpha: float = 0.5,
        beta: float = 0.5,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        axis: int | tuple[int, ...] | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction, name, dtype, alpha=alpha, beta=beta, axis=axis)


class Circle(Loss):
    """`circle`, reduced."""

    function = staticmethod(functions.circle)

    def __init__(
        self,
        gamma: float = 80.0,
        margin: float = 0.4,
        remove_diagonal: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction, name, dtype, gamma=gamma, margin=margin, remove_diagonal=remove_diagonal)


class CTC(Loss):
    """`ctc`, reduced."""

    function = staticmethod(functions.ctc)
