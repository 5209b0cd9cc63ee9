"""Losses evaluated: values per sample, value and gradient in one pass; and the functions that are called for it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, cast

import numpy as np

from ..arrays import Array
from .arrays import gradient_target
from .reduction import check_reduction, given_weights, normaliser, weight_per_row


def values(form: Any, y_true: Any, y_pred: Any) -> Any:
    """One value per sample, in the dtype of ``y_pred``."""
    rows = form.rows(y_true, y_pred)
    per_row, _ = form.evaluate(rows, None, None, lambda mask: 1.0)
    return per_row.reshape(rows.shape)[()]


def reduced(form: Any, y_true: Any, y_pred: Any, sample_weight: Any, reduction: str | None) -> Any:
    """The reduced value, or weighted values per sample if there is no reduction."""
    value, _ = _evaluate(form, y_true, y_pred, sample_weight, reduction, None, with_gradient=False)
    return value


def value_and_gradient(
    form: Any, y_true: Any, y_pred: Any, sample_weight: Any, reduction: str | None, out: Array | None
) -> tuple[Any, Array]:
    """The reduced value, and its gradient by ``y_pred``."""
    return _evaluate(form, y_true, y_pred, sample_weight, reduction, out, with_gradient=True)


def _evaluate(
    form: Any, y_true: Any, y_pred: Any, sample_weight: Any, reduction: Any, out: Any, with_gradient: bool
) -> tuple[Any, Any]:
    check_reduction(reduction)
    rows = form.rows(y_true, y_pred)
    weights = given_weights(sample_weight, rows)
    per_row = None if weights is None else weight_per_row(weights, rows)
    result, gradient = None, None
    if with_gradient:
        result, gradient = gradient_target(out, rows, y_true, y_pred, sample_weight)
    row_values, total = form.evaluate(rows, gradient, per_row, lambda mask: normaliser(reduction, weights, rows, mask))
    if result is not None and gradient is not None and not np.may_share_memory(result, gradient):
        moved = rows.laid_out(result)
        moved[...] = gradient.reshape(moved.shape)
    return (row_values.reshape(rows.shape)[()] if reduction in ("none", None) else total), result


_Arguments = ParamSpec("_Arguments")


class LossFunction(Protocol[_Arguments]):
    """A loss function: gives one value per sample; its ``form`` takes the options alone."""

    __name__: str
    form: Callable[[dict[str, Any]], Any]

    def __call__(self, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Any:
        """One value per sample."""


def loss_function(describe: Callable[_Arguments, Any]) -> LossFunction[_Arguments]:
    """Decorator: a function whose body returns the form (see form.py) for its options becomes one that computes it.

    The result has the signature of what is decorated, and gives one value per sample. `value_and_grad` takes it too.
    """
    signature = inspect.signature(describe)

    @functools.wraps(describe)
    def function(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        form = describe(*bound.args, **bound.kwargs)
        return values(form, *bound.args[:2])

    result = cast("LossFunction[_Arguments]", function)
    result.form = lambda options: describe(None, None, **options)  # type: ignore
    return result
