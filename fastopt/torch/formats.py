"""Parameters and state in storage formats, as tensors: see `fastopt.formats`.

As torch has it, state is in the dtype of its parameter and rounded to the nearest number, unless ``slot_dtype`` says
otherwise. What there is beside that has names of its own in ``state[p]``, by which it is saved: ``master``,
``remainder`` or ``compensation`` of a parameter, and the scales of what is in 8 bits, ``exp_avg_scale`` of ``exp_avg``.
Averages of parameters of 16 bits are in float32: in 16 bits they would not move.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch

from ..device import HOST, AnyArray, Array
from ..device.strides import is_dense, lies_alike
from ..formats import BESIDE, Formats, format_of_parameter, format_of_slot, in_memory_order, put
from ..kernels.cpu.conversion import decoded
from ..kernels.cpu.engines import takes_formats
from ..kernels.formats import BLOCK, FORMATS, OWN
from ..kernels.formats.kept import Kept
from ..kernels.registry import Slot
from ..parameters import Parameter
from ..signatures import FORMAT
from .memory import HALVES, as_array, device_of, in_numpy, is_distributed, kept, local, new_state, on_device_of
from .rule import Owner

CODES = {torch.int8: "8bit", torch.uint8: "8bit squares"}
"""Dtype of what is in 8 bits → its format."""

COUNTER = "rounding_step"
"""Of the first parameter group: how often has been rounded at random."""

_SCALE = "_scale"


def check_formats(owner: Owner, group: Mapping[str, Any], path: str, tensor: torch.Tensor) -> None:
    """Refuse a parameter of 16 bits, or options of storage formats, where no step could follow them.

    Raises
    ------
    TypeError, ValueError
        If there is one; the message says what to do.
    """
    chosen, kind = owner.chosen, HALVES.get(tensor.dtype)
    options = [name for name in FORMAT if name != "seed" and getattr(chosen, name)]
    if tensor.dtype is torch.float32 and options == ["slot_dtype"] and chosen.slot_dtype == "float32":
        return  # as it would be
    if not (kind or options):
        return
    _check_slots(owner, chosen.slot_dtype)
    what = f"{path} is {tensor.dtype}" if kind else f"{options[0]}={getattr(chosen, options[0])!r}"
    instead = "leave the model in float32 and run it under torch.autocast" if kind else f"leave {options[0]} out"
    if owner.rule.needs_sparse or not takes_formats(owner.rule.structure(group)[0]):
        name = owner.__class__.__name__  # of a weak reference to it, too
        raise TypeError(f"{what}, and {name} keeps parameters and state in float32 or float64: {instead}")
    for name in ("flat", "fused_backward"):
        if getattr(chosen, name):
            raise ValueError(f"{what}, and {name}=True takes what is in float32 or float64: {instead}, or {name}")
    if chosen.master_weights == "split" and kind == "float16":
        raise ValueError(f'{what}, and master_weights="split" takes bfloat16 apart: choose "float32"')
    if "8bit" in _kinds(chosen.slot_dtype) and is_distributed(tensor):
        raise TypeError(
            f'{path} is a distributed tensor (FSDP2, tensor parallel), and slot_dtype="8bit" scales blocks of whole '
            'ones: choose "bfloat16"'
        )


def _check_slots(owner: Owner, slot_dtype: Any) -> None:
    """Refuse names of slots that no parameter of the optimizer has, and formats that are not for tensors."""
    slots = list(owner.rule.names.values())
    unknown = sorted(slot_dtype.keys() - set(slots), key=str) if isinstance(slot_dtype, Mapping) else []
    if unknown:
        raise ValueError(
            f"slot_dtype: there is no slot {', '.join(map(repr, unknown))}: the slots are {', '.join(slots)}"
        )
    own = [kind for kind in _kinds(slot_dtype) if kind in OWN]
    if own:
        raise ValueError(f"slot_dtype={own[0]!r} is registered for NumPy arrays: choose one of torch's dtypes")


def _kinds(slot_dtype: Any) -> list[Any]:
    return list(slot_dtype.values()) if isinstance(slot_dtype, Mapping) else [slot_dtype]


def formats_of(
    optimizer: Any, parameter: Parameter, slots: Mapping[str, Slot], names: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    """Name the format of each kind of a parameter's numbers that has one: ``""`` for itself, and its slots.

    ``names`` has what slots are called in state.
    """
    chosen = optimizer.slot_dtype
    if not (chosen or parameter.kept_as):
        return ()
    found = {"": format_of_parameter(optimizer, parameter)}
    for name, slot in slots.items():
        kind = chosen.get(names[name]) if isinstance(chosen, Mapping) else chosen
        as_torch = f"{parameter.kept_as} slot" if parameter.kept_as else ""
        found[name] = format_of_slot(kind, slot, parameter) if kind else as_torch
    return tuple((name, kind) for name, kind in found.items() if kind)


class TensorFormats(Formats):
    """How a plan's numbers are kept whose arrays are tensors of ``state``, which have begun already.

    Parameters are those of `Formats`.

    Attributes
    ----------
    is_noisy : bool
        Whether something is rounded at random.
    coming : list of (str, int, array)
        Numbers, in memory order, that a slot of a parameter is to hold once its arrays are known.
    """

    def __init__(self, formats: dict[str, str], numbers: list[int], counters: Any, seed: int) -> None:
        super().__init__(formats, numbers, counters, seed, begins=False)
        self.is_noisy = any(FORMATS[kind].noisy for kind in formats.values())
        self.coming: list[tuple[str, int, AnyArray]] = []

    def keep(self, plan: Any, slots: dict[str, Slot]) -> Kept:
        """See `Formats.keep`."""
        kept = super().keep(plan, slots)
        for name, k, numbers in self.coming:
            put(kept, name, k, numbers)
        self.coming.clear()
        return kept

    def dtype_of(self, part: str, parameter: Parameter) -> torch.dtype:
        """Return the dtype of a state tensor, by the name of its array."""
        if part == BESIDE["split"]:
            return torch.int16  # bit patterns: few of torch's functions know uint16
        if part == BESIDE["kahan"]:
            return getattr(torch, parameter.kept_as)
        kind = self.formats.get(part, "")
        for dtype, name in CODES.items():
            if kind == name:
                return dtype
        return getattr(torch, kind.split()[0] if kind else parameter.dtype.name)


def name_in_state(names: Mapping[str, str], part: str) -> str:
    """Return what an array is called in state; ``names`` has what slots are called there."""
    slot, _, scale = part.partition("/")
    return names.get(slot, slot) + _SCALE * bool(scale)


def names_beside(names: Iterable[str]) -> set[str]:
    """Return what state may have beside its slots, by the slots' names there."""
    return {*BESIDE.values(), *(name + _SCALE for name in names)}


