"""From a norm to the factor that a gradient is multiplied by: the same numbers on every device."""

import math
from typing import NamedTuple

from .compile._jit import callee

ALL, STEEP, EACH = 1, 2, 3
"""Ways to clip by a norm: one norm over all gradients, as Keras 3 does, or as Keras 1 and 2 do; each gradient by its
own."""


class Clipping(NamedTuple):
    """What a step that goes by the norm of all gradients is told, and says: float64."""

    way: float = 0.0  # to clip, 0 for none
    limit: float = 0.0
    checked: float = 0.0  # 1: it is left out unless the gradients are finite
    norm: float = 0.0  # what was found


NORM = Clipping._fields.index("norm")


@callee
def common_factor(way, limit, norm):
    """Factor of all gradients, whose norm together is ``norm``; for `ALL` and `STEEP`."""
    if way == STEEP:
        return limit / norm if norm >= limit > 0.0 else 1.0
    if limit <= 0.0:
        return 1.0
    if not math.isfinite(norm):
        return math.nan
    return min(limit / norm, 1.0) if norm > 0.0 else 1.0


@callee
def own_factor(limit, squares):
    """Factor of a gradient whose squares have the sum ``squares``; for `EACH`."""
    norm = math.sqrt(squares)
    return limit / (limit if norm < limit else norm)
