"""What may be a parameter, and what a user says about some of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from .device import HOST, AnyArray, Place, place_of
from .device import Array as Array
from .device.strides import is_dense, lies_alike, memory_order
from .flat import flatten
from .kernels.formats import BLOCK, OWN
from .kernels.registry import Slot


class Parameter(NamedTuple):
    """One array to be optimised."""

    path: str
    array: AnyArray
    axes: tuple[int, ...]  # slowest first, as they lie in memory
    trainable: bool
    multiplier: float  # of the learning rate
    settings: Mapping[str, Any]  # what overrides say of it
    origin: AnyArray | None = None  # the user's memory, if ``array`` stands in for it: in C order, or in float32
    place: Place = HOST
    foreign: Any = None  # the user's own object, where that is not ``array``
    kept_as: str = ""  # "bfloat16" or "float16": the user's array is the bit patterns, uint16
    copy: AnyArray | None = None  # what each step writes the parameter to, too: bit patterns, uint16
    copied_as: str = ""  # what these are: "bfloat16" or "float16"

    @property
    def in_place(self) -> AnyArray:
        """The array in the user's memory."""
        return self.array if self.origin is None else self.origin

    @property
    def format(self) -> str:
        """What ``array`` holds bit patterns of: "bfloat16" or "float16"; "" if it holds numbers."""
        return self.kept_as if self.array.dtype == np.uint16 else ""

    @property
    def given(self) -> Any:
        """The array that the user knows."""
        return self.in_place if self.foreign is None else self.foreign

    @property
    def dtype(self) -> np.dtype[Any]:
        """What steps work in."""
        return np.dtype(np.float32) if self.kept_as else self.array.dtype

    def in_c_order(self) -> Parameter:
        """The parameter with a C-ordered copy standing in for its array."""
        axes = tuple(range(self.array.ndim))
        return self._replace(array=self.place.in_c_order(self.array), axes=axes, origin=self.array)

    def in_float32(self) -> Parameter:
        """The parameter, of 16 bits, with float32 numbers in its order standing in for its array."""
        return self._replace(array=np.zeros_like(self.array, np.float32), origin=self.array)

    def shape_of(self, slot: Slot) -> tuple[int, ...]:
        """The shape of the parameter's array in a slot."""
        if slot.scales:
            return (-(-self.array.size // BLOCK),)
        return tuple(self.array.shape[axis] for axis in slot.axes_of(self.array.ndim))

    def view_of(self, flat: AnyArray, slot: Slot) -> AnyArray:
        """``flat``, elements in the parameter's memory order, in the shape and axis order of a slot's array."""
        if slot.scales:
            return flat
        kept = slot.axes_of(self.array.ndim)
        axes = [axis for axis in self.axes if axis in kept]
        in_memory = flat.reshape([self.array.shape[axis] for axis in axes])
        return in_memory.transpose(np.argsort(axes)) if axes else in_memory.reshape(())


def collect(structure: Any, overrides: Mapping[str, Mapping[str, Any]] | None, copies: Any = None) -> list[Parameter]:
    """Check every leaf of a structure, and of the one of their ``copies``, and gather what is to be known of it.

    Raises
    ------
    TypeError, ValueError
        If an array cannot be updated in place, two of them overlap, they are not all in one place, or an override makes
        no sense. Each message names the path.
    RuntimeError
        If they are on a GPU that cannot be reached.
    """
    paths, given = flatten(structure)
    place = place_of([f"parameter {path}" for path in paths], given)
    settings = settings_of(paths, overrides)
    views = [place.view(f"parameter {path}", known) for path, known in zip(paths, given, strict=True)]
    kinds = [_kind_of(*each) for each in zip(paths, views, settings, strict=True)]
    arrays = [view.view(np.uint16) if kind else view for view, kind in zip(views, kinds, strict=True)]
    check_parameters(paths, views, kinds, place)
    found = [
        parameter_of(path, array, setting, place)._replace(foreign=None if array is known else known, kept_as=kind)
        for path, known, array, setting, kind in zip(paths, given, arrays, settings, kinds, strict=True)
    ]
    return found if copies is None else with_copies(found, copies)


def with_copies(parameters: list[Parameter], copies: Any) -> list[Parameter]:
    """Give parameters the arrays of 16 bits that are to be copies of them: a structure with the same paths, or fewer.

    Raises
    ------
    TypeError, ValueError
        If an array cannot be a parameter's copy, or belongs to none. Each message names the path.
    """
    paths, arrays = flatten(copies)
    given, known = dict(zip(paths, arrays, strict=True)), {parameter.path for parameter in parameters}
    if unknown := [path for path in paths if path not in known]:
        raise ValueError(f"copies: {_few(unknown)} belong to no parameter; the paths are {_few(sorted(known))}")
    found = [p._replace(**_copy_of(p, given[p.path])) if p.path in given else p for p in parameters]
    both = [(p.path, p.array) for p in found] + [(f"{p.path} (copy)", p.copy) for p in found if p.copy is not None]
    check_disjoint([path for path, _ in both], [array for _, array in both], HOST, "a copy needs memory of its own")
    return found


def _copy_of(parameter: Parameter, array: Any) -> dict[str, Any]:
    name = f"copy of parameter {parameter.path}"
    if parameter.place.on_gpu or parameter.array.dtype != np.float32:
        where = "on a GPU" if parameter.place.on_gpu else f"of {parameter.kept_as or parameter.array.dtype}"
        raise TypeError(f"{name}: copies are of parameters of float32 on the host, and this is one {where}")
    view, kind = HOST.view(name, array), kept_as(array)
    if not kind or not view.dtype.isnative:
        raise TypeError(f"{name}: expected bfloat16 or float16, got {view.dtype}")
    if view.shape != parameter.array.shape or not lies_alike(view, parameter.array):
        raise ValueError(
            f"{name}: expected shape {parameter.array.shape}, its axes in memory in the parameter's order, got "
            f"{view.shape}, strides {view.strides}"
        )
    if not view.flags.writeable or not view.flags.aligned:
        raise ValueError(f"{name}: its memory is read-only, or not aligned to its dtype: pass another array")
    return {"copy": view.view(np.uint16), "copied_as": kind}


def parameter_of(path: str, array: AnyArray, setting: Mapping[str, Any], place: Place = HOST) -> Parameter:
    """The parameter of an array that holds numbers of its dtype, or those that an override says."""
    return Parameter(
        path,
        array,
        memory_order(array),
        setting.get("trainable", True),
        float(setting.get("learning_rate_multiplier", 1.0)),
        setting,
        place=place,
        kept_as=setting.get("dtype", ""),
    )


def kept_as(array: Any, declared: str = "") -> str:
    """Name the format of 16 bits in which an array holds numbers: by its dtype, or as it is declared; "" for none."""
    kind = dtype_of(array)
    return declared if kind == "uint16" else kind if kind in HALVES else ""


def dtype_of(array: Any) -> str:
    """Name what an array holds."""
    return getattr(array, "holds", "") or str(array.dtype).rpartition(".")[2]  # torch's have its name before theirs


HALVES = "bfloat16", "float16"
"""Dtypes of 16 bits that hold numbers."""


def _kind_of(path: str, array: AnyArray, setting: Mapping[str, Any]) -> str:
    declared = setting.get("dtype", "")
    if declared and dtype_of(array) != "uint16":
        raise TypeError(f"parameter {path}: an override says {declared}, which is for uint16, not {dtype_of(array)}")
    return kept_as(array, declared) if array.dtype.isnative else ""


def check_parameters(paths: list[str], arrays: list[AnyArray], kinds: list[str], place: Place = HOST) -> None:
    """Refuse arrays that no kernel could update in place; ``kinds`` are as `kept_as` has them.

    Raises
    ------
    TypeError, ValueError
        If there is one, or two overlap.
    """
    for path, array, kind in zip(paths, arrays, kinds, strict=True):
        _check_parameter(path, array, kind)
    check_disjoint(paths, arrays, place)


def _check_parameter(path: str, array: AnyArray, kind: str) -> None:
    if not kind and array.dtype.newbyteorder("=") not in (np.float32, np.float64):
        is_code = array.dtype == np.uint16
        hint = ': say {"dtype": "bfloat16"} in an override, if it is' if is_code else ": cast it first"
        raise TypeError(
            f"parameter {path}: expected float32, float64, bfloat16 or float16, got {dtype_of(array)}{hint}"
        )
    if not array.dtype.isnative:
        raise ValueError(
            f"parameter {path}: is not in native byte order: use array.astype(array.dtype.newbyteorder('='))"
        )
    if not array.flags.writeable:
        raise ValueError(f"parameter {path}: is read-only and cannot be updated in place: pass a writeable array")
    if not array.flags.aligned:
        raise ValueError(f"parameter {path}: its memory is not aligned to its dtype: pass array.copy()")
    if not is_dense(array):
        raise ValueError(
            f"parameter {path}: has gaps, overlaps itself or runs backwards in memory "
            f"(shape {array.shape}, strides {array.strides}): pass a copy, or the array that owns the memory"
        )


def check_disjoint(
    paths: list[str], arrays: list[AnyArray], place: Place, instead: str = "pass a shared parameter once"
) -> None:
    """Refuse arrays without gaps that share memory; the message says what to do instead."""
    starts = [place.address(array) for array in arrays]
    ranges = sorted(
        (start, start + array.nbytes, path) for start, array, path in zip(starts, arrays, paths, strict=True)
    )
    ranges = [item for item in ranges if item[0] < item[1]]
    for (_, end, path), (start, _, other) in pairwise(ranges):
        if start < end:
            raise ValueError(f"parameters {path} and {other} share memory: {instead}")


def settings_of(paths: list[str], overrides: Mapping[str, Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """What overrides say of each path.

    Raises
    ------
    TypeError, ValueError
        If one makes no sense, matches no path, or two set the same for one.
    """
    settings: list[dict[str, Any]] = [{} for _ in paths]
    if overrides is None:
        return settings
    if not isinstance(overrides, Mapping):
        raise TypeError(f"overrides must map regular expressions to settings, got {type(overrides).__name__}")
    for pattern, values in overrides.items():
        _check_override(pattern, values)
        chosen = [k for k, path in enumerate(paths) if re.search(pattern, path)]
        if not chosen:
            raise ValueError(f"override {pattern!r} matches no parameter; the paths are {_few(paths)}")
        for k in chosen:
            twice = settings[k].keys() & values.keys()
            if twice:
                raise ValueError(
                    f"parameter {paths[k]}: two overrides set {sorted(twice)[0]!r}, one of them {pattern!r}"
                )
            settings[k].update(values)
    return settings


def _check_override(pattern: Any, values: Any) -> None:
    check_pattern("overrides", pattern)
    if not isinstance(values, Mapping):
        raise TypeError(f"override {pattern!r}: expected a dict of settings, got {type(values).__name__}")
    for key, value in values.items():
        if key == "trainable":
            if not isinstance(value, bool):
                raise TypeError(f"override {pattern!r}: trainable must be a bool, got {value!r}")
        elif key == "dtype":
            if value not in HALVES:
                raise ValueError(f"override {pattern!r}: dtype must be {' or '.join(map(repr, HALVES))}, got {value!r}")
        elif key == "slot_dtype":
            check_slot_dtype(f"override {pattern!r}: slot_dtype", value)
        elif key in ("learning_rate_multiplier", "weight_decay"):
            if not (key == "weight_decay" and value is None):
                check_number(f"override {pattern!r}: {key}", value, low=0.0)
        else:
            valid = "learning_rate_multiplier, weight_decay, trainable, dtype, slot_dtype"
            raise ValueError(f"override {pattern!r}: unknown setting {key!r}; valid are {valid}")


SLOT_DTYPES = "float32", "bfloat16", "float16", "8bit"


def check_slot_dtype(name: str, given: Any) -> None:
    """Refuse what is neither None nor a way to keep slots, nor a dict of slot names to such."""
    for slot, kind in given.items() if isinstance(given, Mapping) else [("", given)]:
        where = f"{name} of {slot!r}" if slot else name
        allowed = (*SLOT_DTYPES, *OWN)
        if kind is not None and not (isinstance(kind, str) and kind in allowed):
            raise ValueError(f"{where} must be one of {', '.join(map(repr, allowed))}, got {kind!r}")
        if slot == "average" and kind == "8bit":
            raise ValueError(f'{name}: an average cannot be kept in "8bit": use "bfloat16" or "float16"')


def check_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, below: bool = False) -> None:
    """Refuse what is no finite real number in ``[low, high]`` (``[low, high)`` if ``below``)."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    if value < low or value > high or (below and value == high):
        raise ValueError(f"{name} must be in {_interval(low, high, below)}, got {value}")


def check_count(name: str, value: Any, least: int) -> None:
    """Refuse what is no integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be a bool, got {value!r}")


def check_pattern(name: str, pattern: Any) -> None:
    """Refuse what is no regular expression."""
    if not isinstance(pattern, str):
        raise TypeError(f"{name}: expected a regular expression, got {type(pattern).__name__}")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{name}: {pattern!r} is no regular expression: {error}") from None


def _interval(low: float, high: float, below: bool) -> str:
    left = "(-inf" if low == -math.inf else f"[{low:g}"
    right = "inf)" if high == math.inf else f"{high:g}{')' if below else ']'}"
    return f"{left}, {right}"


def _few(paths: list[str], most: int = 8) -> str:
    shown = ", ".join(repr(path) for path in paths[:most])
    return f"{shown}, … ({len(paths)} in all)" if len(paths) > most else shown or "none"
