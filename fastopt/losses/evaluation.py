"""Losses evaluated: values per sample, value and gradient in one pass; and the functions that are called for it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, cast

import numpy as np

from ..arrays import Array
from ..kernels.losses import engine
from .arrays import Rows, gradient_target, rows_of
from .form import Form
from .reduction import check_reduction, given_weights, normaliser, weight_per_row


def values(form: Form, y_true: Any, y_pred: Any) -> Any:
    """One value per sample, in the dtype of ``y_pred``."""
    rows = rows_of(form, y_true, y_pred)
    per_row, _ = engine.evaluate(form.formula, *rows[:2], None, None, _table(form, rows, 1.0), _mean(form, rows))
    return per_row.reshape(rows.shape)[()]


def reduced(form: Form, y_true: Any, y_pred: Any, sample_weight: Any, reduction: str | None) -> Any:
    """The reduced value, or weighted values per sample if there is no reduction."""
    value, _ = _evaluate(form, y_true, y_pred, sample_weight, reduction, None, with_gradient=False)
    return value


def value_and_gradient(
    form: Form, y_true: Any, y_pred: Any, sample_weight: Any, reduction: str | None, out: Array | None
) -> tuple[Any, Array]:
    """The reduced value, and its gradient by ``y_pred``."""
    return _evaluate(form, y_true, y_pred, sample_weight, reduction, out, with_gradient=True)


def _evaluate(
    form: Form, y_true: Any, y_pred: Any, sample_weight: Any, reduction: Any, out: Any, with_gradient: bool
) -> tuple[Any, Any]:
    check_reduction(reduction)
    rows = rows_of(form, y_true, y_pred)
    weights = given_weights(sample_weight, rows)
    per_row = None if weights is None else weight_per_row(weights, rows)
    scale = normaliser(reduction, weights, rows, form.ignore_class is not None)
    result, gradient = None, None
    if with_gradient:
        result, gradient = gradient_target(out, rows, y_true, y_pred, sample_weight)
    table, mean = _table(form, rows, scale), _mean(form, rows)
    row_values, total = engine.evaluate(form.formula, *rows[:2], gradient, per_row, table, mean)
    if result is not None and gradient is not None and not np.may_share_memory(result, gradient):
        rows.laid_out(result)[...] = gradient.reshape(*rows.shape, -1) if gradient.size else 0
    return (row_values.reshape(rows.shape)[()] if reduction in ("none", None) else total * scale), result


def _mean(form: Form, rows: Rows) -> float:
    """What a row's sum is multiplied by; NaN for the mean of nothing."""
    if not form.mean:
        return 1.0
    columns = rows.prediction.shape[1]
    return 1.0 / columns if columns else float("nan")


def _table(form: Form, rows: Rows, scale: float) -> Array:
    """The scalars table of the kernels: factor on derivatives, factor and shift of targets, the formula's own."""
    columns = rows.prediction.shape[1]
    factor, shift = 1.0 - form.smoothing, form.smoothing / ((columns or 1) if form.classes else 2)
    if form.binary_labels and engine.is_binary(rows.target):
        factor, shift = 2.0, -1.0
    return np.array([[scale * _mean(form, rows), factor, shift, *form.scalars]], rows.prediction.dtype)


_Arguments = ParamSpec("_Arguments")


class LossFunction(Protocol[_Arguments]):
    """A loss function: gives one value per sample; its ``form`` takes the options alone."""

    __name__: str
    form: Callable[[dict[str, Any]], Form]

    def __call__(self, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Any:
        """One value per sample."""


def loss_function(describe: Callable[_Arguments, Any]) -> LossFunction[_Arguments]:
    """Decorator: a function whose body returns the `Form` for its options becomes one that computes it.

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
