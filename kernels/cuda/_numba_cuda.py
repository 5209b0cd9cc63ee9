"""What fastopt uses of numba-cuda that it does not document: all of it, each with the reason why.

Nothing here imports numba-cuda before it is needed.
"""

import contextlib
import sys
from importlib import import_module

import numba
import numpy as np
from numba import types

from ..compile._numba import global_compiler_lock

KNOWN = "0.30"
"""Versions of numba-cuda that all of this was seen to work with; pyproject.toml says so too."""

# -- compiling ---------------------------------------------------------------------------------------------------------

_NEEDED = {
    "compiler": ("compile_cuda", "kernel_fixup"),
    "dispatcher": ("get_current_device",),
    "cudadrv.nvvm": ("llvm_replace",),
    "np.arrayobj": (),  # which it needs to compile, and which wants a NumPy that it knows
}


def llvm_of(function, arguments, capability, version):
    """The name of the entry point, and modules of LLVM IR, of a kernel that takes so many int64 numbers.

    What is public, `numba.cuda.compile`, goes on to PTX and has libNVVM contract multiplications and additions; and
    what the kernel calls would be compiled for the GPU that the machine has, or not at all.

    Raises
    ------
    RuntimeError
        If this version of numba-cuda, called ``version``, is another one than it was.
    """
    compiler, dispatcher, nvvm, _ = _modules(version)
    with _stand_in_device(dispatcher, capability):
        compiled = compiler.compile_cuda(function, types.void, (types.int64,) * arguments, cc=capability)
    library, entry = compiled.library, compiled.fndesc.llvm_func_name
    compiler.kernel_fixup(library.get_function(entry), debug=False)
    return entry, [nvvm.llvm_replace(str(module)) for module in library.modules]


def _modules(version):
    """Return what compiles a kernel to LLVM IR, if all of it is there."""
    try:
        modules = [import_module(f"numba.cuda.{name}") for name in _NEEDED]
        for module, names in zip(modules, _NEEDED.values()):
            for name in names:
                getattr(module, name)
    except (AttributeError, ImportError) as error:
        versions = f"numba-cuda {version}, Numba {numba.__version__} and NumPy {np.__version__}"
        raise RuntimeError(
            f"{versions} do not fit each other or this fastopt, which is known to work with numba-cuda {KNOWN}: {error}"
        ) from error
    return modules


@contextlib.contextmanager
def _stand_in_device(dispatcher, capability):
    """Functions that a kernel calls are compiled for the current GPU: let it be one of ``capability``.

    They are compiled even where ``NUMBA_DISABLE_JIT`` says otherwise: a GPU interprets nothing. Numba's lock keeps
    other threads' compilations out of the block.
    """

    class Device:
        id = 0
        compute_capability = capability

    with global_compiler_lock:
        original, disabled = dispatcher.get_current_device, numba.config.DISABLE_JIT
        dispatcher.get_current_device, numba.config.DISABLE_JIT = Device, 0
        try:
            yield
        finally:
            dispatcher.get_current_device, numba.config.DISABLE_JIT = original, disabled


def path_of_libdevice():
    """Find libdevice where NVIDIA's public `cuda.pathfinder` does not: numba-cuda knows more places."""
    return import_module("numba.cuda.cudadrv.libs").get_libdevice()


# -- arrays: `numba.cuda.is_cuda_array` is true of every library's -----------------------------------------------------


def is_device_array(array):
    """Whether an array is one of Numba's on a GPU."""
    return _is_of("numba.cuda.cudadrv.devicearray", "DeviceNDArray", array)


def _is_of(module, name, array):
    found = sys.modules.get(module)
    return found is not None and isinstance(array, getattr(found, name, ()))


def address_of(array):
    """Return the address of one of Numba's arrays: its interface would work out all else with it, at every step."""
    return array.device_ctypes_pointer.value or 0


def ordinal_of(array):
    """The number of the GPU that one of Numba's arrays is on: what is public asks the driver, at every step."""
    return array.gpu_data.context.device.id
