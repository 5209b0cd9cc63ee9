"""An optimizer's state as a flat dict of arrays and counters, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .device import AnyArray, Array

MOST_COUNTED = 2**62
"""Counters are below: compiled code counts in 64 bits."""


def _arrays(optimizer: Any) -> Iterator[tuple[str, AnyArray]]:
    """Every state array under its name, ``path/slot``."""
    for slot, arrays in optimizer.slots.items():
        for parameter, array in zip(optimizer._parameters, arrays, strict=True):
            if array is not None:
                yield f"{parameter.path}/{slot}", array


def snapshot(optimizer: Any) -> dict[str, Array]:
    """Copies of the state arrays, on the host."""
    optimizer._confirm()
    return {name: optimizer._place.to_host(array) for name, array in _arrays(optimizer)}


def restore(optimizer: Any, arrays: Mapping[str, Array]) -> None:
    """Write back what `snapshot` returned."""
    for name, array in _arrays(optimizer):
        optimizer._place.from_host(array, arrays[name])
    optimizer._state_is_set()


def export(optimizer: Any) -> dict[str, Any]:
    """Copies of the state arrays, and the counters."""
    return {**snapshot(optimizer), **_counters(optimizer)}


def _counters(optimizer: Any) -> dict[str, int | float]:
    return {name: getattr(optimizer, attribute) for name, attribute in optimizer._counters().items()}


def load(optimizer: Any, given: Mapping[str, Any], strict: bool) -> None:
    """Check everything, then write it.

    Raises
    ------
    TypeError, ValueError
        If something does not fit; the optimizer is as it was.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"expected a mapping as state_dict() makes it, got {type(given).__name__}")
    optimizer._confirm()
    arrays, counters = dict(_arrays(optimizer)), _counters(optimizer)
    if strict:
        _check_names({*arrays, *counters}, set(given))
    new_arrays = {name: _checked_array(name, given[name], array) for name, array in arrays.items() if name in given}
    new_counters = {name: checked_counter(name, given[name], old) for name, old in counters.items() if name in given}
    for name, values in new_arrays.items():
        optimizer._place.from_host(arrays[name], values)
    for name, number in new_counters.items():
        setattr(optimizer, optimizer._counters()[name], number)
    optimizer._state_is_set()


def _check_names(expected: set[str], given: set[str]) -> None:
    missing, unexpected = sorted(expected - given), sorted(given - expected, key=str)
    if missing or unexpected:
        raise ValueError(
            f"the state does not fit: missing {missing[:5] or 'nothing'}, unexpected {unexpected[:5] or 'nothing'}; "
            "strict=False passes over such names"
        )


def _checked_array(name: str, values: Any, array: AnyArray) -> Array:
    values = np.asarray(values)
    if values.dtype.kind not in "fiu":
        raise TypeError(f"state {name}: expected numbers, got {values.dtype}")
    if values.shape != array.shape:
        raise ValueError(f"state {name}: expected shape {array.shape}, got {values.shape}")
    with np.errstate(over="ignore"):
        cast = values.astype(array.dtype)
    if not np.array_equal(np.isfinite(cast), np.isfinite(values)):
        raise ValueError(f"state {name}: holds numbers that do not fit {array.dtype}")
    return cast


def checked_counter(name: str, value: Any, old: int | float) -> int | float:
    """The value as a counter of the kind of ``old``."""
    number = np.asarray(value)
    if number.shape != () or number.dtype.kind not in "fiu" or not np.isfinite(number):
        raise ValueError(f"state {name}: expected a number, got {value!r}")
    if isinstance(old, float):
        return float(number)
    if number < 0 or number != int(number):
        raise ValueError(f"state {name}: expected a count, got {value!r}")
    if number >= MOST_COUNTED:
        raise ValueError(f"state {name}: expected a count below 2**62, got {value!r}")
    return int(number)
