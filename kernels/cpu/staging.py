"""The gradient of a chunk: read where it lies if that is possible, else brought into a scratch array first."""

import numpy as np

from ..compile._jit import callee, inlined_callee
from ..compile.intrinsics import array_at, strided_at
from ..layout import ACCUMULATED, ACCUMULATOR, ADDRESS, CHUNK, DIRECT, FLOAT32, LAYOUT, STAGED


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
        gather(address, t.layouts, record, offset, grad)
    if options & ACCUMULATED == 0:
        return grad, control.unscale
    mean = scratch[:length]
    accumulator = array_at(t.addresses[ACCUMULATOR, segment], offset, length, dtype)
    for i in range(mean.size):
        mean[i] = (grad[i] * control.unscale + accumulator[i]) / control.divisor
    return mean, dtype(1)


@callee
def gather(address, layouts, record, offset, target):
    """Fill ``target`` from a gradient of any strides and dtype, starting at element ``offset`` of the parameter."""
    kind = layouts[record]
    axes = layouts[record + 1]
    extents = layouts[record + 2 : record + 2 + axes]
    strides = layouts[record + 2 + axes : record + 2 + 2 * axes]
    inner = extents[axes - 1]
    done = 0
    while done < target.size:
        outer, column = divmod(offset + done, inner)
        where = address + column * strides[axes - 1]
        for axis in range(axes - 2, -1, -1):
            where += outer % extents[axis] * strides[axis]
            outer //= extents[axis]
        run = min(inner - column, target.size - done)
        _copy(where, strides[axes - 1], kind, target[done : done + run])
        done += run


@callee
def _copy(address, stride, kind, target):
    if kind == FLOAT32:
        _copy_from(address, stride, target, np.float32, 4)
    else:
        _copy_from(address, stride, target, np.float64, 8)


@callee
def _copy_from(address, stride, target, dtype, width):
    if stride == width:
        source = array_at(address, 0, target.size, dtype)
        for i in range(target.size):
            target[i] = source[i]
    else:
        spread = strided_at(address, target.size, stride, dtype)
        for i in range(target.size):
            target[i] = spread[i]
