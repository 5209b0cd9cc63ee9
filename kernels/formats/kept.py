"""How a plan's numbers are kept: which format each kind of them has, and in which arrays they are, on any device."""

from typing import Any, NamedTuple

from .registry import FORMATS

PARTS = 3
"""Rows of the table of parts for each stream of numbers: two parts, and the scales."""

PARAM, AVERAGE, SLOTS = range(3)
"""Numbers of the streams; the slots follow each other."""


class Kept(NamedTuple):
    """How a plan's numbers are kept, if not all of them are as they are worked with."""

    formats: dict[str, str]  # format, by name, of what has one: "" for the parameter, "average", slots by their names
    parts: dict[str, list[list[Any]]]  # of each of these, for each parameter, the format's arrays, scales last
    numbers: Any  # int64 array: the parameters' numbers
    counters: Any  # array.array whose first number counts the updates
    seed: int
    place: Any  # where the arrays are, as of `fastopt.device`

    @property
    def scaled(self):
        """Whether some format has scales."""
        return any(FORMATS[kind].scaled for kind in self.formats.values())

    def format_of(self, name):
        """The format of something; None if it is kept as it is worked with."""
        return FORMATS[self.formats[name]] if name in self.formats else None


def column_of(format, places):
    """The column of the table of parts for a format's arrays at some addresses, 0 for none. None: no format."""
    places = list(places)
    scales = [places.pop()] if format is not None and format.scaled else [0]
    return [*places, *[0] * (PARTS - 1 - len(places)), *scales]
