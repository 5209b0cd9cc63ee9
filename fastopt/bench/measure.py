"""Interleaved timing: ratios that hold while the machine's speed drifts."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

ROUND_SECONDS = 0.02
"""A round repeats a call until it lasts about this long."""


def wall_seconds(call: Callable[[], object], repeats: int) -> float:
    """Seconds per call by the wall clock."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def interleaved(
    calls: dict[str, Callable[[], object]],
    rounds: int,
    seconds: Callable[[Callable[[], object], int], Any] = wall_seconds,
) -> dict[str, Any]:
    """Median seconds per call of each function, all called in turn in every round.

    Parameters
    ----------
    calls : dict
        Name → function without arguments. Each is warmed up first.
    rounds : int
        How often each is timed.
    seconds : function, optional
        ``(call, repeats)`` → seconds per call, or a NamedTuple of what several clocks say, the slowest clock last.
    """
    repeats = {name: _repeats(call, seconds) for name, call in calls.items()}
    samples: dict[str, list[Any]] = {name: [] for name in calls}
    gc.disable()
    try:
        for _ in range(rounds):
            for name, call in calls.items():
                samples[name].append(seconds(call, repeats[name]))
    finally:
        gc.enable()
    return {name: _median(values) for name, values in samples.items()}


def _repeats(call: Callable[[], object], seconds: Callable[[Callable[[], object], int], Any]) -> int:
    for _ in range(3):
        call()
    once = seconds(call, 1)
    return max(1, round(ROUND_SECONDS / max(once[-1] if isinstance(once, tuple) else once, 1e-7)))


def _median(values: list[Any]) -> Any:
    if not isinstance(values[0], tuple):
        return statistics.median(values)
    return type(values[0])(*map(statistics.median, zip(*values, strict=True)))
