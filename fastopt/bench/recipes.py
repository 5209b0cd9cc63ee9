"""What is measured of every optimizer: derived from the classes that fastopt registers.

A new optimizer needs nothing here. It is named by its class in lower case, with the defaults of its signature, but for
`COMMON`. `OTHERWISE` has what other hyper-parameters or facts an optimizer needs, `VARIANTS` those options that are
kernels of their own.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from .. import registry
from ..signatures import COMMON as TAKEN_BY_ALL
from ..signatures import FORMAT

RATE = 1e-3
COMMON = {"learning_rate": RATE, "epsilon": 1e-18}
"""Libraries add epsilon in different places: where it counts for nothing, they agree."""

SHARED = frozenset((*TAKEN_BY_ALL, *FORMAT)) - {"learning_rate"}
"""What every optimizer takes beside its own hyper-parameters."""


class Facts(NamedTuple):
    """What an optimizer's class does not tell."""

    elementwise: bool = True
    """Whether no element's step depends on another's."""
    reads: int = 0
    """How many times an array as large as the parameters is read again, beyond one pass."""
    by_sign: bool = False
    """Whether a sign decides, so that a rounding may move an element by a whole step."""
    memory_bound: bool = True
    looser: float = 1.0
    """Factor on the tolerance where rounding is amplified, as by iterated products of matrices."""


OTHERWISE: dict[str, tuple[dict[str, Any], Facts]] = {
    "Adadelta": ({"learning_rate": 1.0, "epsilon": 1e-7}, Facts()),
    "AdamW": ({"weight_decay": 1e-2}, Facts()),
    "ScheduleFreeAdamW": ({"epsilon": 1e-8}, Facts()),
    "Lion": ({}, Facts(by_sign=True)),
    "Lamb": ({}, Facts(elementwise=False, reads=3)),
    "Adafactor": ({}, Facts(elementwise=False, reads=2)),
    "Muon": ({"epsilon": 1e-7}, Facts(elementwise=False, memory_bound=False, looser=100.0)),
}
"""Class → hyper-parameters and facts that differ."""

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "SGD": {"sgd-momentum": {"momentum": 0.9}, "sgd-nesterov": {"momentum": 0.9, "nesterov": True}},
    "RMSprop": {"rmsprop-centered-momentum": {"momentum": 0.9, "centered": True}},
    "Adam": {"adam-amsgrad": {"amsgrad": True}},
}
"""Class → name → options."""

STEPS = 2000


class Recipe:
    """An optimizer with all hyper-parameters that count, in fastopt's words."""

    def __init__(self, optimizer: str, hyper: dict[str, Any], facts: Facts = Facts()) -> None:  # noqa: B008
        self.optimizer, self.hyper, self.facts = optimizer, hyper, facts

    def make(self, **options: Any) -> Any:
        """Return fastopt's optimizer, not built."""
        return registry.find(self.optimizer)(**self.hyper, **options)

    @property
    def elementwise(self) -> bool:
        """Whether no element's step depends on another's."""
        return self.facts.elementwise

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """The names of the rule's state."""
        optimizer = self.make()
        optimizer.build([np.zeros((2, 2))])
        return tuple(optimizer.slots)

    @cached_property
    def degenerates(self) -> bool:
        """Whether the same gradient for ever ends in NaN, or in numbers so small that processors slow down."""
        grad = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
        param = np.ones_like(grad)
        optimizer = self.make()
        optimizer.build([param])
        with np.errstate(all="ignore"):
            for _ in range(STEPS):
                optimizer.apply([grad])
        arrays = [param, *(array for slot in optimizer.slots.values() for array in slot if array is not None)]
        numbers = np.abs(np.concatenate([np.ravel(array) for array in arrays]))
        normal = (numbers == 0) | (numbers >= np.finfo(np.float32).tiny)
        return not bool(np.all(normal & np.isfinite(numbers)))


def _recipes() -> Iterator[tuple[str, Recipe]]:
    for name in registry.names():
        parameters = inspect.signature(registry.find(name)).parameters
        if not registry.is_built_in(name) or "learning_rate" not in parameters:
            continue
        hyper = {key: COMMON.get(key, each.default) for key, each in parameters.items() if key not in SHARED}
        if parameters["weight_decay"].default is not None:
            hyper["weight_decay"] = parameters["weight_decay"].default
        own, facts = OTHERWISE.get(name, ({}, Facts()))
        hyper |= own
        yield name.lower(), Recipe(name, hyper, facts)
        yield from ((variant, Recipe(name, hyper | more, facts)) for variant, more in VARIANTS.get(name, {}).items())


RECIPES = dict(_recipes())
"""All optimizers, in all variants that are kernels of their own, by name."""
