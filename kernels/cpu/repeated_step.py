"""A step like the last one, in one call: gradients are read, the scalars follow the count, the rule runs.

Calls from Python cost more than a small array. What is as at the last step is not handed over again: one array of
numbers, the task, holds it. Launches on threads, and those of several kernels, are left to the caller, who calls
`begin`, these and `end` as one (`launch.one_call`).
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from numba import types

from ..clipping import NORM
from ..compile._jit import c_address, callee, entry_point, specialise
from ..compile.fingerprints import fingerprint
from ..compile.intrinsics import array_at, call_for_number, call_kernel, call_kernel_without_gil, scalars_at, table_at
from ..layout import Control
from ..registry import RUNNING, SCALARS, running_after, scalars_of
from . import exchange, launch, loops

LONG = 16_384
"""Elements from which on other Python threads may run meanwhile. Letting go of the GIL costs as much as hundreds do."""

CONTROLS = len(Control._fields)

# Replaced in each specialisation.
SETTINGS = Control
FIELDS = 0  # of the settings
DTYPE = np.float32


class Task(NamedTuple):
    """What is as at the last step, int64, mostly addresses. The optimizer's plan and gradients keep it all alive."""

    counters: int  # of two int64: updates, and steps of any kind
    parameters: int  # handle of their `exchange.Reader`
    gradients: int  # and of theirs
    arrays: int  # tuple of the parameters
    objects: int  # how many they are
    write: int  # of `write_scalars`, compiled; 0: the row of scalars is as it must be
    settings: int
    fields: int  # of the settings; behind them stands what the running number will be
    running: int  # 0: no number runs
    row: int
    flags: int  # of two int64: see `Flags`
    kernel: int  # 0: the caller launches
    chunks: int  # all of the work's
    work: int  # its handle
    releases_gil: int  # whether other Python threads may run meanwhile
    norms: int  # kernel that measures the gradients
    clipping: int  # address of a `Clipping`
    options: int = 0
    clip: int = 0  # `loops.clip_by_norm`, compiled; 0: the step does not go by the norm


class Flags(NamedTuple):
    """Whether a step may run now, each 0 or 1."""

    usual: int = 0  # whether steps may be like the last one: tables are as it left them, and nobody writes to them
    running: int = 0  # whether one is under way


TASK = len(Task._fields)
FLAGS, IS_USUAL, IS_RUNNING = len(Flags._fields), 0, 1


def begin(task, gradients):
    """Do the next update, or all of it before the launch, if it is like the last one.

    Requires the address of the numbers of a `Task`, that of a tuple of as many objects as there are parameters, and the
    GIL.
    Returns whether something is in the way: unless the flags allow it, parameters are where they were, and gradients
    are arrays just like them, and finite if that matters. Then nothing but tables has been written. Otherwise a step is
    under way if the caller launches: `end` must follow, and before it, if the step goes by the norm, what measures
    that, and `check`.
    """
    own = scalars_at(Task, table_at(task, 1, TASK, np.int64), 0, 0)
    counters, flags = array_at(own.counters, 0, 2, np.int64), array_at(own.flags, 0, FLAGS, np.int64)
    t = counters[0] + 1
    if flags[IS_USUAL] == 0 or flags[IS_RUNNING] != 0 or t == 1:
        return True
    if exchange.read_arrays(own.arrays, 0, own.parameters) < own.objects:
        return True
    if exchange.read_arrays(gradients, 0, own.gradients) < own.objects:
        return True
    if own.write != 0 and call_for_number(own.write, (own.settings, own.running, own.row, t)) == 0:
        return True
    if own.kernel != 0 and own.clip != 0:
        call_kernel(own.norms, 0, own.chunks, own.work, 0)
        if call_for_number(own.clip, (own.work, own.clipping)) != 0:
            return True
    flags[IS_RUNNING] = 1
    if own.kernel != 0:
        if own.releases_gil:
            call_kernel_without_gil(own.kernel, 0, own.chunks, own.work, own.options)
        else:
            call_kernel(own.kernel, 0, own.chunks, own.work, own.options)
        end(task)
    return False


def check(task):
    """Clip by the norm that has been measured; whether the step must be left out, so that none is under way."""
    own = scalars_at(Task, table_at(task, 1, TASK, np.int64), 0, 0)
    if call_for_number(own.clip, (own.work, own.clipping)) == 0:
        return False
    array_at(own.flags, 0, FLAGS, np.int64)[IS_RUNNING] = 0
    return True


@callee
def end(task):
    """Count the step that has been launched, and have what runs go on. Requires what `begin` does, and it before."""
    own = scalars_at(Task, table_at(task, 1, TASK, np.int64), 0, 0)
    counters, flags = array_at(own.counters, 0, 2, np.int64), array_at(own.flags, 0, FLAGS, np.int64)
    if own.running != 0:
        array_at(own.running, 0, 1, np.float64)[0] = array_at(own.settings, 0, own.fields + 1, np.float64)[own.fields]
    counters[0] += 1
    counters[1] += 1
    flags[IS_RUNNING] = 0


