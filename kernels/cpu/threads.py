"""Ranges of work on threads: those of an OpenMP runtime that the process has, or else Numba's.

torch and fastopt take turns. With a pool of threads each, one waits for work on processors that the other needs:
OpenMP's threads spin for milliseconds. So fastopt uses torch's runtime where torch has been imported, and otherwise the
system's, which torch will use in turn. Nothing is compiled per kernel: all of them are called by address, through one
signature.

``NUMBA_THREADING_LAYER`` overrides it: with that set, Numba's threads are used.
"""

import ctypes
import functools
import os
import re
import sys
from pathlib import Path

import numba
import numpy as np
from numba import prange, types

from ..compile._jit import c_address, entry_point, specialise
from ..compile.intrinsics import array_at, call_kernel, call_number, call_parallel
from .crowding import begin, end

_RUNTIME = re.compile(r"/lib(gomp|iomp5|omp)(-[0-9a-f]+)?\.so[^/]*$")
_SYSTEMS = ("libgomp.so.1", "libomp.so.5", "libomp.so")
_FUNCTIONS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads", "omp_get_max_threads")


def call(kernel, bins, handle, options, account=0):
    """A run of a kernel over ``bins.size - 1`` ranges, on as many threads or, if there are not so many, fewer.

    With an ``account`` on one, too, where other programs want the cores.

    Parameters
    ----------
    kernel : int
        Address of compiled code ``(first, last, handle, options)``, see `_jit.c_address`.
    bins : int64 array
        Boundaries of the ranges.
    handle, options : int
    account : int
        Address of a `crowding.Account`, or 0.

    Returns
    -------
    function
        Without arguments, in C: it runs the kernel.
    """
    team = _team(_has_torch())
    if team is None:
        return functools.partial(_numbas_threads(), kernel, bins, handle, options, account)
    return functools.partial(_forking()[0], team, kernel, bins, handle, options, account)


def prepare():
    """Compile what runs a kernel on threads."""
    if _team(_has_torch()) is None:
        _numbas_threads()


def layer():
    """Name what threads are used: "openmp", or Numba's layer.

    Raises
    ------
    ValueError
        If it is Numba's, and Numba has not chosen it yet, as nothing has run.
    """
    return str(numba.threading_layer()) if _team(_has_torch()) is None else "openmp"


# -- Numba's -----------------------------------------------------------------------------------------------------------


def spread(kernel, bins, handle, options, account):
    """A kernel on Numba's threads."""
    count = bins.size - 1
    threads, began = begin(account, count)
    if threads == 1:
        call_kernel(kernel, bins[0], bins[count], handle, options)
    else:
        for b in prange(count):
            call_kernel(kernel, bins[b], bins[b + 1], handle, options)
    end(account, count, began)


@functools.cache
def _numbas_threads():
    """`spread`, compiled."""
    number = types.int64
    signature = types.void(number, types.Array(number, 1, "C"), number, number, number)
    return entry_point(specialise(spread, "numba", signature, {}, parallel=True, key="spread"))


# -- OpenMP's ----------------------------------------------------------------------------------------------------------


def fork(team, kernel, bins, handle, options, account):
    """A kernel on the threads of an OpenMP runtime; ``team`` is of `_team`."""
    count, task = bins.size - 1, np.empty(7, np.int64)
    most = count if team[4] == 0 else min(count, max(1, call_number(team[4])))
    threads, began = begin(account, most)
    if threads == 1:
        call_kernel(kernel, bins[0], bins[count], handle, options)
    else:
        task[0], task[1], task[2], task[3], task[4] = kernel, bins.ctypes.data, count, handle, options
        task[5], task[6] = team[1], team[2]
        call_parallel(team[0], team[3], task.ctypes.data, threads)
    end(account, most, began)
    return task.size - 7  # 0, and the task has lived so long


def member(task):
    """Do what each thread of a team does: every so many-th range."""
    own = array_at(task, 0, 7, np.int64)
    kernel, count, handle, options = own[0], own[2], own[3], own[4]
    bins = array_at(own[1], 0, count + 1, np.int64)
    for b in range(call_number(own[5]), count, call_number(own[6])):
        call_kernel(kernel, bins[b], bins[b + 1], handle, options)


@functools.cache
def _forking():
    """`fork`, ready to be called, and the address of `member`."""
    number = types.int64
    numbers = types.Array(number, 1, "C")
    forks = specialise(fork, "openmp", number(numbers, number, numbers, number, number, number), {}, key="fork")
    members = specialise(member, "openmp", types.void(number), {}, key="member")
    return entry_point(forks), c_address(members)


@functools.cache
def _team(has_torch):
    """Addresses of the runtime's functions, of `member`, and of what limits the number of threads, 0 for nothing.

    None where there is no runtime, or another layer is asked for. ``has_torch``: whether torch has been imported. It
    may bring a runtime of its own, and sets its limit, `torch.set_num_threads`: a pool that is larger at one launch
    than at the next ends threads and starts them anew.
    """
    if numba.config.THREADING_LAYER != "default":
        return None
    runtime = _runtime(has_torch)
    if runtime is None:
        return None
    *functions, limit = (ctypes.cast(getattr(runtime, name), ctypes.c_void_p).value for name in _FUNCTIONS)
    return np.array([*functions, _forking()[1], limit if has_torch else 0], np.int64)


def _runtime(has_torch):
    """The OpenMP runtime to share."""
    loaded = _loaded_runtimes()
    if has_torch:
        folder = f"{os.sep}torch{os.sep}"
        loaded.sort(key=lambda path: folder not in path)
    for name in (*loaded, *_SYSTEMS):
        try:
            runtime = ctypes.CDLL(name)
        except OSError:
            continue
        if all(hasattr(runtime, function) for function in _FUNCTIONS):
            return runtime
    return None


def _has_torch():
    """Whether torch has been imported: to the end, in whatever thread."""
    return hasattr(sys.modules.get("torch"), "set_num_threads")


def _loaded_runtimes():
    """Paths of those that the process has; Linux tells."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    return sorted({line.split(maxsplit=5)[-1] for line in maps.splitlines() if _RUNTIME.search(line)})
