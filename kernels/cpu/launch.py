"""Compiled kernels and how they are started: serial or on threads, safely after fork and between threads."""

import functools
import operator
import os
import re
from collections import deque
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import types

from ..compile._jit import c_address, entry_point, is_interpreted, specialise
from ..compile._numba import global_compiler_lock
from ..compile.fingerprints import fingerprint
from ..layout import CHUNK, LENGTH, SEGMENT, SLOTS
from ..locks import RLock
from ..registry import RULES
from ..tables import Tables, handle_of
from . import threads
from .crowding import MOST, Account

PARALLEL_FROM = 32_768
"""Fewer elements than this run serially: waking threads costs more than they save."""

# Numba's workqueue layer aborts the process when two Python threads launch at once. A signal's handler that steps
# another optimizer may find the lock held by its own thread: no launch of that is under way then, see `one_call`.
exclusively = RLock()
_state: dict[str, Any] = {"threads": None, "yields": True, "forked": False}


def set_num_threads(threads, *, yields=None):
    """Cap the threads that a step uses, for the whole process. Results do not depend on it.

    Parameters
    ----------
    threads : int
        At least 1. More than ``NUMBA_NUM_THREADS``, or than `torch.get_num_threads` where torch is, gives no more.
    yields : bool, optional
        Whether a step uses one thread for a while where other programs want the cores, too, and waiting for all of them
        has cost more than they bring. So it is at first; False: always all. None leaves it as it is.

    Raises
    ------
    TypeError, ValueError
        If ``threads`` is no integer, or below 1.
    """
    if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)):
        raise TypeError(f"threads must be an int, got {type(threads).__name__}")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    _state["threads"] = int(threads)
    if yields is not None:
        _state["yields"] = bool(yields)


def get_num_threads():
    """The threads that a step uses at most; fewer for small arrays, and where other programs want the cores."""
    if _state["forked"] or is_interpreted():
        return 1
    return _state["threads"] or numba.config.NUMBA_NUM_THREADS


def _after_fork_in_child():
    # Once any OpenMP runtime has run in the parent (torch's too), entering one in the child hangs or kills it. A lock
    # that another thread of the parent held would never be released.
    global exclusively
    _state["forked"], exclusively = True, RLock()
    global_compiler_lock.release()


if hasattr(os, "register_at_fork"):
    # The compiler's lock is waited for: held by another thread, it would never be released in the child.
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=_after_fork_in_child,
    )


def _is_fork_with_openmp():
    """Whether this process imports fastopt as a forked child that has an OpenMP runtime from its parent."""
    try:
        flags = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[6])
        forked_without_exec = flags & 0x40
        return bool(forked_without_exec) and re.search(r"lib[gi]?omp", Path("/proc/self/maps").read_text()) is not None
    except OSError:  # only Linux tells
        return False


_state["forked"] = _is_fork_with_openmp()


class Work:
    """The tables of one plan, as `layout` describes them, and how its chunks are shared among threads.

    Parameters
    ----------
    chunks : int64 array [chunks, columns]
        The chunk table; it may have more columns than the common ones.
    addresses : int64 array [SLOTS + slots, segments]
        Must outlive no array that it names.
    gradients : int64 array [2, segments]
        Filled anew for every step.
    layouts : int64 array
        The address of `staging.gather`, and records of strided gradients.
    table : array [groups, fields]
        Scalars, in the compute dtype.
    terms : int
        Sums per chunk that the rule needs; norms need two.
    factors : array [2, segments], optional
        Shared with another work.
    """

    def __init__(self, chunks, addresses, gradients, layouts, table, terms=0, factors=None):
        self.chunks = chunks
        self.addresses = addresses
        self.gradients = gradients
        self.layouts = layouts
        self.factors = np.ones((2, addresses.shape[1]), table.dtype) if factors is None else factors
        self.table = table
        self.sums = np.zeros((max(terms, 2), len(chunks)))
        self._tables = handle_of(Tables(chunks, addresses, gradients, layouts, self.factors, table, self.sums))
        self.handle = self._tables.ctypes.data
        self._ends = np.cumsum(chunks[:, LENGTH])
        self.elements = int(self._ends[-1]) if len(chunks) else 0
        self.count = len(chunks)
        self._bins = {}

    def without(self, segments):
        """The same work less the chunks of some segments."""
        chunks = np.ascontiguousarray(self.chunks[~np.isin(self.chunks[:, SEGMENT], list(segments))])
        tables = self.addresses, self.gradients, self.layouts, self.table
        return Work(chunks, *tables, len(self.sums), self.factors)

    def bins(self, threads):
        """Boundaries that split the chunks into ``threads`` ranges of nearly equal element counts."""
        if threads not in self._bins:
            targets = np.linspace(0, self.elements, threads + 1)[1:]
            bounds = np.searchsorted(self._ends, targets - CHUNK / 2)
            self._bins[threads] = np.concatenate([[0], bounds[:-1], [len(self.chunks)]]).astype(np.int64)
        return self._bins[threads]


