"""Arrays beyond what 32 bits count."""

import math

import numpy as np
import pytest
from on_gpu import assert_same_bits, host, require, torch

import fastopt

require()

SIZE = 2**31 + 5
SLICE = 2**28

pytestmark = pytest.mark.xdist_group("large")  # one at a time: 17 GB each


def zeros_and_ones():
    """Two arrays of `SIZE` float32 numbers."""
    free, needed = torch.cuda.mem_get_info()[0], 3 * 4 * SIZE
    if free < needed:
        pytest.skip(f"needs {needed / 1e9:.0f} GB of GPU memory, {free / 1e9:.0f} GB are free")
    return torch.zeros(SIZE, device="cuda"), torch.ones(SIZE, device="cuda")


def test_more_elements_than_32_bits_count():
    param, grad = zeros_and_ones()
    grad[-5:] = torch.tensor([2.0, 3.0, 4.0, 5.0, 6.0])
    optimizer = fastopt.SGD(0.5, nonfinite="skip")
    optimizer.build([param])
    optimizer.apply([grad])
    assert_same_bits([param[-5:]], [np.array([-1.0, -1.5, -2.0, -2.5, -3.0], np.float32)])
    assert all(bool((part == -0.5).all()) for part in param[:-5].split(SLICE))


def test_norms_over_more_elements_than_32_bits_count():
    param, grad = zeros_and_ones()
    optimizer = fastopt.SGD(1.0, global_clipnorm=0.5 * math.sqrt(SIZE))
    optimizer.build([param])
    optimizer.apply([grad])
    assert optimizer.last_grad_norm == math.sqrt(SIZE)
    assert host(param[-1]) == -0.5
    assert all(bool((part == -0.5).all()) for part in param.split(SLICE))
