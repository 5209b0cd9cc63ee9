"""How parameters and state are kept in memory: in 16 bits, in 8, or as they are worked with.

A step works in float32, and in float64 on parameters of float64. What is kept in fewer bytes is decoded when the step
reads it and encoded when it writes it, in the same pass over memory.

**Parameters** of float16 and bfloat16 (arrays of `ml_dtypes`, or uint16 arrays that an override calls
``{"dtype": "bfloat16"}``) are rounded to the nearest number, as torch does, unless the optimizer is told otherwise:
``master_weights="float32"`` keeps a float32 beside each, ``"split"`` only the half that a bfloat16 lacks,
``compensation="kahan"`` what the rounding took away; ``stochastic_rounding=True`` keeps nothing.

Parameters of float32 may have **copies** in 16 bits, which `Optimizer.build` is given: each step writes them, too,
rounded to the nearest number. That is what a GPU computes with whose optimizer runs on the host.

**Slots** follow ``slot_dtype``. Those of 16 bits are always rounded at random: with a share of 0.999 kept at each step,
the nearest number would never be another one. In 8 bits each block of 256 numbers has a scale; parameters of less than
4096 elements keep theirs in float32, and so do copies of a parameter. An override ``{"slot_dtype": ...}`` chooses for
some parameters only.

Rounding at random follows from the seed, the number of updates and an element's place: not from threads, or packing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .device import CudaArray
from .device.strides import memory_order
from .kernels.cpu.conversion import decoded, encode
from .kernels.cpu.engines import takes_formats
from .kernels.formats import FORMATS, OWN
from .kernels.formats.kept import Kept
from .kernels.registry import RULES, Slot
from .parameters import HALVES, Parameter, check_flag, check_slot_dtype
from .signatures import FORMAT

_WAYS = "master_weights", "compensation", "stochastic_rounding"
"""Options that say how to keep what a parameter of 16 bits cannot hold."""

LEAST_SCALED = 4096
"""Elements from which on a parameter's slots may be kept in 8 bits."""

AVERAGE = "average"

BESIDE = {"master": "master", "split": "remainder", "kahan": "compensation"}
"""What a format keeps beside a parameter: what its state array is called."""


def check_options(optimizer: Any) -> None:
    """Refuse options that make no sense."""
    check_slot_dtype("slot_dtype", optimizer.slot_dtype)
    check_masters("master_weights", optimizer.master_weights)
    check_compensation("compensation", optimizer.compensation)
    check_flag("stochastic_rounding", optimizer.stochastic_rounding)
    check_seed("seed", optimizer.seed)
    check_ways(vars(optimizer))
    if isinstance(optimizer.slot_dtype, Mapping) and AVERAGE in optimizer.slot_dtype and not optimizer.use_ema:
        raise ValueError("slot_dtype names the average, and there is none: use_ema=True keeps one")


def check_masters(name: str, value: Any) -> None:
    """Refuse what is no kind of masters."""
    check_choice(name, value, ("float32", "split"))


def check_compensation(name: str, value: Any) -> None:
    """Refuse what is no way to compensate."""
    check_choice(name, value, ("kahan",))


def check_seed(name: str, seed: Any) -> None:
    """Refuse what cannot be a seed."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
        raise ValueError(f"{name} must be an int in [0, 2**63), got {seed!r}")


def check_ways(options: Mapping[str, Any]) -> None:
    """Refuse two ways at once to keep what a parameter of 16 bits cannot hold."""
    ways = [name for name in _WAYS if options[name]]
    if len(ways) > 1:
        raise ValueError(f"{' and '.join(ways)} are both set: choose one way to keep what 16 bits cannot hold")


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Refuse what is neither None nor one of some strings."""
    if value is not None and value not in allowed:
        raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))} or None, got {value!r}")


def said(optimizer: Any) -> dict[str, Any]:
    """Return those options that are not as by default."""
    found = {name: getattr(optimizer, name) for name in FORMAT}
    found["slot_dtype"] = dict(found["slot_dtype"]) if isinstance(found["slot_dtype"], Mapping) else found["slot_dtype"]
    return {name: value for name, value in found.items() if value}


