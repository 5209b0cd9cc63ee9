"""The arrays of a call: what is accepted, and how they are laid out for the kernels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..arrays import (
    Array,
    axes_last,
    check_axes,
    check_axis,
    check_output,
    floating,
    is_same,
    numbers,
    overlaps,
    rows_and_columns,
)
from ..kernels.losses.loops import IGNORED


class Rows(NamedTuple):
    """Targets and predictions as rows of samples: what a kernel reads, and the shape of what it gives."""

    target: Array  # [rows, columns], or int64 [rows] of labels
    prediction: Array  # [rows, columns]
    shape: tuple[int, ...]  # of the values, one per row
    axes: tuple[int, ...]  # of the predictions, from 0
    reshaped: tuple[int, ...]  # the predictions', before their axes were moved last

    def laid_out(self, array: Array) -> Array:
        """A view of an array that is shaped as the predictions were given, with their axes last."""
        return axes_last(array.reshape(self.reshaped), self.axes)


def in_dtype(y_pred: Any, dtype: str | None) -> Any:
    """Predictions in another dtype, if one is asked for."""
    return y_pred if dtype is None else numbers("y_pred", y_pred).astype(dtype, copy=False)


def rows_of(form: Any, y_true: Any, y_pred: Any) -> Rows:
    """Check targets and predictions, and lay them out.

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes, axis or labels do not fit.
    """
    prediction = floating("y_pred", y_pred)
    if prediction.ndim == 0:
        raise ValueError("y_pred: expected at least one axis, got a number")
    target = numbers("y_true", y_true)
    if form.formula.takes_labels:
        axis = check_axis(form.axis, prediction.ndim)
        labels = _labels(target, prediction.shape, axis, form.ignore_class)
        moved = np.moveaxis(prediction, axis, -1)
        return Rows(labels, _two_axes(moved, 1), moved.shape[:-1], (axis,), prediction.shape)
    target, prediction = _same_rank(target, prediction)
    if target.shape != prediction.shape:
        raise ValueError(f"y_true and y_pred must have the same shape, got {target.shape} and {prediction.shape}")
    axes = check_axes(form.axis, prediction.ndim) if form.several_axes else (check_axis(form.axis, prediction.ndim),)
    moved, count = axes_last(prediction, axes), len(axes)
    targets = _two_axes(axes_last(target, axes).astype(prediction.dtype, copy=False), count)
    return Rows(targets, _two_axes(moved, count), moved.shape[: moved.ndim - count], axes, prediction.shape)


def _same_rank(target: Array, prediction: Array) -> tuple[Array, Array]:
    """Keras's rule: where ranks differ by one and the last axis has one element, it goes; vectors gain one instead."""
    if target.ndim == prediction.ndim + 1 and target.shape[-1] == 1:
        return (target, prediction[:, None]) if prediction.ndim == 1 else (target[..., 0], prediction)
    if prediction.ndim == target.ndim + 1 and prediction.shape[-1] == 1 and target.ndim:
        return (target[:, None], prediction) if target.ndim == 1 else (target, prediction[..., 0])
    return target, prediction


def _two_axes(moved: Array, columns: int) -> Array:
    return np.ascontiguousarray(moved).reshape(rows_and_columns(moved, columns))


def _labels(labels: Array, shape: tuple[int, ...], axis: int, ignore_class: Any) -> Array:
    """Labels as int64 [rows], `IGNORED` where they are ``ignore_class``."""
    if labels.ndim == len(shape) and labels.shape[axis] == 1:
        labels = labels.squeeze(axis)
    expected = shape[:axis] + shape[axis + 1 :]
    if labels.shape != expected:
        raise ValueError(
            f"y_true: expected one label per sample, shape {expected} (or with one element along axis {axis}), "
            f"got {labels.shape} for y_pred of shape {shape}"
        )
    whole = whole_numbers("y_true", labels)
    if labels.dtype.kind == "u":  # what is too large has become negative
        wrapped = labels[whole < 0]
        if wrapped.size:
            raise ValueError(f"y_true: labels must be in [0, {shape[axis]}), got {int(wrapped[0])}")
    if ignore_class is not None:
        if isinstance(ignore_class, bool) or not isinstance(ignore_class, (int, np.integer)):
            raise TypeError(f"ignore_class must be an int or None, got {ignore_class!r}")
        ignored = whole == ignore_class
        check_labels(whole[~ignored], 0, shape[axis])
        whole[ignored] = IGNORED
    else:
        check_labels(whole, 0, shape[axis])
    return whole.reshape(-1)


def whole_numbers(name: str, labels: Array) -> Array:
    """Labels of any dtype as int64."""
    with np.errstate(invalid="ignore"):  # NaN and infinity: reported below
        whole = labels.astype(np.int64)
    if labels.dtype.kind == "f" and not np.array_equal(whole, labels):
        raise ValueError(f"{name}: labels must be whole numbers")
    return whole


def check_labels(labels: Array, first: int, classes: int) -> None:
    """Refuse labels that are not in [first, classes)."""
    outside = labels[(labels < first) | (labels >= classes)]
    if outside.size:
        raise ValueError(f"y_true: labels must be in [{first}, {classes}), got {int(outside[0])}")


def gradient_target(out: Any, rows: Rows, y_true: Any, y_pred: Any, sample_weight: Any) -> tuple[Array, Array]:
    """Choose where the gradient goes: the array that is returned, and the rows that the kernel writes.

    Raises
    ------
    TypeError, ValueError
        If ``out`` is not like the predictions, is read-only, or overlaps what is read, other than as ``y_pred`` itself.
    """
    dtype, shape = rows.prediction.dtype, np.shape(y_pred)
    if out is None:
        result = np.empty(shape, dtype)
    else:
        check_output(out, shape, dtype, "y_pred")
        check_overlap(out, y_true, y_pred, sample_weight)
        result = out
    return result, _writable_rows(result, rows)


def check_overlap(out: Array, y_true: Any, y_pred: Any, sample_weight: Any) -> None:
    """Refuse an output that overlaps what is read, other than as ``y_pred`` itself."""
    for name, array in (("y_true", y_true), ("sample_weight", sample_weight)):
        if isinstance(array, np.ndarray) and overlaps(out, array):
            raise ValueError(f"out overlaps {name}: pass another array")
    if isinstance(y_pred, np.ndarray) and overlaps(out, y_pred) and not is_same(out, y_pred):
        raise ValueError("out overlaps y_pred in part: pass y_pred itself or another array")


def _writable_rows(result: Array, rows: Rows) -> Array:
    """The result itself as rows where it lies so, else new ones to be copied into it."""
    last = tuple(range(len(rows.reshaped) - len(rows.axes), len(rows.reshaped)))
    if result.flags.c_contiguous and rows.axes == last:
        return result.reshape(rows.prediction.shape)
    return np.empty(rows.prediction.shape, rows.prediction.dtype)