class Kernel:
    """One kernel for one rule and dtype, compiled, and how to run it: here, or on threads by its address."""

    __slots__ = ("_accounts", "address", "compiled", "run")

    def __init__(self, compiled):
        self.compiled = compiled
        self.run = entry_point(compiled)
        self.address = c_address(compiled)
        self._accounts = {}

    def account(self, elements):
        """Address of what is known of launches of about so many elements, see `crowding`; 0: nothing is to be."""
        about = elements.bit_length()
        known = self._accounts.get(about)
        if known is None:
            known = self._accounts.setdefault(about, Account())
        return known.address if elements <= MOST else 0


def _useful_threads(work):
    return min(get_num_threads(), numba.config.NUMBA_NUM_THREADS, work.count)


def is_serial(work):
    """Whether a work is too small for threads, however many there are."""
    return work.elements < PARALLEL_FROM


def call(kernel, work, options):
    """A run of ``kernel`` over all chunks of ``work`` that is still to be called: a C function with its arguments."""
    if is_serial(work) or (count := _useful_threads(work)) == 1:
        return functools.partial(kernel.run, 0, work.count, work.handle, options)
    account = kernel.account(work.elements) if _state["yields"] else 0
    return threads.call(kernel.address, work.bins(count), work.handle, options, account)


def one_call(calls):
    """Calls of C functions as a single one, which a signal finds done or not begun.

    Python runs a signal's handler between two instructions of its own, never within a C function
    (https://docs.python.org/3/library/signal.html#execution-of-python-signal-handlers). Here one C function calls the
    next, so that Ctrl-C, or a handler that saves a checkpoint, comes before the first or after the last. None of them
    may run Python code.

    Parameters
    ----------
    calls : sequence of functions without arguments

    Returns
    -------
    function
        Without arguments, to be called once; it returns something false.
    """
    return functools.partial(deque, map(operator.call, calls), 0)


def run(calls, on_threads):
    """Call C functions, most of them of `call`, as `one_call`; ``on_threads``: whether one of them may use several."""
    if on_threads:
        with exclusively:
            one_call(calls)()
    else:
        one_call(calls)()


def run_while(calls, on_threads):
    """Call C functions as `run` does, up to the first that returns something true; whether all have been called."""
    if not on_threads:
        return not any(map(operator.call, calls))
    with exclusively:
        return not any(map(operator.call, calls))


def launch(kernel, work, options):
    """Run ``kernel`` over all chunks of ``work``: one call of a C function."""
    job = call(kernel, work, options)
    if is_serial(work):
        job()
    else:
        with exclusively:
            job()


@functools.cache
def kernel(function, scalars, slots, dtype):
    """The kernel ``function`` of cpu/loops.py (or of a module like it), compiled for a rule and a dtype.

    Parameters
    ----------
    function : function
        With the common signature.
    scalars : NamedTuple class or None
        Selects the rule; None for kernels that use no rule.
    slots : int
        Number of slots of the rule.
    dtype : numpy.dtype
        float32 or float64.
    """
    return compiled(function, *specialisation(scalars, slots, dtype))


def compiled(function, bindings, name, key):
    """The `Kernel` of a function of the common signature; arguments as of `specialise`."""
    number = types.int64
    return Kernel(specialise(function, name, types.void(number, number, number, number), bindings, key=key))


@functools.cache
def serial_function(function, numbers, scalars, slots, dtype):
    """A function ``(handle, *numbers)``, so many of them float64, compiled for a rule and a dtype; serial only."""
    bindings, name, key = specialisation(scalars, slots, dtype)
    return entry_point(specialise(function, name, (types.int64, *[types.float64] * numbers), bindings, key=key))


def specialisation(scalars, slots, dtype):
    """Return what sets one specialisation apart: bindings, name and fingerprint, for `specialise`."""
    bindings = {"DTYPE": dtype.type, "SLOT_ROWS": tuple(range(SLOTS, SLOTS + slots))}
    if scalars is None:
        return bindings, dtype.name, "no rule"
    rule = RULES[scalars]
    bindings["SCALARS"] = scalars
    bindings["TERM_ROWS"] = tuple(range(rule.terms))
    digest = fingerprint(*rule.functions)
    name = f"{rule.name}_{dtype.name}"
    return bindings, name, digest and f"{digest} {scalars._fields} {slots} {rule.terms}"