def forget_stale(state: MutableMapping[str, Any], names: Iterable[str], made: Container[str]) -> None:
    """Let go of what was kept beside a parameter, or a slot, that is in another format now; ``made`` is what is in use.

    What is in 8 bits still, as a slot that is not in use, keeps its scales.
    """
    for name in names_beside(names) & state.keys():
        codes = state.get(name.removesuffix(_SCALE)) if name.endswith(_SCALE) else None
        if name not in made and getattr(codes, "dtype", None) not in CODES:
            del state[name]


def scale_in(state: Mapping[str, Any], name: str, like: torch.Tensor, array: AnyArray) -> torch.Tensor:
    """Return the scales of what is kept in 8 bits like the parameter ``like``: those in its state, or new ones."""
    found: Any = state.get(name)
    if _is_scale(found, array.size):
        return on_device_of(like, found)
    return like.new_zeros(-(-array.size // BLOCK), dtype=torch.float32)


def numbers_in(called: str, state: Mapping[str, Any], name: str) -> Any:
    """Return what a state holds under a name; decoded, if it is in 8 bits.

    Raises
    ------
    ValueError
        If it is, and its scales are missing, or do not fit.
    """
    found, scale = _both_in(state, name)
    if not isinstance(found, torch.Tensor) or found.dtype not in CODES:
        return found
    codes = in_numpy(found.cpu())
    if not _is_scale(scale, codes.size) or not is_dense(codes):
        raise ValueError(f"{called} is in 8 bits, and its {name + _SCALE!r} is missing or does not fit: load both")
    parts = [codes, in_numpy(scale.cpu())]
    numbers = torch.from_numpy(decoded(CODES[found.dtype], parts, codes.size, np.dtype(np.float32)))
    return numbers.as_strided(found.shape, found.stride())


def codes_in(
    called: str, state: MutableMapping[str, Any], name: str, like: Any, parameter: Parameter, slot: Slot,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, Array | None]:  # fmt: skip
    """Return a tensor of 8 bits for a slot of the parameter ``like``, and the numbers that are to be put there.

    That is the one in its state, and None, if it lies as the parameter does; else a new one, for which new scales must
    be made. The numbers are on the host, in the order in which the parameter lies in memory.
    """
    (found, scale), array = _both_in(state, name), parameter.array
    is_like = isinstance(found, torch.Tensor) and found.dtype is dtype and found.shape == array.shape
    if is_like and _is_scale(scale, array.size):
        found = on_device_of(local(like), found)
        if lies_alike(as_array(called, found, parameter.place), array):
            return found, None
    numbers = numbers_in(called, state, name)
    state.pop(name + _SCALE, None)
    codes, worked_in = new_state(like, array, Slot(), dtype), getattr(torch, parameter.dtype.name)
    if numbers is None and not slot.start:
        return codes, None
    if numbers is None:
        numbers = new_state(like, array, slot, worked_in)
    on_host = torch.empty((), dtype=worked_in, device="cpu")
    return codes, in_memory_order(kept(called, numbers, on_host, array, HOST, slot, worked_in)[1])


def keep_dtypes(owner: Owner, saved: Mapping[str, Any]) -> None:
    """Put what was saved in a dtype of its own into the owner's state as it was, once torch has cast all of it."""
    params = [p for group in owner.param_groups for p in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    for number, p in zip(numbers, params, strict=True):
        state = saved["state"].get(number, {})
        for name in filter(_own_names(owner, p, state).__contains__, state):
            if isinstance(state[name], torch.Tensor):
                owner.state[p][name] = state[name].to(device_of(p))


def _own_names(owner: Owner, parameter: Any, state: Mapping[str, Any]) -> set[str]:
    """Return the names in a state whose tensors need not have the parameter's dtype."""
    scaled = {name for name in state if name + _SCALE in state}
    found = scaled | names_beside(scaled)
    if parameter.dtype in HALVES:
        found |= {"ema", *owner.rule.counters} - {"step"}  # whose dtype torch knows to keep
    return found.union(owner.rule.names.values()) if owner.chosen.slot_dtype else found


def _both_in(state: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    """Return what a state holds under a name, and its scales."""
    return state.get(name), state.get(name + _SCALE)


def _is_scale(found: Any, size: int) -> bool:
    """Whether something can be the scales of so many elements."""
    return (
        isinstance(found, torch.Tensor)
        and found.dtype is torch.float32
        and found.is_contiguous()
        and tuple(found.shape) == (math.ceil(size / BLOCK),)
    )
