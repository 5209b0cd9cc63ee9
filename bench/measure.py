"""Interleaved timing: ratios that hold while the machine's speed drifts."""

import gc
import statistics
import time
from collections.abc import Callable

ROUND_SECONDS = 0.02
"""A round repeats a call until it lasts about this long."""


def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds per call of each function, all called in turn in every round.

    Parameters
    ----------
    calls : dict
        Name → function without arguments. Each is warmed up first.
    rounds : int
        How often each is timed.
    """
    repeats = {name: _repeats(call) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    gc.disable()
    try:
        for _ in range(rounds):
            for name, call in calls.items():
                samples[name].append(_seconds(call, repeats[name]))
    finally:
        gc.enable()
    return {name: statistics.median(values) for name, values in samples.items()}


def _repeats(call: Callable[[], object]) -> int:
    for _ in range(3):
        call()
    return max(1, round(ROUND_SECONDS / max(_seconds(call, 1), 1e-7)))


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
