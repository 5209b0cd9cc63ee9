"""Value and gradient of a loss, in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays import Array, check_output, floating
from ..kernels.losses import engine
from ..parameters import check_number
from . import evaluation
from .arrays import Rows, check_overlap, in_dtype
from .classes import Loss
from .form import Form
from .reduction import check_reduction, given_weights, normaliser, weight_per_row
from .registry import get

_DEFAULT = "sum_over_batch_size"


def value_and_grad(
    loss: Any, *, gradient: Callable[[Any, Any], Any] | None = None, **options: Any
) -> Callable[..., tuple[Any, Array]]:
    """A function that gives a loss and its gradient by the predictions, both from one pass over the arrays.

    Parameters
    ----------
    loss : str, function or Loss
        A name that `get` knows, a loss function, an instance of a loss class (whose options and reduction become the
        defaults, and in whose dtype everything is computed, the gradient too), or a function of your own
        ``(y_true, y_pred)`` that gives one value per sample.
    gradient : function, optional
        For a function of your own: ``(y_true, y_pred)`` to the gradient of each sample's value, in the shape of
        ``y_pred``. `register` makes a fused kernel of scalar formulas instead, and needs no such function.
    **options
        Of the loss, such as ``from_logits=True``.

    Returns
    -------
    function
        ``(y_true, y_pred, sample_weight=None, reduction="sum_over_batch_size", out=None, **options)`` →
        ``(value, gradient)``:

        - ``value``: a float; for ``reduction="none"`` or None an array of the weighted values, one per sample;
        - ``gradient``: of ``value``, or of the sum of the values, by ``y_pred``; in its shape and dtype. It is written
          into ``out`` if that is given, which may be ``y_pred`` itself and must not overlap anything else;
        - ``sample_weight`` broadcasts to one weight per sample;
        - ``reduction``: "sum_over_batch_size" (or "mean") divides the weighted sum by the number of values, "sum" by
          nothing, "mean_with_sample_weight" by the sum of the weights; a division by zero gives 0, so that the
          value of an empty batch is 0.0.

    Raises
    ------
    ValueError, TypeError
        For an unknown name, for a function whose gradient is not known, and for arguments that do not fit; nothing has
        been written then.
    """
    function = get(loss)
    default: str | None = _DEFAULT
    dtype = None
    if isinstance(function, Loss):
        options = {**function.options, **options}
        default, dtype, function = function.reduction, function.dtype, function.function
    if function is None:
        raise ValueError("loss is None")
    form_of = getattr(function, "form", None)
    if form_of is None:
        return _of_user_function(function, gradient, options)
    if gradient is not None:
        raise TypeError(f"{function.__name__} brings its gradient: leave gradient= out")
    form_of(options)  # refuses wrong options here

    def compute(
        y_true: Any,
        y_pred: Any,
        sample_weight: Any = None,
        reduction: str | None = default,
        out: Array | None = None,
        **more: Any,
    ) -> tuple[Any, Array]:
        form = form_of({**options, **more})
        y_pred = in_dtype(y_pred, dtype)
        return evaluation.value_and_gradient(form, y_true, y_pred, sample_weight, reduction, out)

    return compute


def _of_user_function(function: Any, gradient: Any, defaults: dict[str, Any]) -> Callable[..., tuple[Any, Array]]:
    name = getattr(function, "__name__", repr(function))
    if gradient is None:
        raise TypeError(
            f"the gradient of {name} is not known: pass gradient=, a function (y_true, y_pred) to the derivative of "
            "each sample's value, or register scalar formulas with losses.register"
        )

    def compute(
        y_true: Any,
        y_pred: Any,
        sample_weight: Any = None,
        reduction: str | None = _DEFAULT,
        out: Array | None = None,
        **more: Any,
    ) -> tuple[Any, Array]:
        check_reduction(reduction)
        prediction, options = floating("y_pred", y_pred), {**defaults, **more}
        if out is not None:
            check_output(out, prediction.shape, prediction.dtype, "y_pred")
            check_overlap(out, y_true, y_pred, sample_weight)
        values = np.asarray(function(y_true, prediction, **options), prediction.dtype)
        if values.shape != prediction.shape[: values.ndim]:
            raise ValueError(f"{name}: expected one value per sample of y_pred {prediction.shape}, got {values.shape}")
        slopes = np.array(gradient(y_true, prediction, **options), prediction.dtype)
        if slopes.shape != prediction.shape:
            raise ValueError(f"{name}: its gradient must have the shape {prediction.shape}, got {slopes.shape}")
        flat = slopes.reshape(values.size, -1) if values.size else slopes.reshape(0, 0)
        rows = Rows(values, flat, values.shape, (0,), prediction.shape)
        weights = given_weights(sample_weight, rows)
        per_row = None if weights is None else weight_per_row(weights, rows)
        scale = normaliser(reduction, weights, rows)
        weighted, total = engine.weigh(values, slopes, per_row, scale)
        if out is not None:
            out[...] = slopes
        return (weighted if reduction in ("none", None) else total), slopes if out is None else out

    return compute


def softmax_crossentropy(
    logits: Any,
    labels: Any,
    sample_weight: Any = None,
    reduction: str | None = _DEFAULT,
    *,
    label_smoothing: float = 0.0,
    ignore_class: int | None = None,
    axis: int = -1,
    out: Array | None = None,
) -> tuple[Any, Array]:
    """Softmax and crossentropy as one kernel: value and gradient by the logits.

    value = log Σ exp(z − m) − (z − m)[label], m = max z; gradient = softmax(z) − one_hot(label).

    The exponentials are within 1.2 units in the last place: a reduction of the argument by ln 2, a Taylor polynomial of
    degree 7 for float32 and 13 for float64. Those below twice the smallest normal number count as 0. Sums are float64.

    A logit of -inf has probability 0 and, unlike in Keras, costs 0 where the target is 0, for both kinds of labels.
    Where it is the label's, or is smoothed, the value is inf, and the gradient is that of any other.
    A sample whose logits are all -inf, or one of which is inf or NaN, has NaN as value and gradient.

    Parameters
    ----------
    logits : array
        float32 or float64, classes along ``axis``.
    labels : array
        Whole numbers in [0, classes), one per sample, in the shape of the logits without ``axis`` (or with one element
        there); or one-hot or any other distribution, in the shape of the logits.
    sample_weight, reduction, out
        As of `value_and_grad`.
    label_smoothing : float
        s in [0, 1]: the target of each class becomes t (1 − s) + s / classes. For both kinds of labels.
    ignore_class : int or None
        Samples with this label do not count; for labels that are whole numbers.
    axis : int
        The axis of the classes.

    Returns
    -------
    value, gradient
        As of `value_and_grad`.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit; nothing has been written then.
    """
    check_number("label_smoothing", label_smoothing, 0.0, 1.0)
    is_distribution = np.shape(labels) == np.shape(logits)
    if is_distribution and ignore_class is not None:
        raise ValueError("ignore_class needs labels that are whole numbers, one per sample")
    formula = engine.softmax_of_targets if is_distribution else engine.softmax_of_labels
    form = Form(formula, mean=False, axis=axis, smoothing=label_smoothing, classes=True, ignore_class=ignore_class)
    return evaluation.value_and_gradient(form, labels, logits, sample_weight, reduction, out)
