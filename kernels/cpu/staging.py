"""The gradient of a chunk: read where it lies if that is possible, else brought into a scratch array first."""

import functools

import numpy as np
from numba import types

from ..compile._jit import c_address, callee, inlined_callee, specialise
from ..compile.intrinsics import array_at, call_for_number, strided_at
from ..formats.half import float_of_bfloat16, float_of_float16
from ..layout import (
    ACCUMULATED,
    ACCUMULATOR,
    ADDRESS,
    BFLOAT16,
    CHUNK,
    DIRECT,
    FLOAT32,
    FLOAT64,
    GATHER,
    LAYOUT,
    STAGED,
)


@callee
def scratch_for(options, dtype):
    """A scratch array for `chunk_gradient`, empty where this launch needs none."""
    return np.empty(CHUNK if options & (STAGED | ACCUMULATED) else 0, dtype)


@inlined_callee
def chunk_gradient(t, segment, offset, length, control, options, scratch, dtype):
    """The gradient of one chunk, and the factor that is still to be applied to each of its elements.

    Requires ``scratch`` from `scratch_for`. With earlier gradients in the accumulator the result is the mean over all.
    """
    address = t.gradients[ADDRESS, segment]
    record = t.gradients[LAYOUT, segment]
    if record == DIRECT:
        grad = array_at(address, offset, length, dtype)
    else:
        grad = scratch[:length]
        place = t.layouts.ctypes.data + 8 * record
        call_for_number(t.layouts[GATHER], (address, place, offset, grad.ctypes.data, length, grad.itemsize))
    if options & ACCUMULATED == 0:
        return grad, control.unscale
    mean = scratch[:length]
    accumulator = array_at(t.addresses[ACCUMULATOR, segment], offset, length, dtype)
    for i in range(mean.size):
        mean[i] = (grad[i] * control.unscale + accumulator[i]) / control.divisor
    return mean, dtype(1)


def gather(source, record, offset, target, size, width):
    """Fill memory from a gradient of any strides and dtype, starting at element ``offset`` of the parameter.

    Requires addresses of gradient, its record and the memory: ``size`` numbers of ``width`` bytes.
    """
    head = array_at(record, 0, 2, np.int64)
    kind, axes = head[0], head[1]
    extents, strides = array_at(record, 2, axes, np.int64), array_at(record, 2 + axes, axes, np.int64)
    inner = extents[axes - 1]
    done = 0
    while done < size:
        outer, column = divmod(offset + done, inner)
        where = source + column * strides[axes - 1]
        for axis in range(axes - 2, -1, -1):
            where += outer % extents[axis] * strides[axis]
            outer //= extents[axis]
        run = min(inner - column, size - done)
        if width == 4:
            _copy_any(kind, where, strides[axes - 1], target, done, run, np.float32)
        else:
            _copy_any(kind, where, strides[axes - 1], target, done, run, np.float64)
        done += run
    return size


@callee
def _copy_any(kind, source, stride, target, done, run, dtype):
    """Copy a run of numbers of a kind."""
    if kind == FLOAT32:
        _copy(source, stride, np.float32, target, done, run, dtype, _itself)
    elif kind == FLOAT64:
        _copy(source, stride, np.float64, target, done, run, dtype, _itself)
    elif kind == BFLOAT16:
        _copy(source, stride, np.uint16, target, done, run, dtype, float_of_bfloat16)
    else:
        _copy(source, stride, np.uint16, target, done, run, dtype, float_of_float16)


@callee
def _itself(number):
    return number


@callee
def _copy(source, stride, kind, target, done, run, dtype, number_of):
    taken, dense = array_at(target, done, run, dtype), array_at(source, 0, run, kind)
    if stride == dense.itemsize:
        for i in range(run):
            taken[i] = number_of(dense[i])
    else:
        spread = strided_at(source, run, stride, kind)
        for i in range(run):
            taken[i] = number_of(spread[i])


@functools.cache
def gather_address():
    """Return the address of `gather`, compiled when a gradient first needs it: most never do, and it is long."""
    number = types.int64
    signature = number(*[number] * 6)
    return c_address(specialise(gather, "strided", signature, {}, key="staging"))
