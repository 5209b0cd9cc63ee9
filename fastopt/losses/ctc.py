"""What connectionist temporal classification computes: labels in order, on steps that are not said."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..arrays import Array, floating, numbers
from ..kernels.losses import engine
from .arrays import Rows, check_labels, whole_numbers
from .form import ScaleOf


class Sequences(NamedTuple):
    """The loss as a form: see `form.Form`. It has no options."""

    def rows(self, y_true: Any, y_pred: Any) -> Rows:
        """Check labels and logits; one row of the result is a sequence, one of the predictions a step.

        Raises
        ------
        TypeError, ValueError
            If dtypes or shapes do not fit, or labels are no classes.
        """
        logits, labels = floating("y_pred", y_pred), numbers("y_true", y_true)
        if logits.ndim != 3 or not logits.shape[1] or not logits.shape[2]:
            raise ValueError(f"y_pred: expected logits of shape (batch, steps, classes), got {logits.shape}")
        if labels.ndim != 2 or len(labels) != len(logits):
            raise ValueError(f"y_true: expected labels of shape ({len(logits)}, most labels), got {labels.shape}")
        batch, steps, classes = logits.shape
        whole = np.ascontiguousarray(whole_numbers("y_true", labels))
        check_labels(whole, 0, classes)
        if np.any((whole[:, :-1] == 0) & (whole[:, 1:] != 0)):
            raise ValueError("y_true: 0 is the blank, and fills rows up: it must not come before another label")
        flat = np.ascontiguousarray(logits).reshape(batch * steps, classes)
        return Rows(whole, flat, (batch,), (2,), logits.shape)

    def evaluate(
        self, rows: Rows, gradient: Array | None, weights: Array | None, scale_of: ScaleOf
    ) -> tuple[Array, float]:
        """Weighted values of the sequences and their scaled total; the scaled gradient, if there is an array for it."""
        scale = scale_of(None)
        values, total = engine.evaluate_sequences(rows.target, rows.prediction, gradient, weights, scale)
        return values, total * scale
