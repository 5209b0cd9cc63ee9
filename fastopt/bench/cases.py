"""The table of what is measured."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from .recipes import RECIPES, Recipe
from .shapes import Shape, shapes_of

CLIP, EMA, SCALE = 1.0, 0.99, 128.0


class Stack(NamedTuple):
    """What is done to gradients and parameters beside the rule."""

    clip: float | None = None
    """Global norm that gradients are clipped to."""
    ema: float | None = None
    """Share of itself that the parameters' moving average keeps."""
    scale: float | None = None
    """What the gradients were multiplied with and have to be divided by."""
    zero_grads: bool = False


STACKS = {
    "plain": Stack(),
    "clip": Stack(clip=CLIP),
    "clip-ema": Stack(clip=CLIP, ema=EMA),
    "all": Stack(clip=CLIP, ema=EMA, scale=SCALE, zero_grads=True),
}
"""Name → stack. With ``adamw``, ``all`` is unscaling, clipping, decay, average and emptied gradients."""


COLD = "cold"

MANY = 10_000_000
"""Parameters that a large case has at least."""


@dataclass(frozen=True)
class Case:
    """One row: a recipe on a model, in a dtype, with a stack of options, on a device."""

    recipe: str
    model: str
    dtype: str = "float32"
    stack: str = "plain"
    device: str = "cpu"
    cold: bool = False
    """Whether other memory is read before each step, as by a backward pass, so that no cache holds the arrays."""

    @classmethod
    def named(cls, case_id: str) -> Case:
        """Return the case whose `id` it is."""
        recipe, dtype, model, stack, device, *cold = case_id.split("/")
        return cls(recipe, model, dtype, stack, device, cold == [COLD])

    @property
    def id(self) -> str:
        """A name, unique in the table."""
        return "/".join(filter(None, self.parts))

    @property
    def parts(self) -> tuple[str, ...]:
        """Return what the name consists of, as many for every case."""
        return self.recipe, self.dtype, self.model, self.stack, self.device, COLD if self.cold else ""

    @property
    def rule(self) -> Recipe:
        """Return what `recipe` names."""
        return RECIPES[self.recipe]

    @property
    def options(self) -> Stack:
        """Return what `stack` names."""
        return STACKS[self.stack]

    @cached_property
    def shapes(self) -> list[Shape]:
        """Return the shapes of the parameters."""
        return shapes_of(self.model)

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return sum(map(math.prod, self.shapes))

    @property
    def is_large(self) -> bool:
        """Whether no cache holds its arrays, and time goes into making them."""
        return self.parameters >= MANY

    @property
    def groups(self) -> bool:
        """Whether every parameter has hyper-parameters of its own."""
        return self.model.endswith("-groups")

    @property
    def renews(self) -> bool:
        """Whether gradients are drawn anew before each step: some side changes them, or the rule needs others."""
        return self.options.zero_grads or self.options.scale is not None or self.rule.degenerates

    @property
    def prepares(self) -> bool:
        """Whether something comes before each step, which is then timed by itself."""
        return self.renews or self.cold

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return {"float32": 4, "float64": 8}[self.dtype]


LARGE = "3.2e7"
SIZES = ("1e3", "1e4", "1e5", "1e6", LARGE)
ELEMENTWISE = [name for name, recipe in RECIPES.items() if recipe.elementwise]


def _table() -> Iterator[Case]:
    yield from (Case(recipe, LARGE) for recipe in ELEMENTWISE)
    yield from (Case(recipe, "1e4") for recipe in ELEMENTWISE)
    yield from (Case(recipe, size) for recipe in ("adamw", "sgd-momentum") for size in ("1e3", "1e5", "1e6"))
    yield from (Case(recipe, "1e6", dtype="float64") for recipe in ("adamw", "sgd-momentum", "lion"))
    yield Case("adamw", "1.6e7", dtype="float64")
    for model in ("400-tensors", "465-groups", "resnet50", "vit-b", "gpt2"):
        yield from (Case("adamw", model, stack=stack) for stack in ("plain", "clip", "all"))
    yield Case("adamw", "gpt2", stack="clip-ema")
    yield from (Case(recipe, "resnet50", stack="clip-ema") for recipe in ("sgd-momentum", "lion"))
    yield from (Case(recipe, "400-tensors") for recipe in ("adam", "sgd-momentum", "lamb", "adafactor", "muon"))
    yield from (Case(recipe, "resnet50") for recipe in ("lamb", "adafactor"))
    yield from (Case("adamw", model, cold=True) for model in ("1e6", "400-tensors", "400-vectors", "465-groups"))


TABLE = {case.id: case for case in _table()}
"""All cases of ``make bench``, by id."""

QUICK = [
    Case("sgd-momentum", "1e5"),
    Case("adam", "1e5"),
    Case("adam", "1e6"),
    Case("adamw", "1e4"),
    Case("adamw", "400-tensors", stack="clip"),
    Case("lion", "1e6"),
    Case("lamb", "1e6"),
]
"""Few, and small: for every change."""


def user_cases(recipes: Iterable[str], models: Iterable[str], dtype: str, stack: str) -> list[Case]:
    """Every one of the recipes on every one of the models."""
    recipes = list(recipes)
    return [Case(recipe, model, dtype, stack) for model in models for recipe in recipes]


def matching(cases: Iterable[Case], pattern: str) -> list[Case]:
    """Those in whose id a regular expression is found."""
    found = re.compile(pattern)
    return [case for case in cases if found.search(case.id)]
