"""What an activation computes, by its options: the arrays of a call, and the kernels that they are handed to."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Container
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from ..arrays import (
    Array,
    axes_last,
    check_axes,
    check_axis,
    check_output,
    floating,
    is_same,
    overlaps,
    rows_and_columns,
)
from ..kernels.activations import engine


class Elementwise(NamedTuple):
    """A formula of the kernels with its scalars."""

    activation: Any
    scalars: tuple[float, ...] = ()
    reads: str = ""  # if not what the activation says

    def forward(self, x: Any, out: Array | None) -> Array:
        """f(x)"""
        given = floating("x", x)
        result = _result(out, given, "x", {"x": x})
        work = _contiguous(result)
        engine.run_forward(self.activation, work, np.ascontiguousarray(given), self.scalars)
        return _stored(result, work)

    def backward(self, dy: Any, x: Any, y: Any, out: Array | None) -> Array:
        """dy f'(x)"""
        slopes = floating("dy", dy)
        reads = self.reads or self.activation.reads
        given = {name: array for name, array in (("x", x), ("y", y)) if name in reads}
        if reads == "xory":  # either tells on which side of every kink an element is
            given = {"x": x} if x is not None else {"y": y}
        arrays = {name: _like(name, array, slopes) for name, array in given.items()}
        result = _result(out, slopes, "dy", {"dy": dy, **given})
        one = next(iter(arrays.values()))
        work = _contiguous(result)
        dy, x, y = (np.ascontiguousarray(a) for a in (slopes, arrays.get("x", one), arrays.get("y", one)))
        engine.run_backward(self.activation, work, dy, x, y, self.scalars)
        return _stored(result, work)


class AlongAxes(NamedTuple):
    """A formula of whole rows, along one axis or several, for some numbers of axes."""

    activation: engine.RowActivation
    axis: Any = -1  # an int, a tuple of them, None for all
    ndims: Container[int] = range(1, 65)
    refusal: str = "{name} needs at least one axis, got ndim={ndim}"

    def forward(self, x: Any, out: Array | None) -> Array:
        """f(x)"""
        given = floating("x", x)
        axes = self._checked_axes(given)
        result = _result(out, given, "x", {"x": x})
        moved, rows = _rows(result, axes, fresh=True), _rows(given, axes)
        engine.run_rows_forward(self.activation, moved, rows)
        return _unmoved(result, moved, axes)

    def backward(self, dy: Any, x: Any, y: Any, out: Array | None) -> Array:
        """dy f'(x)"""
        slopes = floating("dy", dy)
        axes = self._checked_axes(slopes)
        outputs = _like("y", y, slopes)
        result = _result(out, slopes, "dy", {"dy": dy, "y": y})
        moved = _rows(result, axes, fresh=True)
        engine.run_rows_backward(self.activation, moved, _rows(slopes, axes), _rows(outputs, axes))
        return _unmoved(result, moved, axes)

    def _checked_axes(self, array: Array) -> tuple[int, ...]:
        if array.ndim not in self.ndims:
            raise ValueError(self.refusal.format(name=self.activation.name, ndim=array.ndim))
        return check_axes(self.axis, array.ndim)


class Gate(NamedTuple):
    """One half of an axis times the sigmoid of the other: the result is half as long."""

    axis: Any

    def forward(self, x: Any, out: Array | None) -> Array:
        """a σ(b)"""
        given = floating("x", x)
        axis = self._checked_axis(given)
        shape = _half(given.shape, axis)
        if out is None:
            result = np.empty(shape, given.dtype)
        else:
            check_output(out, shape, given.dtype, "half of x")
            _check_apart(out, {"x": x})
            result = out
        work = _contiguous(result)
        engine.run_gate(_from_axis(work, axis), _from_axis(np.ascontiguousarray(given), axis))
        return _stored(result, work)

    def backward(self, dy: Any, x: Any, y: Any, out: Array | None) -> Array:
        """dy times the derivatives, in the shape of x."""
        slopes = floating("dy", dy)
        if x is None:
            raise ValueError("this derivative needs x")
        given = floating("x", x)
        axis = self._checked_axis(given)
        expected = _half(given.shape, axis)
        if slopes.shape != expected or slopes.dtype != given.dtype:
            raise ValueError(
                f"dy: expected shape {expected} and dtype {given.dtype}, half of x along its axis, "
                f"got {slopes.shape} and {slopes.dtype}"
            )
        if out is not None:
            _check_apart(out, {"dy": dy})
        result = _result(out, given, "x", {"x": x})
        work = _contiguous(result)
        dy, x = (_from_axis(np.ascontiguousarray(array), axis) for array in (slopes, given))
        engine.run_gate_backward(_from_axis(work, axis), dy, x)
        return _stored(result, work)

    def _checked_axis(self, array: Array) -> int:
        axis = check_axis(self.axis, array.ndim)
        if array.shape[axis] % 2:
            raise ValueError(f"x: expected an even number of elements along axis {self.axis}, got shape {array.shape}")
        return axis


