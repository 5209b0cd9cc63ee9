"""Keras 3's loss functions. Each gives one value per sample.

Common to all of them:

- ``y_pred`` is a float32 or float64 array of one axis or more, and the values come in its dtype; lists become float64.
- ``y_true`` has its shape; any dtype of numbers, cast to that of ``y_pred``. Where the ranks differ by one, a last axis
  of one element goes, as in Keras. Other shapes are an error: Keras broadcasts them, which rarely is what was meant.
- The last axis, or ``axis``, is reduced: values have the shape of ``y_pred`` without it. Sums are in float64.
- Where a target of 0 meets an infinite term, it costs 0, as the limit says; Keras has NaN there. A sample weight of 0
  is a factor: times an infinite value it is NaN, as in Keras and torch.
- t is a target, p a prediction, ε = 1e-7.
- TypeError and ValueError for dtypes, shapes, labels and options that do not fit.

The body of each function says which formula is computed; ``loss_function`` makes it one that computes it.

Source: https://keras.io/api/losses/, Keras 3.15.
"""

from __future__ import annotations

from typing import Any

from ..kernels.losses import elementwise, engine, rows
from ..parameters import check_number
from .evaluation import loss_function
from .form import Form, check_smoothing

EPSILON = 1e-7
"""Keras's ``backend.epsilon()``."""

# Formulas once for all calls: they are what compiled kernels are found by.
SQUARED_ERROR = engine.elementwise(elementwise.squared_error)
ABSOLUTE_ERROR = engine.elementwise(elementwise.absolute_error)
ABSOLUTE_PERCENTAGE_ERROR = engine.elementwise(elementwise.absolute_percentage_error, elementwise.Epsilon)
SQUARED_LOGARITHMIC_ERROR = engine.elementwise(elementwise.squared_logarithmic_error, elementwise.Epsilon)
HINGE = engine.elementwise(elementwise.hinge)
SQUARED_HINGE = engine.elementwise(elementwise.squared_hinge)
CATEGORICAL_HINGE = engine.by_rows(rows.categorical_hinge)
HUBER = engine.elementwise(elementwise.huber, elementwise.Delta)
LOG_COSH = engine.elementwise(elementwise.log_cosh)
KL_DIVERGENCE = engine.elementwise(elementwise.kl_divergence, elementwise.Epsilon)
POISSON = engine.elementwise(elementwise.poisson, elementwise.Epsilon)
COSINE = engine.cosine_similarity
BINARY_CROSSENTROPY = engine.elementwise(elementwise.binary_crossentropy, elementwise.Epsilon)
BINARY_CROSSENTROPY_OF_LOGITS = engine.elementwise(elementwise.binary_crossentropy_of_logit)
CATEGORICAL_CROSSENTROPY = engine.by_rows(rows.categorical_crossentropy, elementwise.Epsilon)


@loss_function
def mean_squared_error(y_true: Any, y_pred: Any) -> Any:
    """Mean of (p − t)²."""
    return Form(SQUARED_ERROR)


@loss_function
def mean_absolute_error(y_true: Any, y_pred: Any) -> Any:
    """Mean of |p − t|; the gradient is 0 where they are equal."""
    return Form(ABSOLUTE_ERROR)


@loss_function
def mean_absolute_percentage_error(y_true: Any, y_pred: Any) -> Any:
    """100 times the mean of |t − p| / max(|t|, ε)."""
    return Form(ABSOLUTE_PERCENTAGE_ERROR, (EPSILON,))


@loss_function
def mean_squared_logarithmic_error(y_true: Any, y_pred: Any) -> Any:
    """Mean of (log(max(p, ε) + 1) − log(max(t, ε) + 1))²; the gradient is 0 for p < ε."""
    return Form(SQUARED_LOGARITHMIC_ERROR, (EPSILON,))


@loss_function
def hinge(y_true: Any, y_pred: Any) -> Any:
    """Mean of max(1 − t p, 0), for targets −1 and 1. If *all* targets are 0 or 1, they become −1 and 1."""
    return Form(HINGE, binary_labels=True)


@loss_function
def squared_hinge(y_true: Any, y_pred: Any) -> Any:
    """Mean of max(1 − t p, 0)², for targets as of `hinge`."""
    return Form(SQUARED_HINGE, binary_labels=True)


@loss_function
def categorical_hinge(y_true: Any, y_pred: Any) -> Any:
    """max(max((1 − t) p) − Σ t p + 1, 0), for one-hot targets. Equal maxima share the gradient."""
    return Form(CATEGORICAL_HINGE, mean=False)


