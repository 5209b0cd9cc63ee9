"""Weights lists: an optimizer's state as the flat list of arrays that a Keras release saved, and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import optimizers as modern
from .. import state
from ..kernels.registry import running_after
from ..optimizer import Optimizer
from ..parameters import Array, check_count
from ..plan import ACCUMULATOR_SLOT, AVERAGE_SLOT

Item = str | tuple[str, ...]
"""A counter; a slot, that is an array per parameter; or several slots, interleaved parameter by parameter."""

STANDALONE: Mapping[type[Optimizer], Mapping[tuple[int, int, int], tuple[Item, ...]]] = {
    modern.SGD: {
        (1, 0, 0): (),
        (1, 0, 2): ("momentum",),
        (1, 0, 7): ("iterations", "momentum"),
    },
    modern.RMSprop: {
        (1, 0, 0): ("velocity",),
        (2, 3, 0): ("iterations", "velocity"),
    },
    modern.Adagrad: {
        (1, 0, 0): ("accumulator",),
        (2, 3, 0): ("iterations", "accumulator"),
    },
    modern.Adadelta: {
        (1, 0, 0): ("accumulated_grad", "accumulated_delta_var"),
        (2, 3, 0): ("iterations", "accumulated_grad", "accumulated_delta_var"),
    },
    modern.Adam: {
        (1, 0, 0): ("momentum", "velocity"),
        (1, 0, 7): ("iterations", "momentum", "velocity"),
        (2, 1, 3): ("iterations", "momentum", "velocity", "velocity_hat"),
    },
    modern.Adamax: {
        (1, 0, 0): ("momentum", "norm"),
        (1, 0, 7): ("iterations", "momentum", "norm"),
    },
    modern.Nadam: {
        (1, 0, 5): ("momentum", "velocity"),
        (1, 0, 7): ("iterations", "momentum", "velocity"),
        (2, 3, 0): ("iterations", "u_product", "momentum", "velocity"),
    },
}
"""What the lists of Keras 1.0.0 to 2.3.1 hold, from which release on. Every slot is there, used or not."""

TF_KERAS: Mapping[type[Optimizer], tuple[Item, ...]] = {
    modern.SGD: ("iterations", "momentum"),
    modern.RMSprop: ("iterations", "velocity", "momentum", "average_gradient"),
    modern.Adagrad: ("iterations", "accumulator"),
    modern.Adadelta: ("iterations", "accumulated_grad", "accumulated_delta_var"),
    modern.Adam: ("iterations", "momentum", "velocity", "velocity_hat"),
    modern.Adamax: ("iterations", "momentum", "norm"),
    modern.Nadam: ("iterations", "u_product", "momentum", "velocity"),
}
"""The legacy optimizers of ``tf_keras``. As in Keras 3, slots that are not used are left out."""

_HEAD = ("micro_steps", "learning_rate", AVERAGE_SLOT, ACCUMULATOR_SLOT)

KERAS_3: Mapping[type[Optimizer], tuple[Item, ...]] = {
    modern.SGD: (*_HEAD, "momentum"),
    modern.RMSprop: (*_HEAD, "velocity", "momentum", "average_gradient"),
    modern.Adagrad: (*_HEAD, "accumulator"),
    modern.Adadelta: (*_HEAD, ("accumulated_grad", "accumulated_delta_var")),
    modern.Adam: (*_HEAD, ("momentum", "velocity"), "velocity_hat"),
    modern.Adamax: (*_HEAD, ("momentum", "norm")),
    modern.Nadam: (*_HEAD, ("momentum", "velocity"), "u_product"),
}
"""The order of ``optimizer.variables``; its iteration counts micro-steps of an accumulation."""

_COUNTERS = ("iterations", "micro_steps", "learning_rate", "u_product")
_INT64_SINCE = (2, 0, 8)
_LAST = (2, 3, 1)


class Entry(NamedTuple):
    """One array of a weights list."""

    name: str  # in the state dict; of a slot that the optimizer does not keep: empty
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def weights_of(optimizer: Optimizer, release: str) -> list[Array]:
    """An optimizer's state as the weights list of a release.

    Parameters
    ----------
    optimizer : Optimizer
        Built; one of SGD, RMSprop, Adagrad, Adadelta, Adam, AdamW, Adamax, Nadam, of today or of `fastopt.compat`.
    release : str
        "1.0.0" to "2.3.1", "tf_keras" (its legacy optimizers), or "3" (``[v.numpy() for v in optimizer.variables]``).

    Returns
    -------
    list of ndarray
        Copies. Counters have no axes: counts as int64, before Keras 2.0.8 as floats. A slot that the list must have but
        the optimizer does not keep is zeros.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        If the release or the optimizer has no such list, or the optimizer keeps a slot that the list has no room for.
    """
    return read(optimizer, entries(optimizer, release))


def load_weights(optimizer: Optimizer, weights: Iterable[Any], release: str, *, iterations: int | None = None) -> None:
    """Take over state from the weights list of a release.

    Parameters
    ----------
    optimizer, release
        As in `weights_of`. The learning rate is left as it is, unless the list holds it (Keras 3).
    weights : list of arrays
        In the order of that release; cast to the parameters' dtype.
    iterations : int, optional
        Updates done so far: needed where the list does not hold the count, an error where it does. Where a list of
        Nadam lacks the product of its momenta (up to 2.2.5), it is worked out from the count and the present
        ``beta_1``; the releases went on with 1.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        If anything does not fit. Then nothing has changed.
    """
    expected = entries(optimizer, release)
    given = [np.asarray(array) for array in weights]
    if len(given) != len(expected):
        raise ValueError(f"expected the {len(expected)} arrays of Keras {release}, got {len(given)}")
    for k, (entry, array) in enumerate(zip(expected, given, strict=True)):
        if array.shape != entry.shape:
            raise ValueError(f"weights[{k}]: expected shape {entry.shape}, got {array.shape}")
    assign(optimizer, expected, given, **_missing_counters(optimizer, expected, given, release, iterations))


def _missing_counters(
    optimizer: Optimizer, expected: list[Entry], given: list[Array], release: str, iterations: int | None
) -> dict[str, Any]:
    counters = {entry.name: array for entry, array in zip(expected, given, strict=True) if entry.name in _COUNTERS}
    held = counters.keys() & {"iterations", "micro_steps"}
    if iterations is not None:
        if held:
            raise ValueError("iterations: the list holds the count itself")
        check_count("iterations", iterations, 0)
    elif not held:
        raise ValueError(f"the list of Keras {release} lacks the number of updates done: pass iterations=")
    found: dict[str, Any] = {} if held else {"iterations": iterations}
    if isinstance(optimizer, modern.Nadam) and "u_product" not in counters:
        count = int(counters["iterations"]) if held else int(iterations)  # type: ignore[arg-type]
        found["u_product"] = _momenta_product(optimizer, count)
    return found


def _momenta_product(optimizer: modern.Nadam, iterations: int) -> float:
    settings: Any = optimizer._settings("", 1.0)
    settings = settings._replace(u_product=1.0)
    for t in range(1, iterations + 1):
        settings = settings._replace(u_product=running_after(settings, t))
    return settings.u_product


def entries(optimizer: Optimizer, release: str) -> list[Entry]:
    """Return what the arrays of a release's list stand for in this optimizer."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"expected a fastopt optimizer, got {type(optimizer).__name__}")
    optimizer._require_built("a weights list")
    items, complete, count_dtype = _layout(optimizer, release)
    slots = optimizer.slots
    unlisted = slots.keys() - {name for item in items for name in _names(item)}
    if unlisted:
        raise ValueError(
            f"the list of Keras {release} has no room for {', '.join(sorted(unlisted))} "
            f"of this {type(optimizer).__name__}"
        )
    found: list[Entry] = []
    for item in items:
        if item in _COUNTERS:
            dtype = np.dtype(np.float64) if item in ("learning_rate", "u_product") else count_dtype
            found += [Entry(str(item), (), dtype)] * (item in optimizer._counters())
        else:
            kept = tuple(name for name in _names(item) if complete or name in slots)
            found += _slot_entries(optimizer, kept, slots)
    return found


