"""An optimizer's state as a flat dict of arrays and counters, and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from .checkpoint.tensors import Stored
from .device import AnyArray, Array, Place
from .formats import bit_patterns, flat_view, host_like, parts_of, put
from .kernels.cpu.conversion import decoded
from .kernels.formats import FORMATS
from .kernels.registry import Slot
from .parameters import Parameter
from .uninterrupted import uninterrupted

TOLD = "formats"
"""Name under which a state says how its arrays are kept, as JSON, if not all are as steps work with them."""

AXES = "axes"

_CODES = [np.dtype(code) for code in ("u1", "i1", "u2", "i2", "u4", "i4")]

VERSION = 1
"""Of what formats are called and how they keep numbers."""

MOST_COUNTED = 2**62
"""Counters are below: compiled code counts in 64 bits."""


def _arrays(optimizer: Any) -> Iterator[tuple[str, AnyArray]]:
    """Every state array under its name, ``path/slot``, bit patterns as such."""
    arrays = optimizer._slots_in_memory()
    for slot, of_parameters in arrays.items():
        for parameter, array in zip(optimizer._parameters, of_parameters, strict=True):
            if array is not None:
                yield f"{parameter.path}/{slot}", array


def formats_in_memory(optimizer: Any) -> dict[str, dict[str, str]]:
    """For each parameter, by its path, the formats of what is kept in one."""
    found = {
        parameter.path: {**_kept(plan.kept.formats), **(_order(parameter) if plan.kept.scaled else {})}
        for plan in optimizer._plans
        if plan.kept is not None
        for parameter in plan.parameters
    }
    return {path: formats for path, formats in found.items() if formats}


def _kept(formats: dict[str, str]) -> dict[str, str]:
    """Formats of what belongs to the state: copies do not."""
    return {name: kind for name, kind in formats.items() if not kind.endswith(" copy")}


def _order(parameter: Parameter) -> dict[str, str]:
    """The parameter's axes as they lie in memory, where blocks with a scale go along them, if not in C order."""
    in_order = parameter.axes == tuple(range(len(parameter.axes)))
    return {} if in_order else {AXES: ",".join(map(str, parameter.axes))}


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
    """Copies of the state arrays, and what is no array."""
    return {**snapshot(optimizer), **not_arrays(optimizer)}


def not_arrays(optimizer: Any) -> dict[str, int | float | str]:
    """The counters, and what is to be said of formats."""
    formats = formats_in_memory(optimizer)
    told = {"version": VERSION, "parameters": formats}
    return {**_counters(optimizer), **({TOLD: json.dumps(told, sort_keys=True)} if formats else {})}


def _counters(optimizer: Any) -> dict[str, int | float]:
    return {name: getattr(optimizer, attribute) for name, attribute in optimizer._counters().items()}


def load(optimizer: Any, given: Mapping[str, Any], strict: bool, convert: bool = False) -> None:
    """Check everything, then write it: see `taking_over`."""
    write(optimizer, taking_over(optimizer, given, strict, convert))


def write(optimizer: Any, writes: list[Callable[[], Any]]) -> None:
    """Do what writes a state that has been checked; a signal finds it done or not begun, other than on a GPU."""

    def all_of_them() -> None:
        for each in writes:
            each()

    if optimizer._place.on_gpu:
        all_of_them()  # its current stream is the thread's
    else:
        uninterrupted(all_of_them)


def taking_over(
    optimizer: Any, given: Mapping[str, Any], strict: bool, convert: bool = False
) -> list[Callable[[], Any]]:
    """Check everything; what writes it. What is kept in other formats is refused, or converted.

    Raises
    ------
    TypeError, ValueError
        If something does not fit.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"expected a mapping as state_dict() makes it, got {type(given).__name__}")
    optimizer._confirm()
    given = dict(given)
    theirs, own = _told(given.pop(TOLD, None)), formats_in_memory(optimizer)
    if theirs != own and not convert:
        raise ValueError(
            f"the state is kept in other formats than here ({theirs or 'none'}, here {own or 'none'}): "
            "load_state_dict(..., convert=True) converts it"
        )
    counters = _counters(optimizer)
    if theirs != own:
        if strict:
            _check_names({*_names_of(optimizer, theirs), *counters}, set(given))
        writes, arrays = _conversions(optimizer, given, theirs, own), {}
        given = {name: value for name, value in given.items() if name in counters}
    else:
        writes, arrays = [], dict(_arrays(optimizer))
    if strict:
        _check_names({*arrays, *counters}, set(given))
    new_arrays = {name: _checked_array(name, given[name], array) for name, array in arrays.items() if name in given}
    new_counters = {name: checked_counter(name, given[name], old) for name, old in counters.items() if name in given}
    attributes = optimizer._counters()
    return [
        *(partial(fill, optimizer._place, arrays[name], values) for name, values in new_arrays.items()),
        *writes,
        *(partial(setattr, optimizer, attributes[name], number) for name, number in new_counters.items()),
        optimizer._state_is_set,
    ]


def fill(place: Place, array: AnyArray, values: Any) -> None:
    """Write values of the array's shape and dtype; those of a file without a copy of them all, on the host."""
    if isinstance(values, Stored) and not place.on_gpu:
        values.read_into(array)
    else:
        place.from_host(array, np.asarray(values))


