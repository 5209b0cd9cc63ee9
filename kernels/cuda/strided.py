"""Copies between arrays whose elements lie in different orders."""

import functools
from itertools import product

import numpy as np
from numba import cuda

from ..compile.tuples import numbers_at, put_numbers
from ._cuda_jit import cuda_program
from .lanes import one

AXES = 4
"""Axes that one launch goes through, at most: neighbours that lie side by side in both arrays count as one."""

THREADS = 256

DTYPE = np.uint32


def copy(target, source, size, n0, n1, n2, n3, t0, t1, t2, t3, s0, s1, s2, s3):
    """Copy ``size`` elements; extents of the axes, then strides in bytes of both arrays, slowest first."""
    like = one(DTYPE)
    for i in range(cuda.grid(1), size, cuda.gridsize(1)):
        i3, rest = i % n3, i // n3
        i2, rest = rest % n2, rest // n2
        i1, i0 = rest % n1, rest // n1
        numbers = numbers_at(source + i0 * s0 + i1 * s1 + i2 * s2 + i3 * s3, like)
        put_numbers(target + i0 * t0 + i1 * t1 + i2 * t2 + i3 * t3, numbers)


def copy_strided(device, target, source, stream):
    """Copy an array to another of the same shape and dtype on one GPU, asynchronously.

    Parameters
    ----------
    device : Device
    target, source : arrays
        With ``address``, ``shape``, ``strides`` in bytes, and ``itemsize`` of 2, 4 or 8.
    stream : int
    """
    axes = _merged(target.shape, target.strides, source.strides)
    kernel = _kernel(device, target.itemsize)
    axes = [(1, 0, 0)] * (AXES - len(axes)) + axes
    outer, inner = axes[:-AXES], axes[-AXES:]
    extents, to, of = zip(*inner, strict=True)
    size = int(np.prod(extents))
    with device.current():
        for index in product(*(range(extent) for extent, _, _ in outer)):
            put = sum(k * step for k, (_, step, _) in zip(index, outer, strict=True))
            get = sum(k * step for k, (_, _, step) in zip(index, outer, strict=True))
            numbers = (target.address + put, source.address + get, size, *extents, *to, *of)
            kernel.launch(kernel.blocks(-(-size // THREADS), THREADS), THREADS, stream, *numbers)


def _merged(shape, *strides):
    """(extent, stride, stride) of each axis, slowest first; axes of one element left out, neighbours joined."""
    merged: list[tuple[int, ...]] = []
    for extent, *steps in zip(shape, *strides, strict=True):
        if extent == 1:
            continue
        if merged and all(before == step * extent for before, step in zip(merged[-1][1:], steps, strict=True)):
            merged[-1] = (merged[-1][0] * extent, *steps)
        else:
            merged.append((extent, *steps))
    return merged


@functools.cache
def _kernel(device, width):
    dtype = {2: np.uint16, 4: np.uint32, 8: np.uint64}[width]
    return device.load(cuda_program(copy, f"{8 * width}", 15, {"DTYPE": dtype}, device.capability, "no rule"))
