"""What the tests on a real GPU share. They call `require` first: where there is no GPU, the module is skipped."""

import ctypes
import functools
import sys
import warnings

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what these say of each other's versions while they load is not for us to judge
    import numba  # noqa: F401
    from needs_torch import torch

SPIN = 4_000_000_000
"""Clock cycles, some two seconds: what a GPU is kept busy with while a test looks whether anything waits for it."""


def require(gpus=1):
    """Skip the calling module where there are fewer GPUs."""
    reason = _missing(gpus)
    if reason:
        pytest.skip(reason, allow_module_level=True)


@functools.cache
def _missing(gpus):
    found = _count()
    if found < gpus:
        return f"needs {gpus} CUDA GPU{'s' * (gpus > 1)}, the driver reports {found}"
    return None if torch.cuda.is_available() else "there is a GPU, but this torch was not built for CUDA"


def _count():
    """GPUs that the CUDA driver reports; 0 without a driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def tensor(array, device="cuda"):
    """A torch tensor on a GPU with the numbers of an array."""
    return torch.from_numpy(np.array(array)).to(device)


def tensors(arrays, device="cuda"):
    """`tensor` of each."""
    return [tensor(array, device) for array in arrays]


def host(array):
    """A NumPy copy of an array of any framework, in the shape that it has there."""
    if isinstance(array, torch.Tensor):
        return array.detach().cpu().numpy()
    for name in ("copy_to_host", "get"):
        if hasattr(array, name):
            return getattr(array, name)()
    return np.array(array)


def assert_same_bits(actual, expected, what=""):
    """Two lists of arrays, of any framework; None equals None."""
    for k, (one, other) in enumerate(zip(actual, expected, strict=True)):
        if one is None or other is None:
            assert one is None and other is None, f"{what} {k}"
            continue
        one, other = host(one), host(other)
        assert (one.shape, one.dtype) == (other.shape, other.dtype), f"{what} {k}"
        kind = f"u{one.dtype.itemsize}"
        different = np.ascontiguousarray(one).view(kind) != np.ascontiguousarray(other).view(kind)
        assert not different.any(), (
            f"{what} {k}: {different.sum()} of {one.size}, by at most {np.abs(one - other).max()}"
        )


def assert_same_state(one, other):
    """Two optimizers: slots bit for bit, and counters."""
    assert one.iterations == other.iterations
    assert one.slots.keys() == other.slots.keys()
    for name, arrays in one.slots.items():
        assert_same_bits(arrays, other.slots[name], name)


class Busy:
    """The current stream with a kernel on it that spins; inside the ``with`` block torch refuses to synchronise."""

    def __enter__(self):
        torch.cuda.synchronize()
        torch.cuda._sleep(SPIN)
        self._end = torch.cuda.Event()
        self._end.record()
        torch.cuda.set_sync_debug_mode("error")
        return self

    def __exit__(self, *exception):
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()

    @property
    def still(self):
        """Whether the kernel spins still: nothing has waited for it."""
        return not self._end.query()
