"""Checks of what schedules are given: TypeError or ValueError names the argument; else the value as it is kept."""

import itertools
import math
from collections.abc import Collection, Hashable, Iterable
from numbers import Integral, Real


def number(name: str, value: object) -> float:
    """``value`` as a Python int or float: NumPy scalars would make configs that JSON cannot hold."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    return int(value) if isinstance(value, Integral) else float(value)


def finite(name: str, value: object) -> float:
    """A number that is neither NaN nor infinite."""
    found = number(name, value)
    if not math.isfinite(found):
        raise ValueError(f"{name} must be finite, got {found}")
    return found


def positive(name: str, value: object) -> float:
    """A finite number > 0."""
    found = finite(name, value)
    if found <= 0:
        raise ValueError(f"{name} must be > 0, got {found}")
    return found


def at_least(bound: int, name: str, value: object) -> float:
    """A finite number >= ``bound``."""
    found = finite(name, value)
    if found < bound:
        raise ValueError(f"{name} must be >= {bound}, got {found}")
    return found


def at_most_one(name: str, value: object) -> float:
    """A number in [0, 1]."""
    found = at_least(0, name, value)
    if found > 1:
        raise ValueError(f"{name} must be <= 1, got {found}")
    return found


def numbers(name: str, values: object) -> list[float]:
    """Finite numbers."""
    return [finite(f"{name}[{index}]", value) for index, value in enumerate(items(name, values, "numbers"))]


def increasing(name: str, values: object) -> list[float]:
    """Finite numbers, each greater than the one before."""
    found = numbers(name, values)
    for earlier, later in itertools.pairwise(found):
        if earlier >= later:
            raise ValueError(f"{name} must be strictly increasing, got {earlier} before {later}")
    return found


def items(name: str, values: object, kind: str) -> list[object]:
    """The elements of an iterable that is no text."""
    if not isinstance(values, Iterable) or isinstance(values, str | bytes):
        raise TypeError(f"{name} must be a sequence of {kind}, got {values!r}")
    return list(values)


def flag(name: str, value: object) -> bool:
    """True or False."""
    if not isinstance(value, Hashable) or value not in (True, False):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def label(name: object) -> str | None:
    """Return the name of a schedule."""
    if name is None or isinstance(name, str):
        return name
    raise TypeError(f"name must be a string or None, got {name!r}")


def choice(name: str, value: object, offered: Collection[str]) -> str:
    """One of the strings offered."""
    if not isinstance(value, str) or value not in offered:
        raise ValueError(f"{name} must be {' or '.join(map(repr, offered))}, got {value!r}")
    return value


def elapsed(step: float) -> float:
    """The step that a schedule is called with: a finite number >= 0."""
    return at_least(0, "step", step)
