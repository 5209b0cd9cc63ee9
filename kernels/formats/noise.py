"""Noise for rounding at random: it follows from a seed, the number of updates, a parameter's number and an element's.

So it is the same on any number of threads, on a CPU and on a GPU. Elements are taken in blocks, whose first element
says what the noise of the others begins with.
"""

import numpy as np

from ..compile._jit import callee, inlined_callee

FACTORS = 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F
"""What the noise of two streams each, of the numbers of a parameter, is multiplied by."""


@inlined_callee
def noise_at(start, i, stream):
    """16 random bits for element ``i`` of a block: half of a product, for each of two streams.

    They are random enough to round by: see tests/test_formats.py.
    """
    bits = np.uint32(np.uint32(np.uint32(i) * np.uint32(0x9E3779B1)) + start)
    bits = np.uint32(bits ^ np.uint32(bits >> np.uint32(16)))
    product = np.uint32(bits * np.uint32(FACTORS[stream // 2 % len(FACTORS)]))
    return np.uint32(product & np.uint32(0xFFFF)) if stream % 2 else np.uint32(product >> np.uint32(16))


@callee
def key_of(seed, updates, number):
    """What the noise of parameter ``number`` follows from, after so many updates."""
    return _mixed(_mixed(_mixed(seed) + updates) + number)


@callee
def start_at(key, offset):
    """What the noise of a block begins with that starts at element ``offset``."""
    return np.uint32(_mixed(key + offset))


@callee
def _mixed(number):
    """Spread the bits of an int64 over all 64: the finaliser of splitmix64."""
    bits = np.uint64(number) + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64(bits ^ (bits >> np.uint64(31)))