def _told(formats: Any) -> dict[str, dict[str, str]]:
    """Read what a state says of its formats."""
    if formats is None:
        return {}
    try:
        told = json.loads(str(np.asarray(formats)))
        version, parameters = told["version"], told["parameters"]
        well_formed = all(isinstance(kind, str) for kinds in parameters.values() for kind in kinds.values())
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        well_formed = False
    if not well_formed:
        raise ValueError(f"state {TOLD}: expected what state_dict() says, got {formats!r}")
    if version != VERSION:
        raise ValueError(f"state {TOLD}: is of version {version}, and this fastopt knows version {VERSION}")
    return parameters


def _conversions(
    optimizer: Any, given: Mapping[str, Any], theirs: dict[str, dict[str, str]], own: dict[str, dict[str, str]]
) -> list[Callable[[], Any]]:
    """Check a state in other formats; what writes it. What is kept beside parameters comes along if it fits."""
    writes: list[Callable[[], Any]] = []
    for plan in optimizer._plans:
        for k, parameter in enumerate(plan.parameters):
            path = parameter.path
            their, here = theirs.get(path, {}), own.get(path, {})
            for name in plan.whole_slots:
                if f"{path}/{name}" in given and plan.slots[name][k] is not None:
                    numbers = _numbers_of(f"{path}/{name}", given, their.get(name), their.get(AXES), parameter)
                    _check_fits(f"{path}/{name}", numbers, here.get(name, ""))
                    writes.append(partial(_write, optimizer, plan, name, k, numbers))
            for name in plan.beside:
                array, values = plan.slots[name][k], given.get(f"{path}/{name}")
                if values is None or their.get("") != here.get(""):
                    values = np.zeros(array.shape, array.dtype)  # nothing is beside: the parameter is what it is
                values = _checked_array(f"{path}/{name}", values, array)
                writes.append(partial(fill, optimizer._place, array, values))
    return writes


def _names_of(optimizer: Any, formats: dict[str, dict[str, str]]) -> Iterator[str]:
    """Names of the arrays of a state that is kept in some formats."""
    for plan in optimizer._plans:
        for k, parameter in enumerate(plan.parameters):
            slots = {name: Slot() for name in plan.whole_slots if plan.slots[name][k] is not None}
            for name in parts_of(_known(formats.get(parameter.path, {})), slots):
                yield f"{parameter.path}/{name}"


def _known(formats: dict[str, str]) -> dict[str, str]:
    """Refuse formats that nobody has registered here."""
    found = {name: kind for name, kind in formats.items() if name != AXES}
    for kind in found.values():
        if kind not in FORMATS:
            raise ValueError(f"the state is kept in the format {kind!r}, which is not registered here")
    return found


def _check_fits(name: str, numbers: Array, kind: str) -> None:
    """Refuse finite numbers that a format would make infinite."""
    if kind.startswith("float16") and np.any(np.isfinite(numbers) & (np.abs(numbers) > np.finfo(np.float16).max)):
        raise ValueError(f"state {name}: holds numbers that do not fit float16")


def _numbers_of(name: str, given: Mapping[str, Any], kind: str | None, axes: str | None, parameter: Parameter) -> Array:
    """A slot of a state as numbers in the parameter's shape, and in its order."""
    if name not in given:
        raise ValueError(f"the state does not fit: missing {name}")
    numbers = host_like(parameter.array, parameter.dtype)
    if kind is None:
        return np.asarray(_checked_array(name, given[name], numbers))
    _known({name: kind})
    order = [int(axis) for axis in axes.split(",")] if axes else list(range(numbers.ndim))
    stored = []
    for each, slot in parts_of({name: kind}, {name: Slot()}).items():
        part, shape = bit_patterns(np.asarray(given.get(each, ()))), parameter.shape_of(slot)
        if part.shape != shape or part.dtype != slot.dtype:
            raise ValueError(f"state {each}: expected {slot.dtype} {shape} in the format {kind!r}, got {part.shape}")
        stored.append(np.ascontiguousarray(part if slot.scales else part.transpose(order)))
    in_order = decoded(kind, stored, numbers.size, numbers.dtype).reshape([numbers.shape[axis] for axis in order])
    numbers[...] = in_order.transpose(np.argsort(order))
    return numbers


def _write(optimizer: Any, plan: Any, name: str, k: int, numbers: Array) -> None:
    """Keep a slot's numbers as the plan keeps them."""
    if plan.kept is None:
        optimizer._place.from_host(plan.slots[name][k], numbers)
    else:
        put(plan.kept, name, k, flat_view(numbers))


def _check_names(expected: set[str], given: set[str]) -> None:
    missing, unexpected = sorted(expected - given), sorted(given - expected, key=str)
    if missing or unexpected:
        raise ValueError(
            f"the state does not fit: missing {missing[:5] or 'nothing'}, unexpected {unexpected[:5] or 'nothing'}; "
            "strict=False passes over such names"
        )


def _checked_array(name: str, values: Any, array: AnyArray) -> Array | Stored:
    """Values as an array's dtype; of a file and of that dtype, as they are."""
    if isinstance(values, Stored) and (values.dtype, values.shape) == (array.dtype, array.shape):
        return values
    values = np.asarray(values)
    if array.dtype in _CODES:
        values = bit_patterns(values)
        if values.dtype != array.dtype:
            raise TypeError(f"state {name}: is kept as {array.dtype}, and these are {values.dtype}")
    elif values.dtype.name == "bfloat16":
        values = values.astype(np.float32)
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
