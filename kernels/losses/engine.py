"""How a loss is computed: which loop runs with which formulas, and how a call's arrays are handed to it."""

from types import FunctionType
from typing import Any, NamedTuple

import numpy as np

from ..compile._jit import inlined_callee
from ..cpu import launch, rowwise
from ..cpu.rowwise import BLOCK, GRADIENT, WEIGHTED, Nothing
from . import circles, crossentropies, loops, sequences
from .elementwise import Epsilon, Exponent
from .loops import IGNORED, Arrays


class Formula(NamedTuple):
    """A loop, and what its globals stand for."""

    loop: Any
    scalars: type = Nothing
    functions: tuple[tuple[str, Any], ...] = ()
    takes_labels: bool = False

    def kernel(self, dtype):
        """Compiled for a dtype."""
        return rowwise.kernel(self.loop, dtype, self.scalars, **dict(self.functions))


def elementwise(function, scalars=Nothing):
    """The formula of a function ``(target, prediction, s) -> (value, derivative)``, a `callee`."""
    return Formula(loops.elements, scalars, (("FORMULA", function),))


_FOLDS = {"sum": loops.sum_anchor, "maximum": loops.maximum_anchor, "none": loops.no_anchor}


def by_rows(loss, scalars=Nothing, loop=loops.whole_rows):
    """The formula of a `RowLoss`."""
    functions = {
        "FORMULA": loss.terms,
        "BETWEEN": loss.between,
        "DERIVATIVE": loss.derivative,
        "ANCHOR": loss.anchor or loss.terms,  # which no fold calls where there is none
        "FOLD": _FOLDS[loss.fold],
    }
    return Formula(loop, scalars, tuple(functions.items()))


def by_rows_of_logits(loss, scalars=Nothing):
    """The formula of a `RowLoss` of e^p, one that is the same for multiples of it, as of all that divide by a sum."""
    return by_rows(loss, scalars, loops.whole_rows_of_logits)


cosine_similarity = Formula(loops.cosine_similarity, Epsilon)
softmax_of_targets = Formula(crossentropies.softmax_of_targets)
softmax_of_labels = Formula(crossentropies.softmax_of_labels, takes_labels=True)
probability_of_labels = Formula(crossentropies.probability_of_labels, Epsilon, takes_labels=True)
generalized_of_labels = Formula(crossentropies.generalized_of_labels, Exponent, takes_labels=True)


