"""What the checkpoint of an optimizer holds, and how it is written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from .. import state
from ..device.strides import memory_order
from ..parameters import Parameter, check_count, check_flag
from ..steps.alone import refuse_while
from . import extra as extras
from .description import FORMAT, NEEDS
from .files import replacing
from .header import CODES
from .saving import Saving, wait_for_others
from .tensors import Item, Progress, write

_BITS = {"bfloat16": "BF16", "float16": "F16"}


def save(
    optimizer: Any,
    path: str | os.PathLike[str],
    params: bool,
    extra: Any,
    keep: int,
    background: bool,
    progress: Progress | None,
) -> Saving:
    """See `Optimizer.save`."""
    name, core = checked_path(path), core_of(optimizer)
    check_flag("params", params)
    check_flag("background", background)
    check_count("keep", keep, 1)
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be a function of two ints, got {progress!r}")
    core._require_built("save()")
    kept, arrays = extras.encoded(extra)
    place = os.path.realpath(name)
    wait_for_others(place)
    with between_steps(core):
        if params and core._evaluating:
            raise RuntimeError("inside evaluation_weights() the parameters are averages: leave it, then save them")
        items = [*_items(core, params), *(_item(f"extra/{k}", array) for k, array in enumerate(arrays))]
        text = json.dumps(_description(optimizer, core, params, kept), default=_plain, separators=(",", ":"))
        if not background:
            _write(name, keep, items, text, progress)
            return Saving(place)
        items = [_copied(item) for item in items]
    return Saving(place, partial(_write, name, keep, items, text, progress))


def _write(path: str, keep: int, items: list[Item], text: str, progress: Progress | None) -> None:
    with replacing(path, keep) as file:
        write(file, items, text, progress)


def checked_path(path: str | os.PathLike[str]) -> str:
    """A path as text."""
    try:
        name = os.fspath(path)
    except TypeError:
        raise TypeError(f"path must be a str or a path, got {type(path).__name__}") from None
    return os.fsdecode(name)


def core_of(optimizer: Any) -> Any:
    """The optimizer that has the state: of one that scales a loss, the inner one."""
    return optimizer.__dict__.get("inner_optimizer", optimizer)


@contextmanager
def between_steps(core: Any) -> Iterator[None]:
    """Context in which no step is under way, and none can begin, in whatever thread; those on a GPU are done."""
    with core._one_at_a_time():
        if core._repeated is not None:
            core._repeated.forget()
            refuse_while(core._repeated.is_running)
        core._confirm()
        yield


def _items(core: Any, params: bool) -> Iterator[Item]:
    """The arrays of an optimizer, on a GPU each to be copied to the host when it is written."""
    formats = state.formats_in_memory(core)
    for slot, arrays in core._slots_in_memory().items():
        for parameter, array in zip(core._parameters, arrays, strict=True):
            if array is not None:
                code = _code_of_slot(array, slot, formats.get(parameter.path, {}))
                yield _of_place(core, f"state/{parameter.path}/{slot}", array, code)
    for parameter in core._parameters if params else ():
        yield _of_place(core, f"params/{parameter.path}", parameter.in_place, code_of(parameter))


def _code_of_slot(array: Any, slot: str, kinds: Mapping[str, str]) -> str:
    """The dtype as the file calls it: numbers of 16 bits by what they are."""
    kind = kinds.get(slot) or (kinds.get("", "") if slot == "compensation" else "")
    return _BITS.get(kind.split(" ")[0] if array.dtype == np.uint16 else "", CODES[array.dtype])


def code_of(parameter: Parameter) -> str:
    """The dtype of a parameter as the file calls it."""
    return _BITS.get(parameter.kept_as) or CODES[parameter.dtype]


def _of_place(core: Any, name: str, array: Any, code: str) -> Item:
    place = core._place
    return Item(name, code, array.shape, partial(place.to_host, array) if place.on_gpu else lambda: array)


def _item(name: str, array: np.ndarray[Any, Any]) -> Item:
    code = extras.code_of(array)
    plain = array.view(np.uint16) if code == "BF16" else array
    return Item(name, code, array.shape, lambda: plain)


def _copied(item: Item) -> Item:
    array = item.fetch().copy(order="K")
    return item._replace(fetch=lambda: array)


def _description(optimizer: Any, core: Any, params: bool, extra: Any) -> dict[str, Any]:
    from .. import __version__

    made, why = _made(optimizer)
    return {
        "format": FORMAT,
        "needs": NEEDS,
        "fastopt": __version__,
        "optimizer": made,
        "why_not": why,
        "parameters": [
            {
                "path": p.path,
                "shape": p.in_place.shape,
                "dtype": dtype_of(p),
                "axes": memory_order(p.in_place),
            }
            for p in core._parameters
        ],
        "overrides": core._overrides,
        "excluded": core._excluded,
        "seed": core._kept_seed,
        "state": optimizer._not_arrays(),
        "params": params,
        "extra": extra,
    }


def dtype_of(parameter: Parameter) -> str:
    """The dtype of the user's array: what holds a bfloat16 may be its bit patterns."""
    return str(parameter.given.dtype).rpartition(".")[2] if parameter.kept_as else parameter.dtype.name


def _made(optimizer: Any) -> tuple[Any, str]:
    """How the optimizer can be made again, or why that cannot be told."""
    from ..registry import is_known, serialize

    for each in (optimizer, core_of(optimizer)):
        if not is_known(type(each)):
            return None, f"its class {type(each).__qualname__} is not one that fastopt knows by name"
    try:
        made = serialize(optimizer)
        json.dumps(made, default=_plain)
    except (TypeError, ValueError, NotImplementedError) as error:
        return None, str(error)
    return made, ""


def _plain(value: Any) -> Any:
    """What JSON can hold instead of a value that it cannot."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} {value!r} has no place in JSON")
