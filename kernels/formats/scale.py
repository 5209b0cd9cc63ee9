"""The scale of a block of numbers, by the largest of them."""

import numpy as np

from ..compile._jit import callee
from ..compile.tuples import number_of
from .half import INFINITY, SMALLEST


@callee
def scale_from(largest):
    """The scale of numbers whose largest size has this bit pattern, an int32: zero, normal and finite, or NaN."""
    if largest > np.int32(INFINITY):
        return np.float32(np.nan)
    normal = min(max(largest, np.int32(SMALLEST)), np.int32(INFINITY - 1))
    return number_of(normal if largest else np.int32(0), np.float32(0))
