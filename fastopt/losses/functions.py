"""Keras 3's loss functions. Each gives one value per sample.

Common to all of them:

- ``y_pred`` is a float32 or float64 array of one axis or more, and the values come in its dtype; lists and integers
  become float64 (in Keras, integers become float32).
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

from ..kernels.losses import elementwise, engine, overlap, rows
from ..parameters import check_flag, check_number
from .circle import Circle
from .ctc import Sequences
from .evaluation import loss_function
from .form import EPSILON, Form

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
DICE = engine.by_rows(overlap.dice, elementwise.Epsilon)
TVERSKY = engine.by_rows(overlap.tversky, overlap.Weights)


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


# -- sets, pairs, sequences --------------------------------------------------------------------------------------------


@loss_function
def dice(y_true: Any, y_pred: Any, axis: int | tuple[int, ...] | None = None) -> Any:
    """1 − 2 Σ t p / (Σ t + Σ p + ε), the sums along ``axis``, an int or several; None for all.

    One value for each element of the other axes: a single one for None, and sample weights then are a number.
    """
    return Form(DICE, (EPSILON,), mean=False, axis=axis, several_axes=True)


@loss_function
def tversky(
    y_true: Any,
    y_pred: Any,
    alpha: float = 0.5,
    beta: float = 0.5,
    axis: int | tuple[int, ...] | None = None,
) -> Any:
    """1 − I / (I + α Σ t (1 − p) + β Σ p (1 − t) + ε), I = Σ t p; axes and values as of `dice`.

    Source: Salehi et al. 2017, arXiv:1706.05721.
    """
    check_number("alpha", alpha)
    check_number("beta", beta)
    return Form(TVERSKY, (EPSILON, alpha, beta), mean=False, axis=axis, several_axes=True)


@loss_function
def circle(
    y_true: Any,
    y_pred: Any,
    ref_labels: Any = None,
    ref_embeddings: Any = None,
    remove_diagonal: bool = True,
    gamma: float = 80,
    margin: float = 0.4,
) -> Any:
    """log(1 + Σ e^n Σ e^s), s over the samples of the same label, n over those of others; 0 where there are none.

    With the distance d = max(1 − similarity, 0) and the margin m, s = γ max(m + d, 0) (d − m) and
    n = γ max(1 + m − d, 0) (1 − m − d). Where d is 0, the derivative is 0. Means are over the values that are not 0.

    Parameters
    ----------
    y_true : array [samples] or [samples, 1]
        Whole numbers.
    y_pred : array [samples, dimensions]
        Embeddings of length 1.
    ref_labels, ref_embeddings : arrays, optional
        What the samples are compared with: by default they themselves, and the gradient then is by both sides.
    remove_diagonal : bool
        Whether a sample is not compared with the reference of the same number, if it has the same label.
    gamma, margin : float
        γ and m.

    Source: Sun et al. 2020, arXiv:2002.10857.
    """
    check_number("gamma", gamma)
    check_number("margin", margin)
    check_flag("remove_diagonal", remove_diagonal)
    return Circle(gamma, margin, remove_diagonal, ref_labels, ref_embeddings)


@loss_function
def ctc(y_true: Any, y_pred: Any) -> Any:
    """−log of the probability that the steps spell the labels, by all ways to spread them with blanks between.

    Inf where there are fewer steps than it takes, with NaN as gradient, as in torch.

    Parameters
    ----------
    y_true : array [batch, most labels]
        Whole numbers in [1, classes), then zeros. (A 0 before another label is refused; Keras miscounts there.)
    y_pred : array [batch, steps, classes]
        Logits; class 0 is the blank.

    Source: Graves et al. 2006, https://www.cs.toronto.edu/~graves/icml_2006.pdf.
    """
    return Sequences()
