"""What all sides of a case start from: the same parameters and the same gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from .cases import Case
from .memory import MEMORY, Array
from .shapes import Shape

TILE = 1_000_003
"""Numbers that are drawn; arrays repeat them, each from another place on."""

SAMPLE = 40_000
"""Elements of an array that are compared, at most."""


class Problem:
    """Parameters and gradients of a case, normally distributed. Sides take copies of them.

    Gradients of step ``k`` differ in sign from those of step ``k - 1``.
    """

    def __init__(self, case: Case) -> None:
        rng = np.random.default_rng(0)
        tiles = [rng.standard_normal(TILE).astype(case.dtype) for _ in range(2)]
        self.case = case
        self.params, self.grads = (list(_filled(tile, case.shapes)) for tile in tiles)
        if case.options.scale is not None:
            for grad in self.grads:
                grad *= case.options.scale

    def copies(self) -> tuple[list[Array], list[Array]]:
        """Parameters and gradients of a side's own."""
        return [MEMORY.copy(array) for array in self.params], [MEMORY.copy(array) for array in self.grads]

    def renew(self, grads: Sequence[Array], k: int) -> None:
        """Write the gradients of step ``k``."""
        for grad, source in zip(grads, self.grads, strict=True):
            np.multiply(source, (-1) ** k, out=grad)

    def norm(self) -> float:
        """Return the norm of all gradients, in float64."""
        return math.sqrt(sum(_squares(grad) for grad in self.grads))

    def sample(self, array: Array, whole: bool = False) -> Array:
        """Elements of an array that are compared, both ends and evenly between them, in float64; in C order."""
        flat = array.reshape(-1)
        if whole or flat.size <= SAMPLE:
            return np.array(array, np.float64)
        return np.asarray(flat[np.linspace(0, flat.size - 1, SAMPLE).astype(np.int64)], np.float64)


def _filled(tile: Array, shapes: Sequence[Shape]) -> Iterator[Array]:
    start = 0
    for shape in shapes:
        array = MEMORY.empty(shape, tile.dtype)
        flat, rolled = array.reshape(-1), np.roll(tile, -start)
        for first in range(0, flat.size, TILE):
            piece = flat[first : first + TILE]
            piece[:] = rolled[: piece.size]
        yield array
        start = (start + flat.size) % TILE


def _squares(array: Array) -> float:
    flat = array.reshape(-1)
    blocks = (flat[start : start + TILE].astype(np.float64) for start in range(0, flat.size, TILE))
    return sum(float(block @ block) for block in blocks)