def formats_of(optimizer: Any, parameter: Parameter, branch: str) -> tuple[tuple[str, str], ...]:
    """Name the format of each kind of a parameter's numbers that has one: ``""`` for itself, "average", and its slots.

    Raises
    ------
    TypeError, ValueError
        If the options cannot be met, or name a slot that there is not.
    """
    chosen = parameter.settings.get("slot_dtype", optimizer.slot_dtype)
    if not (chosen or parameter.format or parameter.copied_as):
        return _without_format(optimizer, parameter, branch)
    scalars = type(optimizer._scalars(branch, 1.0, 1))
    slots = optimizer._slots_of(scalars)
    found = {"": format_of_parameter(optimizer, parameter)}
    if isinstance(chosen, Mapping) and chosen.keys() - {*slots, AVERAGE}:
        unknown = ", ".join(map(repr, sorted(chosen.keys() - {*slots, AVERAGE})))
        raise ValueError(f"slot_dtype: there is no slot {unknown}: the slots are {', '.join([*slots, AVERAGE])}")
    for name, slot in slots.items():
        kind = chosen.get(name) if isinstance(chosen, Mapping) else chosen
        found[name] = format_of_slot(kind, slot, parameter)
    if optimizer.use_ema and isinstance(chosen, Mapping) and AVERAGE in chosen:
        found[AVERAGE] = _of_half(chosen[AVERAGE], parameter)
    found = {name: kind for name, kind in found.items() if kind}
    if (found or chosen not in (None, "float32")) and not takes_formats(scalars):
        raise TypeError(
            f"parameter {parameter.path}: the rule {RULES[scalars].name} keeps its parameters and state in float32 or "
            "float64: cast the parameter, and leave slot_dtype and copies out"
        )
    return tuple(found.items())


def _without_format(optimizer: Any, parameter: Parameter, branch: str) -> tuple[()]:
    """Refuse ways to keep what 16 bits cannot hold where a rule works on float32 numbers in the parameter's place."""
    ways = [name for name in _WAYS if getattr(optimizer, name)]
    if parameter.kept_as and ways:
        rule = RULES[type(optimizer._scalars(branch, 1.0, 1))].name
        raise TypeError(
            f"parameter {parameter.path}: the rule {rule} steps {parameter.kept_as} in float32, and rounds to the "
            f"nearest: leave {ways[0]} out, or cast the parameter"
        )
    return ()


def format_of_parameter(optimizer: Any, parameter: Parameter) -> str:
    """Name the format of a parameter's own numbers; "" if it has none."""
    kind = parameter.format
    if not kind:
        return f"float32 {parameter.copied_as} copy" if parameter.copied_as else ""
    if optimizer.master_weights == "split":
        if kind != "bfloat16":
            raise ValueError(
                f'parameter {parameter.path}: master_weights="split" takes bfloat16 apart, and this is {kind}: '
                'choose "float32"'
            )
        return "bfloat16 split"
    if optimizer.master_weights:
        return f"{kind} master"
    if optimizer.compensation:
        return f"{kind} kahan"
    return f"{kind} at random" if optimizer.stochastic_rounding else kind


def format_of_slot(kind: str | None, slot: Slot, parameter: Parameter) -> str:
    """Name the format of a slot that is to be of some kind, as of ``slot_dtype``; "" if it has none."""
    if kind not in ("8bit", *OWN):
        return _of_half(kind, parameter)
    if parameter.array.size < LEAST_SCALED and FORMATS[kind].scaled:
        return ""
    return "8bit squares" if kind == "8bit" and slot.squares else kind


def _of_half(kind: str | None, parameter: Parameter) -> str:
    if kind in HALVES:
        return f"{kind} slot at random"
    return "float32" if kind == "float32" and parameter.dtype == np.float64 else ""


def parts_of(formats: Mapping[str, str], slots: Mapping[str, Slot]) -> dict[str, Slot]:
    """The arrays of all slots, and what is kept beside the parameter, by name: the first of a slot has its name.

    ``formats`` are as of `formats_of`.
    """
    found: dict[str, Slot] = {}
    for name, slot in slots.items():
        found |= _parts_of_slot(name, slot, formats.get(name))
    return found | beside(formats)


def beside(formats: Mapping[str, str]) -> dict[str, Slot]:
    """The array that is kept beside the parameter, by name, if there is one."""
    kind = formats.get("", "float32")
    name = BESIDE.get(kind.rpartition(" ")[2])
    return {name: Slot(dtype=FORMATS[kind].parts[1].str)} if name else {}


class Formats:
    """How a plan's numbers are kept.

    Parameters
    ----------
    formats : dict
        As of `formats_of`.
    numbers : list of int
        The parameters' numbers.
    counters : array.array
        Its first number counts the updates.
    seed : int
    begins : bool
        Whether slots are to begin; otherwise they hold numbers already, as those of a framework's state do.
    """

    def __init__(
        self, formats: dict[str, str], numbers: list[int], counters: Any, seed: int, begins: bool = True
    ) -> None:
        self.formats, self._numbers = formats, np.array(numbers, np.int64)
        self._counters, self._seed, self._begins = counters, seed, begins

    def keep(self, plan: Any, slots: dict[str, Slot]) -> Kept:
        """Give what there is of the arrays that a plan has made by `parts_of`; fill them if slots begin."""
        own = [[array for array in (p.array, p.copy) if array is not None] for p in plan.parameters]
        for name in beside(self.formats):
            own = [[*parts, array] for parts, array in zip(own, plan.slots[name], strict=True)]
        parts: dict[str, list[list[Any]]] = {"": own}
        for name, slot in slots.items():
            names = list(_parts_of_slot(name, slot, self.formats.get(name)))
            parts[name] = [list(each) for each in zip(*(plan.slots[part] for part in names), strict=True)]
        kept = Kept(self.formats, parts, self._numbers, self._counters, self._seed, plan.place)
        for name, slot in slots.items() if self._begins else ():
            self._begin(kept, name, slot, plan.dtype)
        return kept

    def _begin(self, kept: Kept, name: str, slot: Slot, dtype: np.dtype[Any]) -> None:
        for k, parts in enumerate(kept.parts[name]):
            if parts[0] is None or not (slot.copies_parameter or (slot.start and name in self.formats)):
                continue
            size = parts[0].size
            values = numbers_of(kept, "", k, dtype) if slot.copies_parameter else np.full(size, slot.start, dtype)
            put(kept, name, k, values)


