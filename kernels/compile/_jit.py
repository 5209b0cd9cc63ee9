"""How fastopt compiles: flags and specialisation. Only this file and `_cuda_jit`, which does the same for GPUs, spell
Numba's decorators.

A *specialisation* is one kernel for one rule and one dtype. It is a clone of the kernel function with its own name and
its own globals (the scalars class, the dtype, the number of slots), compiled for one explicit signature, so that a call
with any other types is an error instead of a second compilation. `cache` keeps it on disk.
"""

import types as pytypes

import numba
import numpy as np
from numba import njit, types
from numba.extending import register_jitable

from . import _numba
from ._aside import aside
from .cache import cache_path, read_cached, write_cached

# The Python error model checks every division for zero, which blocks vectorisation. No fastmath: it gains nothing on
# memory-bound work, and without it no result depends on how elements are grouped into vectors, chunks and threads.
FLAGS = {"error_model": "numpy"}

callee = register_jitable(**FLAGS)
"""Decorator: a plain function that compiled kernels may call, on any device."""

INLINED_FLAGS = {**FLAGS, "forceinline": True}
"""For longer functions that loops call several times: a call that is left stops the loop from vectorising. And for
those that take a launch's tables, once a chunk: see `cpu`."""

inlined_callee = register_jitable(**INLINED_FLAGS)
"""Decorator: a `callee` that becomes part of its caller, whatever its length."""

compilations = 0
"""Number of specialisations that this process has compiled (not loaded from disk)."""

loads = 0
"""Number of specialisations that this process has loaded from disk."""


def specialise(kernel, name, signature, bindings, *, parallel=False, nogil=True, key=None):
    """Compile ``kernel`` for one signature, or load it from the cache.

    Parameters
    ----------
    kernel : function
        Its globals named in ``bindings`` are replaced in a private clone.
    name : str
        A readable name for the specialisation: part of the file name in the cache, seen in profilers.
    signature : numba signature
        The only one that the result accepts.
    bindings : dict
        Global name → value: dtype, scalars class, compiled callees.
    parallel : bool
        Whether ``prange`` runs on Numba's threads.
    nogil : bool
        Whether it releases the GIL while it runs.
    key : str or None
        Fingerprint of what ``bindings`` bring in. ``None`` means that it is unknown: do not cache.

    Returns
    -------
    dispatcher
        Compiled for ``signature`` alone; or `Interpreted`, where ``NUMBA_DISABLE_JIT`` is set.
    """
    clone = clone_of(kernel, name, bindings)
    if is_interpreted():
        return Interpreted(clone, signature)
    path = cache_path(clone.__name__, key, signature, parallel, clone.__module__)
    flags = {"nogil": nogil, "parallel": parallel, **FLAGS}
    return aside(_compiled, clone, signature, flags, path, says=notice_of(clone.__name__, path))


def _compiled(clone, signature, flags, path):
    global compilations, loads
    dispatcher = njit(**flags)(clone)
    if path is not None and _is_loaded(dispatcher, path):
        loads += 1
    else:
        dispatcher.compile(signature)
        compilations += 1
        payload = None if path is None else _numba.packed(dispatcher)
        if payload is not None:
            write_cached(path, lambda: payload)
    dispatcher.disable_compile()
    _kept.append(dispatcher)
    return dispatcher


def _is_loaded(dispatcher, path):
    """Whether there was compiled code in a file. Whatever is wrong with it, the answer is to compile."""
    payload = read_cached(path)
    if payload is None:
        return False
    try:
        _numba.unpack(dispatcher, payload)
    except Exception:
        return False
    return True


_kept: list[object] = []
"""All that was compiled. Nothing frees machine code while this process forks, after an interrupt left it to nobody."""


def notice_of(name, path):
    """Word a notice for whoever waits for a compilation; empty where its code lies at ``path``, None for nowhere."""
    if path is None:
        return f"fastopt: compiling {name} and others (not kept on disk)"
    if path.exists():
        return ""
    return f"fastopt: compiling {name} and others (once on this machine: kept in {path.parent})"


def entry_point(dispatcher):
    """The machine code of a specialisation as a plain function, which costs half as much to call.

    A dispatcher first looks up what it has compiled for the arguments' types. This takes them to be right.
    """
    if isinstance(dispatcher, Interpreted):
        return dispatcher
    return _numba.entry_point(dispatcher)


def c_address(dispatcher):
    """Return the address of a specialisation's machine code, for calls as of a C function on numbers."""
    if isinstance(dispatcher, Interpreted):
        return id(dispatcher)
    return aside(_numba.c_address, dispatcher)


def is_interpreted():
    """Whether Python is to run everything, slowly: ``NUMBA_DISABLE_JIT`` is set, as for coverage and debuggers."""
    return bool(numba.config.DISABLE_JIT)


class Interpreted:
    """A specialisation that Python runs as it stands. It is called like a compiled one, and warns as little.

    Parameters
    ----------
    function : function
    signature : numba signature or tuple of types
    """

    def __init__(self, function, signature):
        kinds = getattr(signature, "args", signature)
        self._kinds = [np.dtype(kind.name).type if isinstance(kind, types.Float) else None for kind in kinds]
        self._function = function
        _interpreted[id(self)] = self

    def __call__(self, *numbers):
        with np.errstate(all="ignore"):
            return self._function(*(kind(x) if kind else x for kind, x in zip(self._kinds, numbers, strict=True)))


_interpreted: dict[int, Interpreted] = {}
"""By the number that stands for its address. They live on, as machine code does."""


def call_interpreted(address, *numbers):
    """Call what `c_address` was asked for."""
    return _interpreted[address](*numbers)


def clone_of(kernel, name, bindings):
    """A copy of a function with a name of its own, whose globals named in ``bindings`` are replaced."""
    qualified = f"{kernel.__name__}_{name}"
    clone = pytypes.FunctionType(kernel.__code__, {**kernel.__globals__, **bindings}, qualified)
    clone.__qualname__ = qualified
    clone.__module__ = kernel.__module__
    return clone
