"""Sums of teams of threads: the bits of the CPU's."""

import numpy as np
import pytest
from fastopt.kernels.cpu import reduction
from numba import cuda  # where the simulator looks for it

pytestmark = pytest.mark.cuda_simulator
SIZES = (0, 1, 127, 128, 129, 511, 512, 513, 2048, 2049, 2560, 4500, 6000)


@pytest.mark.parametrize("team", [32, 64])
@pytest.mark.parametrize("size", SIZES)
def test_sum_of_a_row(size, team):
    from fastopt.kernels.cuda import sums
    from fastopt.kernels.cuda._cuda_jit import simulated
    from fastopt.kernels.cuda.simulated_threads import launch

    values = np.random.default_rng(size).normal(size=size) * 1e8
    found = np.zeros(team)

    def kernel(number):
        lanes = cuda.shared.array(reduction.LANES, np.float64)
        thread = cuda.threadIdx.x
        found[thread] = sums.row_sum(values[:number], lanes, thread, team)

    launch(simulated(kernel), 1, team, size)
    expected = reduction.row_sum(values)
    assert np.array_equal(found, np.full(team, expected))
