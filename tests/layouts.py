"""The same numbers in memory of every kind that a gradient may lie in."""

import numpy as np


def dense(values, axes):
    """A copy without gaps whose axes lie in memory in the given order."""
    return np.array(np.transpose(values, axes), order="C").transpose(np.argsort(axes))


def inside(values):
    """A window of a larger array."""
    room = np.full([extent + 2 for extent in values.shape], np.nan, values.dtype)
    window = room[(slice(1, -1),) * values.ndim] if values.ndim else room
    window[...] = values
    return window


def every_second(values):
    """With gaps between neighbours."""
    room = np.full((*values.shape, 2), np.nan, values.dtype)
    room[..., 1] = values
    return room[..., 1]


def backwards(values):
    """From the last address to the first."""
    turn = (slice(None, None, -1),) * values.ndim
    return np.array(values[turn])[turn] if values.ndim else values


def read_only(values):
    """Not to be written to."""
    values = np.array(values)
    values.flags.writeable = False
    return values


LAYOUTS = {
    "C": lambda values: np.array(values, order="C"),
    "Fortran": lambda values: np.array(values, order="F"),
    "inside": inside,
    "every second": every_second,
    "backwards": backwards,
    "read-only": read_only,
    "broadcast": lambda values: np.broadcast_to(values[:1] if values.ndim else values, values.shape),
}
"""Functions of an array, of the same values but for "broadcast", where the first along axis 0 takes all places."""

WRITEABLE = tuple(name for name in LAYOUTS if name not in ("read-only", "broadcast"))
