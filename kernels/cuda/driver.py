"""NVIDIA's driver, through ``cuda.bindings.driver``: its bindings of the C interface, call by call."""

import functools

import numba

from ._cuda_jit import require_packages
from .errors import CudaError, CudaUnavailable


@functools.cache
def bindings():
    """The module of the driver's functions, once the driver is initialised. Raises `CudaUnavailable`."""
    if numba.config.DISABLE_CUDA:
        raise CudaUnavailable("CUDA is switched off: NUMBA_DISABLE_CUDA is set")
    require_packages()
    from cuda.bindings import driver

    try:
        (error,) = driver.cuInit(0)
    except Exception as failure:
        reason = str(failure).partition("\n")[0]
        raise CudaUnavailable(f"CUDA needs NVIDIA's driver, which cannot be loaded here: {reason}") from failure
    if error == driver.CUresult.CUDA_ERROR_NO_DEVICE:
        raise CudaUnavailable("there is no GPU that CUDA can see (CUDA_VISIBLE_DEVICES may hide it)")
    if error:
        raise CudaUnavailable(f"NVIDIA's driver does not start: {_described(driver, error)}")
    return driver


def call(name, *arguments):
    """Call a function of the driver; what it returns beside its status, None if that is nothing."""
    error, *values = getattr(bindings(), name)(*arguments)
    if error:
        fail(name, error)
    return values[0] if values else None


def fail(name, error):
    """Raise the `CudaError` of a call."""
    raise CudaError(f"{name} failed: {_described(bindings(), error)}", int(error))


def _described(driver, error):
    _, text = driver.cuGetErrorString(error)
    return f"{text.decode() if text else 'unknown error'} ({int(error)})"


def ordinal_of(address):
    """The number of the GPU that owns the memory at an address; `ValueError` if none does."""
    code = bindings().CUresult
    try:
        return _ordinal_of(address)
    except CudaError as error:
        if error.code == code.CUDA_ERROR_INVALID_VALUE:
            raise ValueError(f"no GPU owns the memory at address {address:#x}") from None
        if error.code != code.CUDA_ERROR_INVALID_CONTEXT:
            raise
    with Current(call("cuDevicePrimaryCtxRetain", call("cuDeviceGet", 0))):  # this thread had none: any will do
        return _ordinal_of(address)


def _ordinal_of(address):
    attribute = bindings().CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    return int(call("cuPointerGetAttribute", attribute, address))


def inventory():
    """The newest CUDA that the driver knows, (major, minor), and each GPU's name and compute capability.

    Makes no context on any of them. Raises `CudaUnavailable` or `CudaError`.
    """
    version = call("cuDriverGetVersion")
    handles = [call("cuDeviceGet", ordinal) for ordinal in range(call("cuDeviceGetCount"))]
    return (version // 1000, version % 1000 // 10), [(name_of(handle), capability_of(handle)) for handle in handles]


def name_of(handle):
    """Return what a GPU is called."""
    return call("cuDeviceGetName", 256, handle).split(b"\0")[0].decode()


def capability_of(handle):
    """Compute capability of a GPU, (major, minor)."""
    return tuple(attribute(f"COMPUTE_CAPABILITY_{part}", handle) for part in ("MAJOR", "MINOR"))


def attribute(name, handle):
    """A number that the driver knows of a GPU."""
    return call("cuDeviceGetAttribute", getattr(bindings().CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}"), handle)


class Current:
    """Makes a context current, and the one before it again."""

    __slots__ = ("_context", "_pushed")

    def __init__(self, context):
        self._context = context

    def __enter__(self):
        self._pushed = int(call("cuCtxGetCurrent")) != int(self._context)
        if self._pushed:
            call("cuCtxPushCurrent", self._context)

    def __exit__(self, *_):
        if self._pushed:
            call("cuCtxPopCurrent")