def write_scalars(settings, running, row, t):
    """Work out a row of scalars for update ``t``, and what the running number is after it; whether all fit the dtype.

    Requires addresses of settings, of the number that runs, 0 if there is none, and of the row. Writes the row and,
    behind the settings, the running number.
    """
    numbers, t = table_at(settings, 1, FIELDS + 1, np.float64), np.float64(t)
    if running != 0:
        numbers[0, FIELDS - 1] = array_at(running, 0, 1, np.float64)[0]
    known = scalars_at(SETTINGS, numbers, 0, 0)
    scalars = scalars_of(known, t)
    for k in range(len(scalars)):
        if math.isinf(DTYPE(scalars[k])) and not math.isinf(scalars[k]):
            return 0
    own = array_at(row, CONTROLS, len(scalars), DTYPE)
    for k in range(len(scalars)):
        own[k] = scalars[k]
    if running != 0:
        numbers[0, FIELDS] = running_after(known, t)
    return 1


class RepeatedStep:
    """`begin` and `end` of an optimizer with one plan.

    Parameters
    ----------
    counters : array.array of two int64
        Updates so far, and steps of any kind.
    parameters : tuple of arrays
    readers : pair of exchange.Reader
        Of the parameters, and of gradients that are like them.
    kernel : launch.Kernel or None
        Does the whole step, here; None: what does it is launched by the caller.
    work : launch.Work
        What it works on.
    settings : NamedTuple class or None
        What the rule's scalars follow from, see `registry.scalars_for`; None: the row is as it must be.
    running : array.array of one float64, or None
        Number that every update changes, the last of the settings.
    clipping : float64 array
        A `Clipping`: read and written by steps that go by the norm.
    measures : bool
        Whether they are likely to, and what they need is to be compiled now.

    Attributes
    ----------
    begin : function
        Takes the `id` of a tuple of gradients. It does what `take` has said.
    check, end : function
        Without arguments.
    writes : bool
        Whether it writes the row of scalars.
    launches : bool
        Whether `begin` runs the kernel, and what `end` does.
    """

    def __init__(self, counters, parameters, readers, kernel, work, settings, running, clipping, measures):
        self.writes, self.launches = settings is not None, kernel is not None
        fields = len(settings._fields) if self.writes else 0
        self._settings = np.zeros(fields + 1)
        self._flags = np.zeros(FLAGS, np.int64)
        self._writer = _writer(settings, work.table.dtype) if self.writes else None
        task = Task(
            counters=_address(counters),
            parameters=readers[0].handle,
            gradients=readers[1].handle,
            arrays=id(parameters),
            objects=len(parameters),
            write=c_address(self._writer) if self.writes else 0,
            settings=self._settings.ctypes.data,
            fields=fields,
            running=_address(running),
            row=work.table.ctypes.data,
            flags=self._flags.ctypes.data,
            kernel=0 if kernel is None else kernel.address,
            chunks=work.count,
            work=work.handle,
            releases_gil=work.elements >= LONG,
            norms=launch.kernel(loops.norms, None, 0, work.table.dtype).address if measures else 0,
            clipping=clipping.ctypes.data,
        )
        self._task = np.array(task, np.int64)
        self._kept = counters, parameters, readers, work, running
        self._clipping, self._dtype = clipping, work.table.dtype
        if measures:
            _clipper(self._dtype)
        address = self._task.ctypes.data
        self.begin, self.check, self.end = (functools.partial(compiled, address) for compiled in _compiled())

    @property
    def is_usual(self):
        """Whether `begin` may do steps. Settable."""
        return bool(self._flags[IS_USUAL])

    @is_usual.setter
    def is_usual(self, usual):
        self._flags[IS_USUAL] = usual

    @property
    def is_running(self):
        """Whether a step is under way."""
        return bool(self._flags[IS_RUNNING])

    def give_up(self):
        """Say that no step is under way: the one that was has failed."""
        self._flags[IS_RUNNING] = 0

    def take(self, options, settings, clipping):
        """Run with other options from now on, and by what else follows from hyper-parameters.

        Parameters
        ----------
        options : int
        settings : NamedTuple
            Of the class that scalars follow from; not looked at if they do not.
        clipping : Clipping or None
            How steps go by the norm.
        """
        clip = 0
        if clipping is not None:
            self._clipping[:NORM] = clipping[:NORM]
            self._set("norms", launch.kernel(loops.norms, None, 0, self._dtype).address)
            clip = c_address(_clipper(self._dtype))
        self._set("options", options)
        self._set("clip", clip)
        if self.writes:
            self._settings[:-1] = settings

    def _set(self, field, number):
        self._task[Task._fields.index(field)] = number


def _address(values):
    """Return the address of an array.array, 0 for None."""
    return 0 if values is None else values.buffer_info()[0]


@functools.cache
def _compiled():
    """`begin`, `check` and `end`, compiled."""
    number, options = types.int64, {"bindings": {}, "nogil": False, "key": "repeated"}
    ends = specialise(end, "repeated", types.void(number), **options)
    begins = specialise(begin, "repeated", types.boolean(number, number), **options)
    checks = specialise(check, "repeated", types.boolean(number), **options)
    return entry_point(begins), entry_point(checks), entry_point(ends)


@functools.cache
def _clipper(dtype):
    """`loops.clip_by_norm`, compiled."""
    bindings, name, key = launch.specialisation(None, 0, dtype)
    return specialise(loops.clip_by_norm, name, types.int64(types.int64, types.int64), bindings, key=key)


@functools.cache
def _writer(settings, dtype):
    """`write_scalars`, compiled for a class of settings and a dtype."""
    bindings = {"SETTINGS": settings, "FIELDS": len(settings._fields), "DTYPE": dtype.type}
    number = types.int64
    name, key = f"{settings.__name__}_{dtype.name}", fingerprint(SCALARS[settings], RUNNING.get(settings))
    key = key and f"{key} {settings._fields}"
    return specialise(write_scalars, name, number(number, number, number, number), bindings, key=key)
