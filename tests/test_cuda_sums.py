"""Sums of teams of threads: the bits of the CPU's."""

import functools

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda has no package for this platform")

from fastopt.kernels.compile.intrinsics import array_at
from fastopt.kernels.cpu import reduction
from fastopt.kernels.cpu.reduction import LANES
from fastopt.kernels.cuda._cuda_jit import cuda_ptx
from fastopt.kernels.cuda.sums import row_sum
from numba import cuda
from ptx.kernel import Kernel
from ptx.memory import Memory

SIZES = (0, 1, 127, 128, 129, 511, 512, 513, 2048, 2049, 2560, 4500, 6000)
TEAM = 32


def sum_for_each(values, size, found):
    """The sum of a row, as each thread of a block knows it."""
    lanes = cuda.shared.array(LANES, np.float64)
    thread = cuda.threadIdx.x
    array_at(found, 0, TEAM, np.float64)[thread] = row_sum(array_at(values, 0, size, np.float64), lanes, thread, TEAM)


@functools.cache
def kernel_for(team):
    return Kernel(cuda_ptx(sum_for_each, f"of_{team}", 3, {"TEAM": team}, (9, 0)))


@pytest.mark.parametrize("team", [32, 64])
@pytest.mark.parametrize("size", SIZES)
def test_sum_of_a_row(size, team):
    values, found = np.random.default_rng(size).normal(size=size) * 1e8, np.zeros(team)
    memory = Memory()
    for array in (values, found):
        memory.add(array.ctypes.data, array.nbytes)
    arguments = values.ctypes.data, size, found.ctypes.data
    kernel_for(team).launch(1, team, arguments, memory, order=2, races=True)
    assert np.array_equal(found, np.full(team, reduction.row_sum(values)))
