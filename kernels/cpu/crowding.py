"""Whether a launch uses threads where other programs want the cores, too: only while they have been worth it.

A launch is over when the last of its threads is, and one that has to wait for a core keeps the others waiting, for
milliseconds. So launches are timed, and what each takes on all threads is held against what one thread usually takes:
a launch now and then finds that out. Time lost is added up, and time won is taken off. When too much is lost, launches
make do with one thread until these have taken as long as was lost; then all are tried again. If that soon turns out to
be as bad, the next pause is twice as long, up to `LONGEST` times what was lost.

Compiled code does all this, within the launch. Longer launches than `MOST` elements are left alone: waits matter less
there, and of a machine that is shared by threads, more of them get more.
"""

import ctypes
import functools
import time

import numpy as np

from ..compile._jit import callee
from ..compile.intrinsics import array_at, read_clock

MOST = 2**24
"""Elements of a launch, about, up to which there is an account of it."""

EVERY = 255
"""Time on all threads, in launches on one, after which one thread is tried. Less at first: it doubles from `FIRST`."""

FIRST = 3
"""Launches before one thread is tried first, which may start threads, or meet new memory."""

TOO_MUCH = 8
"""Launches on one thread whose time may be lost before threads are done without."""

CREDIT = 0.01
"""Seconds won that count at most: a single wait for a core, now and then, is no reason to do without threads."""

LONGEST = 32
"""A pause is at most so many times as long as what was lost. So trying costs at most one part in so many."""

LATEST = 5.0
"""Seconds after which threads are tried again in any case, however rarely something is launched."""

LEARNED = 8
"""Launches on one thread of which the fastest is the usual one."""

SLOWNESS, OUTLIER = 1 / 16, 4
"""How fast the usual time follows, and how many times as long a launch counts at most for it."""

# Elements of a record. Times are in seconds.
SEEN, USUAL = 0, 1  # launches on one thread; what one of them usually takes
GAP, NEXT = 2, 3  # time on threads from one of them to the next, in such launches; what is left of it
TRIED, BALANCE = 4, 5  # launches on threads since the last pause; time won in them, below 0: lost
PAUSE, UNTIL = 6, 7  # what is left of a pause, 0: none; when it ends at the latest
FACTOR, LAUNCHES = 8, 9  # of the last pause: how many times as long as the loss it was; launches in it
FIELDS = 10

CLOCK, KIND, READING, RECORD = 0, 1, 2, 4  # of the numbers at the address of an account; a reading has two
HEAD = 5


class Account:
    """What launches of about the same work have taken.

    Attributes
    ----------
    address : int
        For `begin` and `end`; 0 where there is no clock, so that all threads are used.
    record : array [FIELDS]
    """

    def __init__(self):
        self.record = new_record()
        self._head = np.array([*_clock(), 0, 0, self.record.ctypes.data], np.int64)
        self.address = self._head.ctypes.data if self._head[CLOCK] else 0


def new_record():
    """Make a record of launches that nothing is known about."""
    record = np.zeros(FIELDS)
    record[[GAP, FACTOR]] = FIRST, 1
    return record


@functools.cache
def _clock():
    """Address of the system's ``clock_gettime`` and the number of a clock that only goes on; 0 where there is none."""
    try:
        function, kind = ctypes.CDLL(None).clock_gettime, time.CLOCK_MONOTONIC
    except (AttributeError, OSError, TypeError):  # Windows has neither
        return 0, 0
    return ctypes.cast(function, ctypes.c_void_p).value, kind


# -- in compiled code --------------------------------------------------------------------------------------------------


@callee
def begin(account, most):
    """The number of threads for a launch, ``most`` or 1, and when it begins; ``account`` is an address or 0."""
    if account == 0 or most == 1:
        return most, 0.0
    return (1 if is_alone(_record(account)) else most), _now(account)


@callee
def end(account, most, began):
    """Learn from a launch that `begin` has begun and that is over."""
    if account != 0 and most != 1:
        now = _now(account)
        learn(_record(account), now - began, now)


@callee
def _record(account):
    return array_at(array_at(account, 0, HEAD, np.int64)[RECORD], 0, FIELDS, np.float64)


@callee
def _now(account):
    head = array_at(account, 0, HEAD, np.int64)
    read_clock(head[CLOCK], head[KIND], account + 8 * READING)
    return np.float64(head[READING]) + 1e-9 * np.float64(head[READING + 1])


@callee
def is_alone(record):
    """Whether the next launch is to use one thread."""
    if record[SEEN] == 0:
        return record[TRIED] >= FIRST
    return record[PAUSE] > 0 or record[NEXT] <= 0


@callee
def learn(record, seconds, now):
    """Note what a launch took, on one thread if `is_alone` has said so, and when it was over."""
    if not is_alone(record):
        _judge(record, seconds, now)
        return
    _note(record, seconds)
    if record[PAUSE] > 0:
        _wait(record, seconds, now)
    else:
        record[GAP] = min(2 * record[GAP] + 1, EVERY)
        record[NEXT] = record[GAP] * record[USUAL]


@callee
def _note(record, seconds):
    """Follow what launches on one thread take."""
    record[SEEN] += 1
    usual = record[USUAL]
    if record[SEEN] == 1 or (record[SEEN] <= LEARNED and seconds < usual):
        record[USUAL] = seconds
    elif record[SEEN] > LEARNED:
        record[USUAL] += SLOWNESS * (min(seconds, OUTLIER * usual) - usual)


@callee
def _wait(record, seconds, now):
    """Note a launch in a pause, which may be the last."""
    record[LAUNCHES] += 1
    record[PAUSE] -= seconds
    if record[PAUSE] <= 0 or now >= record[UNTIL]:
        record[PAUSE], record[TRIED], record[BALANCE] = 0, 0, 0


@callee
def _judge(record, seconds, now):
    """Note a launch on threads, and begin a pause if too much has been lost."""
    record[TRIED] += 1
    if record[SEEN] == 0:
        return
    usual = record[USUAL]
    record[NEXT] -= seconds
    record[BALANCE] = min(record[BALANCE] + usual - seconds, CREDIT)
    if record[BALANCE] < -TOO_MUCH * usual:
        is_soon = record[TRIED] <= record[LAUNCHES]
        record[FACTOR] = min(2 * record[FACTOR], LONGEST) if is_soon else 1
        record[PAUSE] = -record[FACTOR] * record[BALANCE]
        record[UNTIL] = now + LATEST
        record[LAUNCHES] = 0
