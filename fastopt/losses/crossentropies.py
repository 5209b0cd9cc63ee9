"""Keras 3's crossentropies; what is common to all loss functions stands in functions.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels.losses import elementwise, engine, focal, rows
from ..parameters import check_flag, check_number
from .evaluation import loss_function
from .form import EPSILON, Form, check_smoothing

BINARY_CROSSENTROPY = engine.elementwise(elementwise.binary_crossentropy, elementwise.Epsilon)
BINARY_CROSSENTROPY_OF_LOGITS = engine.elementwise(elementwise.binary_crossentropy_of_logit)
CATEGORICAL_CROSSENTROPY = engine.by_rows(rows.categorical_crossentropy, elementwise.Epsilon)
BINARY_FOCAL = engine.elementwise(focal.binary_focal_crossentropy, focal.BinaryFocal)
BINARY_FOCAL_OF_LOGITS = engine.elementwise(focal.binary_focal_crossentropy_of_logit, focal.BinaryFocal)
CATEGORICAL_FOCAL = engine.by_rows(focal.categorical_focal_crossentropy, focal.CategoricalFocal)
CATEGORICAL_FOCAL_OF_LOGITS = engine.by_rows_of_logits(focal.categorical_focal_crossentropy, focal.CategoricalFocal)


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


@loss_function
def binary_focal_crossentropy(
    y_true: Any,
    y_pred: Any,
    apply_class_balancing: bool = False,
    alpha: float = 0.25,
    gamma: float = 2.0,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: int = -1,
) -> Any:
    """Mean of (1 − p_t)^γ times the binary crossentropy, p_t = t p + (1 − t) (1 − p): what is easy counts for less.

    Parameters
    ----------
    apply_class_balancing : bool
        Whether each term is multiplied by t α + (1 − t) (1 − α).
    alpha : float
        Weight of class 1.
    gamma : float
        γ; 0 leaves the crossentropy.
    from_logits : bool
        Predictions are logits, p = sigmoid(logits). As in Keras, p is then clipped to [ε, 1 − ε] in the crossentropy,
        unlike in `binary_crossentropy`.
    label_smoothing, axis
        As of `binary_crossentropy`.

    Source: Lin et al. 2018, arXiv:1708.02002.
    """
    check_smoothing(from_logits, label_smoothing)
    check_flag("apply_class_balancing", apply_class_balancing)
    check_number("alpha", alpha)
    check_number("gamma", gamma)
    negative = (1.0, -1.0)[int(gamma) % 2] if gamma == int(gamma) else float("nan")
    weights = (alpha, 1.0 - alpha) if apply_class_balancing else (1.0, 1.0)
    formula = BINARY_FOCAL_OF_LOGITS if from_logits else BINARY_FOCAL
    return Form(formula, (EPSILON, gamma, gamma - 1.0, negative, *weights), axis=axis, smoothing=label_smoothing)


@loss_function
def categorical_focal_crossentropy(
    y_true: Any,
    y_pred: Any,
    alpha: Any = 0.25,
    gamma: float = 2.0,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: int = -1,
) -> Any:
    """−Σ α (1 − p)^γ t log p over the classes.

    Parameters
    ----------
    y_true : array
        One-hot, or any distribution.
    alpha : float or sequence of floats
        Weight of all classes, or of each.
    gamma : float
        γ; 0 leaves the crossentropy.
    from_logits : bool
        Predictions are logits, p = softmax(logits). In both cases p is divided by its sum and clipped to [ε, 1 − ε].
    label_smoothing, axis
        As of `categorical_crossentropy`.

    Source: Lin et al. 2018, arXiv:1708.02002.
    """
    check_smoothing(from_logits, label_smoothing)
    check_number("gamma", gamma)
    class_weights = None
    if isinstance(alpha, (list, tuple, np.ndarray)):
        class_weights, alpha = tuple(np.asarray(alpha).ravel().tolist()), 1.0
        for weight in class_weights:
            check_number("alpha", weight)
    check_number("alpha", alpha)
    return Form(
        CATEGORICAL_FOCAL_OF_LOGITS if from_logits else CATEGORICAL_FOCAL,
        (EPSILON, gamma, alpha),
        mean=False,
        axis=axis,
        smoothing=label_smoothing,
        classes=True,
        class_weights=class_weights,
    )


@loss_function
def categorical_generalized_cross_entropy(y_true: Any, y_pred: Any, q: float) -> Any:
    """(1 − p^q) / q, p the probability of the class that ``y_true`` names: crossentropy for q → 0, 1 − p for q → 1.

    Parameters
    ----------
    y_true : array
        Whole numbers, as of `sparse_categorical_crossentropy`.
    y_pred : array
        Probabilities, which are taken as they are.
    q : float
        In (0, 1).

    Source: Zhang & Sabuncu 2018, arXiv:1805.07836.
    """
    check_number("q", q)
    if not 0 < q < 1:
        raise ValueError(f"q must be in (0, 1), got {q}")
    return Form(engine.generalized_of_labels, (q,), mean=False)
