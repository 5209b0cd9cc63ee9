"""What a loss function computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..arrays import Array
from ..kernels.losses import engine
from ..parameters import check_flag, check_number
from .arrays import Rows, rows_of

EPSILON = 1e-7
"""Keras's ``backend.epsilon()``."""

ScaleOf = Callable[[Array | None], float]
"""From which rows count (None: all) to what the sum of their values, and every derivative, is multiplied by."""


class Form(NamedTuple):
    """A formula of the kernels, and how a call's arrays reach it.

    What any other form has too: `rows` and `evaluate`.
    """

    formula: Any
    scalars: tuple[float, ...] = ()
    mean: bool = True  # over the row; else the sum
    axis: Any = -1
    several_axes: bool = False  # the axis may be a tuple, or None for all
    smoothing: float = 0.0
    classes: bool = False  # smoothing goes to one of so many classes, not to one of two
    class_weights: tuple[float, ...] | None = None  # factors of the smoothed targets
    binary_labels: bool = False  # targets that are all 0 or 1 become -1 or 1
    ignore_class: int | None = None

    def rows(self, y_true: Any, y_pred: Any) -> Rows:
        """Check targets and predictions, and lay them out; errors as of `rows_of`."""
        rows = rows_of(self, y_true, y_pred)
        if self.class_weights is None:
            return rows
        columns = rows.prediction.shape[1]
        if len(self.class_weights) != columns:
            raise ValueError(f"alpha: expected {columns} numbers, one per class, got {len(self.class_weights)}")
        factor, shift = self._smoothed(columns)
        weights = np.array(self.class_weights, rows.target.dtype)
        return rows._replace(target=(rows.target * rows.target.dtype.type(factor) + shift) * weights)

    def evaluate(
        self, rows: Rows, gradient: Array | None, weights: Array | None, scale_of: ScaleOf
    ) -> tuple[Array, float]:
        """Weighted values of the rows and their scaled total; the scaled gradient, if there is an array for it."""
        scale = scale_of(None if self.ignore_class is None else engine.not_ignored(rows.target))
        mean = self._mean(rows)
        table = self._table(rows, scale * mean)
        values, total = engine.evaluate(self.formula, *rows[:2], gradient, weights, table, mean)
        return values, total * scale

    def _mean(self, rows: Rows) -> float:
        """Return what a row's sum is multiplied by; NaN for the mean of nothing."""
        if not self.mean:
            return 1.0
        columns = rows.prediction.shape[1]
        return 1.0 / columns if columns else float("nan")

    def _table(self, rows: Rows, scale: float) -> Array:
        """The scalars table of the kernels: factor on derivatives, factor and shift of targets, the formula's own."""
        factor, shift = self._smoothed(rows.prediction.shape[1]) if self.class_weights is None else (1.0, 0.0)
        if self.binary_labels and engine.is_binary(rows.target):
            factor, shift = 2.0, -1.0
        return np.array([[scale, factor, shift, *self.scalars]], rows.prediction.dtype)

    def _smoothed(self, columns: int) -> tuple[float, float]:
        """Factor and shift of targets."""
        return 1.0 - self.smoothing, self.smoothing / ((columns or 1) if self.classes else 2)


def check_smoothing(from_logits: Any, label_smoothing: Any) -> None:
    """Refuse what crossentropies cannot take as these arguments."""
    check_flag("from_logits", from_logits)
    check_number("label_smoothing", label_smoothing, 0.0, 1.0)
