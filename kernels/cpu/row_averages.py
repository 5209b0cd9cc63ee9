"""Averages of parameters whose steps touch some rows only: a row's average follows when the row is next touched.

An average keeps a share of itself at every step. Over steps that leave a row alone, the row's average keeps the product
of the shares; so each row remembers the sum of their logarithms, of all steps until its average last followed.
"""

import math
from functools import partial
from operator import setitem
from typing import NamedTuple

import numpy as np

from ..compile._jit import callee
from ..compile.intrinsics import array_at, scalars_at, table_at
from ..layout import AVERAGE, OVERWRITE, PARAM
from ..maths import exp, plus_share
from . import launch
from .rowwise import bins_of

BEFORE, NOW = range(2)
"""Numbers of a clock, float64: the sum of the shares' logarithms up to a step, and with it."""

LEAST_SHARE = 1e-300
"""Stands for a share of zero, whose logarithm a sum would not get rid of."""

# Replaced in each specialisation (see `launch`).
DTYPE = np.float32


class Averaging(NamedTuple):
    """Where a parameter's rows and their averages lie, int64."""

    param: int
    average: int
    followed: int  # address of each row's clock when its average last followed, float64
    clock: int  # address of `BEFORE` and `NOW`
    width: int  # elements of a row


FIELDS = len(Averaging._fields)


@callee
def averaging_at(handle):
    """The `Averaging` at an address."""
    return scalars_at(Averaging, table_at(handle, 1, FIELDS, np.int64), 0, 0)


@callee
def share_at(averaging, row):
    """Share of itself that a row's average has kept over the steps that it has not followed yet."""
    own = averaging_at(averaging)
    followed = array_at(own.followed, row, 1, np.float64)[0]
    until = array_at(own.clock, 0, 2, np.float64)[BEFORE]
    return 1.0 if followed == until else exp(until - followed)


@callee
def follow_row(average, param, share):
    """Have an average, which has kept a share of itself, make up for the steps that left ``param`` alone."""
    rest = param.dtype.type(1) - share
    for i in range(average.size):
        average[i] = plus_share(rest * param[i], average[i], share)


@callee
def note_followed(averaging, row, moment):
    """Note that a row's average has followed all steps before this one (`BEFORE`), or this one, too (`NOW`)."""
    own = averaging_at(averaging)
    array_at(own.followed, row, 1, np.float64)[0] = array_at(own.clock, 0, 2, np.float64)[moment]


def follow(first, last, handle, options):
    """Have the averages of the rows ``first`` to ``last`` follow all steps; `OVERWRITE`: they then replace the rows.

    The handle is the address of an `Averaging`.
    """
    own = averaging_at(handle)
    for row in range(first, last):
        share = share_at(handle, row)
        param = array_at(own.param, row * own.width, own.width, DTYPE)
        average = array_at(own.average, row * own.width, own.width, DTYPE)
        if share != 1.0:
            follow_row(average, param, DTYPE(share))
            note_followed(handle, row, BEFORE)
        if options & OVERWRITE:
            for i in range(param.size):
                param[i] = average[i]


class RowAverage:
    """The average of one parameter, rows of which may have to follow yet; it can be launched, see `launch.Work`.

    Parameters
    ----------
    addresses : int64 array [SLOTS + slots]
        The parameter's column of the address table.
    height, width : int
        Rows, and elements of a row.
    dtype : numpy.dtype
    """

    def __init__(self, addresses, height, width, dtype):
        self._followed, self._clock = np.zeros(height), np.zeros(2)
        followed, clock = self._followed.ctypes.data, self._clock.ctypes.data
        self._record = np.array(Averaging(addresses[PARAM], addresses[AVERAGE], followed, clock, width), np.int64)
        self._kernel = launch.kernel(follow, None, 0, dtype)
        self.handle = self._record.ctypes.data
        self.elements, self.count = height * width, height
        self._lags = False

    def bins(self, threads):
        """Boundaries that split the rows into ``threads`` ranges."""
        return bins_of(self.count, threads)

    def stepping(self, keep):
        """Prepare a step of touched rows, which keeps a share of averages; returns the C functions that end it."""
        self._clock[NOW] = self._clock[BEFORE] + math.log(max(keep, LEAST_SHARE))
        return [partial(setitem, self._clock, BEFORE, self._clock[NOW]), partial(vars(self).update, _lags=True)]

    def following(self, options=0):
        """Return what has all rows follow, as C functions to be called in order; ``options`` as of `follow`."""
        if not (self._lags or options):
            return []
        return [launch.call(self._kernel, self, options), partial(vars(self).update, _lags=False)]