def _parts_of_slot(name: str, slot: Slot, kind: str | None) -> dict[str, Slot]:
    if kind is None:
        return {name: slot}
    format = FORMATS[kind]
    found = {name: slot._replace(dtype=format.parts[0].str)}
    if len(format.parts) == 2:
        found[f"{name}/beside"] = slot._replace(dtype=format.parts[1].str)
    return found | ({f"{name}/scale": slot._replace(dtype="f4", scales=True)} if format.scaled else {})


def fill_copy(parameter: Parameter) -> None:
    """Write a parameter to its copy, if it has one."""
    if parameter.copy is not None:
        encode(parameter.copied_as, [parameter.copy], in_memory_order(parameter.array))


def in_memory_order(array: Any) -> Any:
    """The elements of an array without gaps, in the order in which they lie."""
    return np.ravel(array, order="K")


def numbers_of(kept: Kept, name: str, k: int, dtype: np.dtype[Any]) -> Any:
    """The numbers, in memory order, of a parameter (``""``), its average or a slot, of parameter ``k`` of a plan.

    They are on the host; a GPU is waited for.
    """
    parts = kept.parts[name][k]
    if kept.place.on_gpu:
        parts = [flat_view(kept.place.to_host(part)) for part in parts]
    if name not in kept.formats:
        return in_memory_order(parts[0])
    return decoded(kept.formats[name], parts, parts[0].size, dtype)


def put(kept: Kept, name: str, k: int, numbers: Any) -> None:
    """Keep numbers, in memory order, as a parameter, its average or a slot."""
    _put(kept, kept.formats.get(name, ""), kept.parts[name][k], numbers)


def _put(kept: Kept, kind: str, parts: list[Any], numbers: Any) -> None:
    """Keep numbers, in memory order, in the parts of a format, "" for none."""
    if not kept.place.on_gpu:
        return _encode(kind, parts, numbers)
    new = [host_like(part) for part in parts]
    _encode(kind, new, numbers)
    for part, values in zip(parts, new, strict=True):
        kept.place.from_host(part, values)


def _encode(kind: str, parts: list[Any], numbers: Any) -> None:
    if kind:
        encode(kind, parts, numbers)
    else:
        flat_view(parts[0])[...] = numbers


def host_like(array: Any, dtype: Any = None) -> Any:
    """A new array on the host that lies as an array without gaps does, on any device."""
    order = memory_order(array)
    in_memory = np.empty([array.shape[axis] for axis in order], dtype or array.dtype)
    return in_memory.transpose(np.argsort(order)) if order else in_memory.reshape(())


def bit_patterns(array: Any) -> Any:
    """An array of 16 bits that is no NumPy dtype, such as bfloat16, as its bit patterns; any other as it is."""
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def flat_view(array: Any) -> Any:
    """A view of an array without gaps as one axis, in memory order."""
    return array.transpose(memory_order(array)).reshape(-1)


def load_averages(kept: Kept, for_good: bool) -> None:
    """Put averages in the place of the parameters; ``for_good``: also in that of what is kept beside these."""
    for k, parts in enumerate(kept.parts[""]):
        average = numbers_of(kept, AVERAGE, k, np.dtype(np.float32))
        if "" not in kept.formats or for_good:
            put(kept, "", k, average)
        else:
            _put(kept, kept.formats[""].split()[0], parts[:1], average)


def shown(array: Any, name: str, kept: Kept | None) -> Any:
    """A state array as users see it: one of 16 bits in its dtype, as far as NumPy or ml_dtypes have it.

    On a GPU bfloat16 stays uint16: other libraries do not know it from ``__cuda_array_interface__``.
    """
    kind = "" if kept is None else kept.formats.get(name) or (kept.formats.get("", "") * (name == "compensation"))
    if array is None or array.dtype != np.uint16 or not kind:
        return array
    if kind.startswith("float16"):
        return array.view(np.float16)
    if isinstance(array, CudaArray):
        return array
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        return array
    return array.view(bfloat16)
