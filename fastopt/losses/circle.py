"""What the circle loss computes: all pairs of a batch, or of a batch and references."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..arrays import Array, floating, numbers
from ..kernels.losses import engine
from .arrays import Rows, whole_numbers
from .form import ScaleOf


class Circle(NamedTuple):
    """The options of the loss, as a form: see `form.Form`."""

    gamma: float
    margin: float
    remove_diagonal: bool
    ref_labels: Any = None
    ref_embeddings: Any = None

    def rows(self, y_true: Any, y_pred: Any) -> CircleRows:
        """Check labels, embeddings and references.

        Raises
        ------
        TypeError, ValueError
            If dtypes or shapes do not fit.
        """
        embeddings = _matrix("y_pred", y_pred)
        labels = _labels("y_true", y_true, len(embeddings))
        if self.ref_embeddings is None:
            references = None
        else:
            references = _matrix("ref_embeddings", self.ref_embeddings).astype(embeddings.dtype, copy=False)
            if references.shape[1] != embeddings.shape[1]:
                raise ValueError(
                    f"ref_embeddings: expected {embeddings.shape[1]} columns like y_pred, got {references.shape[1]}"
                )
        count = len(embeddings) if references is None else len(references)
        if self.ref_labels is not None:
            of_references = _labels("ref_labels", self.ref_labels, count)
        elif count == len(labels):
            of_references = labels
        else:
            raise ValueError(f"ref_labels: expected one label for each of {count} ref_embeddings, got None")
        return CircleRows(labels, embeddings, (len(labels),), (1,), embeddings.shape, of_references, references)

    def evaluate(
        self, rows: CircleRows, gradient: Array | None, weights: Array | None, scale_of: ScaleOf
    ) -> tuple[Array, float]:
        """Weighted values of the rows and their scaled total; the scaled gradient, if there is an array for it."""
        embeddings = rows.prediction
        references = embeddings if rows.references is None else rows.references
        with np.errstate(all="ignore"):  # infinite embeddings: the values say so
            pairs = embeddings @ references.T
            values = engine.evaluate_pairs(
                rows.target, rows.labels, pairs, (self.gamma, self.margin), self.remove_diagonal, gradient is not None
            )
            scale = scale_of(values > 0)
            factors = np.full_like(values, scale) if weights is None else weights * values.dtype.type(scale)
            weighted = values if weights is None else values * weights
            if gradient is not None:
                pairs *= factors[:, None]
                slopes = pairs @ references
                if rows.references is None:
                    slopes += pairs.T @ embeddings
                gradient[...] = slopes
        return weighted, engine.total(weighted) * scale


class CircleRows(NamedTuple):
    """`Rows`, and what they are compared with."""

    target: Array
    prediction: Array
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    reshaped: tuple[int, ...]
    labels: Array  # int64, of the references
    references: Array | None  # None: the predictions themselves

    def laid_out(self, array: Array) -> Array:
        """Lay out as `Rows` does."""
        return Rows(*self[:5]).laid_out(array)


def _matrix(name: str, value: Any) -> Array:
    array = floating(name, value)
    if array.ndim != 2:
        raise ValueError(f"{name}: expected embeddings of shape (samples, dimensions), got {array.shape}")
    return np.ascontiguousarray(array)


def _labels(name: str, value: Any, count: int) -> Array:
    labels = numbers(name, value)
    if labels.shape not in ((count,), (count, 1)):
        raise ValueError(f"{name}: expected one label for each of {count} embeddings, got shape {labels.shape}")
    return whole_numbers(name, labels).reshape(-1)