def _half(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], shape[axis] // 2, *shape[axis + 1 :])


def _from_axis(array: Array, axis: int) -> Array:
    """A contiguous array as [what is before the axis, the axis and what is after it]."""
    return array.reshape(math.prod(array.shape[:axis]), math.prod(array.shape[axis:]))


def _like(name: str, array: Any, slopes: Array) -> Array:
    if array is None:
        raise ValueError(f"this derivative needs {name}")
    array = floating(name, array)
    if array.shape != slopes.shape or array.dtype != slopes.dtype:
        raise ValueError(
            f"{name}: expected shape {slopes.shape} and dtype {slopes.dtype} like dy, "
            f"got {array.shape} and {array.dtype}"
        )
    return array


def _result(out: Any, like: Array, name: str, inputs: dict[str, Any]) -> Array:
    """The array to be returned: ``out`` if it fits, else a new one."""
    if out is None:
        return np.empty(like.shape, like.dtype)
    check_output(out, like.shape, like.dtype, name)
    for other, array in inputs.items():
        if isinstance(array, np.ndarray) and overlaps(out, array) and not is_same(out, array):
            raise ValueError(f"out overlaps {other} in part: pass {other} itself or another array")
    return out


def _check_apart(out: Any, inputs: dict[str, Any]) -> None:
    for name, array in inputs.items():
        if isinstance(array, np.ndarray) and overlaps(out, array):
            raise ValueError(f"out overlaps {name}: pass another array")


def _contiguous(result: Array) -> Array:
    """The result itself if kernels can write it, else room for it."""
    return result if result.flags.c_contiguous else np.empty(result.shape, result.dtype)


def _stored(result: Array, work: Array) -> Array:
    if work is not result:
        result[...] = work
    return result


def _rows(array: Array, axes: tuple[int, ...], fresh: bool = False) -> Array:
    """The array as contiguous [rows, columns] with ``axes`` last: a view where it lies so, else a copy or new room."""
    moved = axes_last(array, axes)
    shape = rows_and_columns(moved, len(axes))
    if fresh and not moved.flags.c_contiguous:
        return np.empty(shape, array.dtype)
    return np.ascontiguousarray(moved).reshape(shape)


def _unmoved(result: Array, rows: Array, axes: tuple[int, ...]) -> Array:
    moved = axes_last(result, axes)
    if not moved.flags.c_contiguous:
        moved[...] = rows.reshape(moved.shape)
    return result


class ActivationFunction(Protocol):
    """An activation: its ``form`` takes the options alone."""

    __name__: str
    form: Callable[..., Elementwise | AlongAxes | Gate]

    def __call__(self, x: Any, *args: Any, out: Array | None = None, **options: Any) -> Array:
        """f(x)"""


def activation(describe: Callable[..., Any]) -> ActivationFunction:
    """Decorator: a function whose body returns the form for its options becomes one that computes it."""
    signature = inspect.signature(describe)
    out = inspect.Parameter("out", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="Array | None")

    @functools.wraps(describe)
    def function(x: Any, *args: Any, out: Array | None = None, **options: Any) -> Array:
        return describe(x, *args, **options).forward(x, out)

    result = cast("ActivationFunction", function)
    result.form = functools.partial(describe, None)
    result.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), out]
    )
    return result
