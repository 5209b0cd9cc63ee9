"""Ratios of interleaved rounds."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

RESAMPLES = 1000
CONFIDENCE = 0.95


class Ratio(NamedTuple):
    """A median, and where it may lie: its bootstrap interval."""

    value: float
    low: float
    high: float


def ratio_of(others: Sequence[float], ours: Sequence[float]) -> Ratio:
    """Return how many times as long the others took as we did, of rounds that both have taken part in.

    Parameters
    ----------
    others, ours : sequence of float
        Seconds of each round, the earliest first.
    """
    ratios = [other / own for other, own in zip(others, ours, strict=False)]
    if not ratios:
        raise ValueError("a ratio needs a round that both sides have taken part in")
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    beyond = round((1 - CONFIDENCE) / 2 * RESAMPLES)
    return Ratio(statistics.median(ratios), medians[beyond], medians[-1 - beyond])


def geometric_mean(values: Iterable[float]) -> float:
    """The mean that a ratio and its inverse cancel in."""
    return math.exp(statistics.fmean(math.log(value) for value in values))