@loss_function
def huber(y_true: Any, y_pred: Any, delta: float = 1.0) -> Any:
    """Mean of e² / 2 where |e| ≤ δ, else of δ |e| − δ² / 2; e = p − t. Source: Huber 1964."""
    check_number("delta", delta, 0.0)
    return Form(HUBER, (delta,))


@loss_function
def log_cosh(y_true: Any, y_pred: Any) -> Any:
    """Mean of log(cosh(p − t)), which does not overflow."""
    return Form(LOG_COSH)


@loss_function
def kl_divergence(y_true: Any, y_pred: Any) -> Any:
    """Sum (not mean) of t log(t / p), both clipped to [ε, 1]; the gradient is 0 where p was clipped."""
    return Form(KL_DIVERGENCE, (EPSILON,), mean=False)


@loss_function
def poisson(y_true: Any, y_pred: Any) -> Any:
    """Mean of p − t log(p + ε)."""
    return Form(POISSON, (EPSILON,))


@loss_function
def cosine_similarity(y_true: Any, y_pred: Any, axis: int = -1) -> Any:
    """−Σ t̂ p̂ with x̂ = x / max(‖x‖, ε): −1 for the same direction, 1 for the opposite.

    Rows are scaled before they are squared: what overflows in Keras, which then gives 0, has its true value.
    """
    return Form(COSINE, (EPSILON,), mean=False, axis=axis)


@loss_function
def binary_crossentropy(
    y_true: Any, y_pred: Any, from_logits: bool = False, label_smoothing: float = 0.0, axis: int = -1
) -> Any:
    """Mean of −t log p − (1 − t) log(1 − p).

    Parameters
    ----------
    from_logits : bool
        Predictions are logits: computed without ever forming a probability, so that large ones stay exact. An infinite
        logit on the right side of a target of 0 or 1 costs 0. Else they are probabilities, clipped to [ε, 1 − ε]; the
        gradient is 0 where they were.
    label_smoothing : float
        s in [0, 1]: targets become t (1 − s) + s / 2.
    axis : int
        The axis of the mean.
    """
    check_smoothing(from_logits, label_smoothing)
    if from_logits:
        return Form(BINARY_CROSSENTROPY_OF_LOGITS, axis=axis, smoothing=label_smoothing)
    return Form(BINARY_CROSSENTROPY, (EPSILON,), axis=axis, smoothing=label_smoothing)


@loss_function
def categorical_crossentropy(
    y_true: Any, y_pred: Any, from_logits: bool = False, label_smoothing: float = 0.0, axis: int = -1
) -> Any:
    """−Σ t log p over the classes.

    Parameters
    ----------
    y_true : array
        One-hot, or any distribution.
    from_logits : bool
        Predictions are logits: p = softmax(logits). Else they are divided by their sum and clipped to [ε, 1 − ε]; the
        gradient passes the division, and is 0 past the clip.

        A logit of -inf has probability 0: where the target is 0 it costs 0 (Keras says NaN), where it is not, as after
        label smoothing, the value is inf.
    label_smoothing : float
        s in [0, 1]: targets become t (1 − s) + s / classes.
    axis : int
        The axis of the classes. (Keras 3.15 smooths by the size of the last axis whatever ``axis`` is.)
    """
    check_smoothing(from_logits, label_smoothing)
    options: dict[str, Any] = {"mean": False, "axis": axis, "smoothing": label_smoothing, "classes": True}
    if from_logits:
        return Form(engine.softmax_of_targets, **options)
    return Form(CATEGORICAL_CROSSENTROPY, (EPSILON,), **options)


@loss_function
def sparse_categorical_crossentropy(
    y_true: Any, y_pred: Any, from_logits: bool = False, ignore_class: int | None = None, axis: int = -1
) -> Any:
    """−log p of the class that ``y_true`` names.

    Parameters
    ----------
    y_true : array
        Whole numbers in [0, classes), one per sample: the shape of ``y_pred`` without ``axis``, or with one element
        there.
    from_logits : bool
        As of `categorical_crossentropy`.
    ignore_class : int or None
        Samples with this label have value and gradient 0, and means do not count them.
    axis : int
        The axis of the classes.
    """
    check_smoothing(from_logits, 0.0)
    options: dict[str, Any] = {"mean": False, "axis": axis, "ignore_class": ignore_class}
    if from_logits:
        return Form(engine.softmax_of_labels, **options)
    return Form(engine.probability_of_labels, (EPSILON,), **options)
