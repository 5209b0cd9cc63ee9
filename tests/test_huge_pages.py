"""Large state lies in memory for which huge pages were asked."""

import mmap
import re
from pathlib import Path

import numpy as np
import pytest
from optional_torch import torch

import fastopt
from fastopt.device.pages import LARGE, prefer_huge_pages

SMAPS = Path("/proc/self/smaps")
pytestmark = pytest.mark.skipif(
    not (SMAPS.exists() and Path("/sys/kernel/mm/transparent_hugepage").exists()), reason="this system has none"
)
ELEMENTS = LARGE // 4 + 100_000


def advised(address):
    """Whether huge pages were asked for the memory at an address."""
    inside = False
    for line in SMAPS.read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return "hg" in line.split()
    raise AssertionError(f"no memory at {address:#x}")


def middle(array):
    return array.ctypes.data + array.nbytes // 2


def test_flat_buffers_and_slots_of_numpy():
    """NumPy asks for them."""
    buffer = fastopt.pack([np.ones(ELEMENTS, np.float32)])
    optimizer = fastopt.Adam()
    optimizer.build(buffer)
    assert advised(middle(buffer.flat))
    for arrays in optimizer.slots.values():
        assert advised(middle(arrays[0]))


@pytest.mark.parametrize("flat", [False, True])
def test_state_and_flat_buffers_of_torch(flat):
    param = torch.nn.Parameter(torch.ones(ELEMENTS))
    param.grad = torch.ones(ELEMENTS)
    import fastopt.torch

    optimizer = fastopt.torch.AdamW([param], flat=flat)
    optimizer.step()
    for name in ("exp_avg", "exp_avg_sq"):
        assert advised(middle(optimizer.state[param][name].numpy())), name
    assert advised(middle(param.detach().numpy())) or not flat


def test_small_memory_is_left_alone():
    memory = mmap.mmap(-1, LARGE)
    address = np.frombuffer(memory, np.uint8).ctypes.data
    prefer_huge_pages(address, LARGE - 1)
    assert not advised(address + LARGE // 2)
    prefer_huge_pages(address + 1, LARGE - 1 + mmap.PAGESIZE - 1)
    assert advised(address + LARGE // 2)
