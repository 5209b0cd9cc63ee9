"""How many threads a launch uses where other programs want the cores: as many as have been worth it of late.

A launch is over when the last of its threads is, and one that has to wait for a core keeps the others waiting, for
milliseconds. So launches on threads are timed, and what each took is held against what half as many threads usually
take: one launch in `EVERY` finds that out, more at first. Time lost is added up, and time won is taken off. When too
much is lost, launches make do with half the threads until these have run for as long as was lost; then all are tried
again. If that soon turns out to be as bad, the next pause is twice as long, up to `LONGEST` times what was lost.

Half as many threads are watched in the same way, down to one. Compiled code does all this, within the launch.
"""

import ctypes
import functools
import time

import numpy as np

from ._jit import callee, is_interpreted
from .intrinsics import array_at, read_clock, table_at

EVERY = 251
"""Launches on all threads for one on half of them. A prime: what programs do in turn is not in step with it."""

TOO_MUCH = 8
"""Launches on fewer threads whose time may be lost before fewer are used."""

CREDIT = 0.01
"""Seconds won that count at most: a single wait for a core, now and then, is no reason to do without it."""

LONGEST = 32
"""A pause is at most so many times as long as what was lost. So trying costs at most one part in so many."""

LATEST = 5.0
"""Seconds after which threads are tried again in any case, however rarely something is launched."""

LEARNED = 8
"""Launches of which the fastest is the usual one; the first may start threads, or meet new memory."""

SLOWNESS, OUTLIER = 1 / 16, 4
"""How fast the usual time follows, and how many times as long a launch counts at most for it."""

# Columns of the table, whose row k is about launches on threads >> k threads. Times are in seconds.
SEEN, USUAL = 0, 1  # launches; what one of them usually takes
GAP, NEXT = 2, 3  # launches from one to the next that tries fewer threads, and how many of them are left
TRIED, BALANCE = 4, 5  # launches since the last pause; time won in them, below 0: lost
PAUSE, UNTIL = 6, 7  # what is left of a pause, 0: none; when it ends at the latest
FACTOR, LAUNCHES = 8, 9  # of the last pause: how many times as long as the loss it was; launches in it
COLUMNS = 10

CLOCK, KIND, READING, LEVELS, TABLE = 0, 1, 2, 4, 5  # of the numbers at the address of an account; a reading has two
HEAD = 6


class Account:
    """What launches of about the same work have taken.

    Parameters
    ----------
    threads : int
        That they use at most.

    Attributes
    ----------
    address : int
        For `begin` and `end`; 0 where there is no clock, so that all threads are used.
    table : array [levels, COLUMNS]
    """

    def __init__(self, threads):
        self.table = new_table(threads)
        self._head = np.array([*_clock(), 0, 0, len(self.table), self.table.ctypes.data], np.int64)
        self.address = self._head.ctypes.data if self._head[CLOCK] else 0


def new_table(threads):
    """The table of an account of launches on so many threads."""
    table = np.zeros((threads.bit_length(), COLUMNS))
    table[:, [GAP, NEXT, FACTOR]] = 3, 3, 1
    return table


@functools.cache
def _clock():
    """Address of the system's ``clock_gettime`` and the number of a clock that only goes on; 0 where there is none."""
    function = None if is_interpreted() else getattr(ctypes.CDLL(None), "clock_gettime", None) if _is_posix() else None
    if function is None:
        return 0, 0
    return ctypes.cast(function, ctypes.c_void_p).value, time.CLOCK_MONOTONIC


def _is_posix():
    return hasattr(time, "CLOCK_MONOTONIC")


# -- in compiled code --------------------------------------------------------------------------------------------------


@callee
def begin(account, most):
    """The number of threads for a launch, at most ``most``, and when it begins; ``account`` is an address or 0."""
    if account == 0 or most == 1:
        return most, 0.0
    return threads_for(_table(account), most), _now(account)


@callee
def end(account, most, began):
    """Learn from a launch that `begin` has begun and that is over."""
    if account != 0 and most != 1:
        now = _now(account)
        learn(_table(account), most, now - began, now)


@callee
def _table(account):
    head = array_at(account, 0, HEAD, np.int64)
    return table_at(head[TABLE], head[LEVELS], COLUMNS, np.float64)


@callee
def _now(account):
    head = array_at(account, 0, HEAD, np.int64)
    read_clock(head[CLOCK], head[KIND], account + 8 * READING)
    return np.float64(head[READING]) + 1e-9 * np.float64(head[READING + 1])


@callee
def threads_for(table, most):
    """The number of threads for the next launch."""
    for own in table:
        if most == 1 or not _makes_do(own):
            break
        most >>= 1
    return most


@callee
def learn(table, most, seconds, now):
    """Note what a launch took that used as many threads as `threads_for` has said, and when it was over."""
    for k in range(len(table)):
        own = table[k]
        if most == 1 or not _makes_do(own):
            if most > 1 and table[k + 1, SEEN] > 0:
                _judge(own, table[k + 1, USUAL], seconds, now)
            _note(own, seconds)
            break
        if own[PAUSE] > 0:
            _wait(own, seconds, now)
        else:
            own[GAP] = min(2 * own[GAP] + 1, EVERY)
            own[NEXT] = own[GAP]
        most >>= 1


@callee
def _makes_do(own):
    """Whether the next launch uses fewer threads than the row is about."""
    return own[PAUSE] > 0 or own[NEXT] <= 0


@callee
def _note(own, seconds):
    """Note what a launch took."""
    own[SEEN] += 1
    own[NEXT] -= 1
    if own[SEEN] == 1 or (own[SEEN] <= LEARNED and seconds < own[USUAL]):
        own[USUAL] = seconds
    elif own[SEEN] > LEARNED:
        own[USUAL] += SLOWNESS * (min(seconds, OUTLIER * own[USUAL]) - own[USUAL])


@callee
def _judge(own, fewer, seconds, now):
    """Begin a pause if launches have lost too much, which take ``fewer`` seconds on fewer threads."""
    own[TRIED] += 1
    own[BALANCE] = min(own[BALANCE] + fewer - seconds, CREDIT)
    if own[BALANCE] < -TOO_MUCH * fewer:
        is_soon = own[TRIED] <= own[LAUNCHES]
        own[FACTOR] = min(2 * own[FACTOR], LONGEST) if is_soon else 1
        own[PAUSE] = -own[FACTOR] * own[BALANCE]
        own[UNTIL] = now + LATEST
        own[LAUNCHES] = 0


@callee
def _wait(own, seconds, now):
    """Note a launch on fewer threads in a pause, which may be the last."""
    own[LAUNCHES] += 1
    own[PAUSE] -= seconds
    if own[PAUSE] <= 0 or now >= own[UNTIL]:
        own[PAUSE], own[TRIED], own[BALANCE] = 0, 0, 0
