"""From values per sample to a scalar: weights, and what their sum is divided by. As in Keras 3.15."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..arrays import Array, numbers
from ..kernels.losses import engine
from .arrays import Rows

REDUCTIONS = ("sum_over_batch_size", "mean", "sum", "mean_with_sample_weight", "none", None)


def check_reduction(reduction: Any) -> None:
    """Refuse what is no reduction."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduction!r}")


def given_weights(sample_weight: Any, rows: Rows) -> Array | None:
    """Weights in the predictions' dtype, in a shape that broadcasts to one weight per value.

    Raises
    ------
    TypeError, ValueError
        If they are no numbers, or do not broadcast.
    """
    if sample_weight is None:
        return None
    weights = numbers("sample_weight", sample_weight).astype(rows.prediction.dtype, copy=False)
    if weights.ndim == len(rows.shape) + 1 and weights.shape[-1] == 1:
        weights = weights[..., 0]
    elif weights.ndim and weights.ndim == len(rows.shape) - 1 and rows.shape[-1] == 1:
        weights = weights[..., None]
    try:
        np.broadcast_to(weights, rows.shape)
    except ValueError:
        raise ValueError(
            f"sample_weight: shape {np.shape(sample_weight)} does not broadcast to one weight per value, {rows.shape}"
        ) from None
    return weights


def weight_per_row(weights: Array, rows: Rows) -> Array:
    """One weight for each row, contiguous."""
    return np.ascontiguousarray(np.broadcast_to(weights, rows.shape)).reshape(-1)


def normaliser(reduction: str | None, weights: Array | None, rows: Rows, mask: Array | None = None) -> float:
    """Return what the sum of the values is multiplied by: 1 over a count or a sum of weights, 0 where that is 0.

    Rows that are not in the mask, where there is one, count for nothing. A single value without a batch axis is never
    divided.
    """
    if reduction in ("sum", "none", None) or not rows.shape:
        return 1.0
    if reduction == "mean_with_sample_weight" and weights is not None:
        divisor = engine.total(weights if mask is None else weight_per_row(weights, rows)[mask])
    elif mask is not None:
        divisor = float(np.count_nonzero(mask))
    else:
        divisor = float(math.prod(rows.shape))
    return 1.0 / divisor if divisor else 0.0