def evaluate(formula, target, prediction, gradient, weights, table, mean):
    """Value of each row and their total; the gradient on the way, if there is an array for it.

    Parameters
    ----------
    target : array [rows, columns], or int64 array [rows] of labels
        Labels are below ``columns``, or `IGNORED`.
    prediction : array [rows, columns]
        C-contiguous as all others, of the compute dtype.
    gradient : array [rows, columns] or None
        Written; may be ``prediction``, and overlaps nothing else.
    weights : array [rows] or None
        Factor on values and derivatives.
    table : array [1, columns of the scalars table]
        See loops.py.
    mean : float
        Factor on each row's sum; the derivatives have it in their scale.

    Returns
    -------
    values : array [rows]
    total : float
    """
    dtype = prediction.dtype
    rows, columns = prediction.shape
    pieces = max(1, -(-columns // BLOCK)) if formula.loop is loops.elements else 1
    nothing = np.empty((rows, 0), dtype)
    arrays = Arrays(
        target,
        prediction,
        nothing if gradient is None else gradient,
        nothing.ravel() if weights is None else weights,
        table,
        np.zeros((rows, pieces)),
        np.empty(rows, dtype),
    )
    spans = rows * pieces
    count = -(-spans // max(1, BLOCK // columns)) if formula.loop is loops.elements and columns else spans
    work = rowwise.Work(arrays, rows * columns, count)
    return _run(formula.kernel(dtype), work, arrays, gradient, weights, mean)


def _run(kernel, work, arrays, gradient, weights, mean):
    options = GRADIENT * (gradient is not None) | WEIGHTED * (weights is not None)
    rowwise.run(kernel, work, options)
    finish = launch.serial_function(loops.finish, 2, None, 0, arrays.values.dtype)
    return arrays.values, finish(work.handle, mean, float(weights is not None))


def evaluate_sequences(labels, logits, gradient, weights, scale):
    """Connectionist temporal classification: value of each sequence and their total; the gradient if there is an array.

    Parameters
    ----------
    labels : int64 array [sequences, most labels]
        In [1, classes), then zeros.
    logits : array [sequences · steps, classes]
        At least one step; ``gradient`` and ``weights`` (one per sequence) as of `evaluate`.
    scale : float
        Factor on the derivatives.

    Returns
    -------
    values : array [sequences]
    total : float
    """
    dtype, count = logits.dtype, len(labels)
    nothing = np.empty((0, 0), dtype)
    arrays = Arrays(
        labels,
        logits,
        nothing if gradient is None else gradient,
        nothing.ravel() if weights is None else weights,
        np.array([[scale]], dtype),
        np.zeros((count, 1)),
        np.empty(count, dtype),
    )
    kernel = rowwise.kernel(sequences.ctc, dtype, Nothing)
    return _run(kernel, rowwise.Work(arrays, logits.size, count), arrays, gradient, weights, 1.0)


def evaluate_pairs(labels, references, similarities, scalars, remove_diagonal, with_gradient):
    """Circle loss: value of each row; its derivative by the similarities takes their place, if ``with_gradient``.

    Parameters
    ----------
    labels, references : int64 arrays [rows], [columns]
    similarities : array [rows, columns]
    scalars : tuple
        The fields of `circles.Scalars`.

    Returns
    -------
    values : array [rows]
    """
    dtype = similarities.dtype
    values = np.zeros(len(labels), dtype)
    arrays = (labels, references, similarities, np.array([scalars], dtype), values)
    options = GRADIENT * with_gradient | circles.ALL_PAIRS * (not remove_diagonal)
    kernel = rowwise.kernel(circles.circle, dtype, circles.Scalars)
    rowwise.run(kernel, rowwise.Work(arrays, similarities.size, len(labels)), options)
    return values


def weigh(values, gradient, weights, scale):
    """Weigh values and gradient that a user's functions gave; the gradient, and its scale, in place.

    Parameters
    ----------
    values : array
        Of any shape.
    gradient : array [*values.shape, ...]
    weights : array [rows] or None
        One per value.
    scale : float
        On the gradient, and on the total.

    Returns
    -------
    values : array
    total : float
    """
    if weights is not None:
        weights = weights.reshape(values.shape)
        values = values * weights
        gradient *= weights.reshape(values.shape + (1,) * (gradient.ndim - values.ndim))
    gradient *= gradient.dtype.type(scale)
    return values, total(values) * scale


def total(array):
    """Sum in float64."""
    return float(np.sum(array, dtype=np.float64))


def is_binary(target):
    """Whether every element is 0 or 1."""
    return bool(np.all((target == 0) | (target == 1)))


def not_ignored(labels):
    """Which labels count."""
    return labels != IGNORED


VALUE: Any = None
DERIVATIVE: Any = None


def _both(target, prediction, s):
    return VALUE(target, prediction, s), DERIVATIVE(target, prediction, s)


def from_formulas(value, derivative, scalars):
    """The formula of two users' functions ``(target, prediction, s)``: an element's loss, and its derivative."""
    # A clone with globals of its own: kernels over closures cannot be kept on disk.
    parts = {"VALUE": inlined_callee(value), "DERIVATIVE": inlined_callee(derivative)}
    both = FunctionType(_both.__code__, {"__name__": __name__, **parts}, value.__name__)
    # The parts are named so that the key in the cache covers them; the loop itself does not see them.
    return Formula(loops.elements, scalars, (("FORMULA", inlined_callee(both)), *parts.items()))