def _slot_entries(optimizer: Optimizer, names: tuple[str, ...], slots: Mapping[str, Any]) -> list[Entry]:
    found = []
    for parameter in optimizer._parameters:
        for name in names if parameter.trainable else ():
            shape, dtype = parameter.array.shape, parameter.array.dtype
            if name in slots:
                found.append(Entry(f"{parameter.path}/{name}", shape, dtype))
            else:  # Adam without AMSGrad saves dummies of one element
                found.append(Entry("", (1,) if name == "velocity_hat" else shape, dtype))
    return found


def _names(item: Item) -> tuple[str, ...]:
    return item if isinstance(item, tuple) else (item,)


def _layout(optimizer: Optimizer, release: str) -> tuple[tuple[Item, ...], bool, np.dtype[Any]]:
    """Items of a list, whether slots that are not kept are in it, and the dtype of counts."""
    kind = next((kind for kind in type(optimizer).__mro__ if kind in STANDALONE), None)
    if kind is None:
        names = ", ".join(kind.__name__ for kind in STANDALONE)
        raise TypeError(f"there are weights lists of {names} and what derives from them, not of {optimizer!r}")
    if not isinstance(release, str):
        raise TypeError(f"release must be a str, got {release!r}")
    if release == "tf_keras":
        return TF_KERAS[kind], False, np.dtype(np.int64)
    if re.fullmatch(r"3(\.\d+)*", release):
        return KERAS_3[kind], False, np.dtype(np.int64)
    if not re.fullmatch(r"[12]\.\d+\.\d+", release) or _version(release) > _LAST:
        raise ValueError(f'release must be "1.0.0" to "2.3.1", "tf_keras" or "3", got {release!r}')
    version = _version(release)
    items = [items for since, items in STANDALONE[kind].items() if since <= version]
    if not items:
        raise ValueError(f"Keras {release} has no {kind.__name__}")
    return items[-1], True, np.dtype(np.int64 if version >= _INT64_SINCE else np.float64)


def _version(release: str) -> tuple[int, ...]:
    return tuple(map(int, release.split(".")))


def read(optimizer: Optimizer, wanted: list[Entry]) -> list[Array]:
    """The arrays of a list."""
    if not wanted:
        return []
    values = optimizer.state_dict()
    return [np.asarray(values.get(entry.name, np.zeros(entry.shape)), entry.dtype) for entry in wanted]


def assign(optimizer: Optimizer, expected: list[Entry], given: list[Array], **counters: Any) -> None:
    """Check the values of a list, and counters besides it, then write them."""
    values = {entry.name: array for entry, array in zip(expected, given, strict=True) if entry.name} | counters
    steps = optimizer.gradient_accumulation_steps or 1
    if "iterations" in values:
        values["micro_steps"] = state.checked_counter("iterations", values["iterations"], 0) * steps
    elif "micro_steps" in values:
        values["iterations"] = state.checked_counter("micro_steps", values["micro_steps"], 0) // steps
    state.load(optimizer, values, strict=False)
