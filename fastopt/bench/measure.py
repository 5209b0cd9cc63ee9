"""Interleaved timing of plain functions: ratios that hold while the machine's speed drifts."""

import statistics
import time
from collections.abc import Callable
from typing import Any

from .contest import TURN_SECONDS, disturbance, undisturbed
from .outcome import BusyError

Call = Callable[[], object]


def wall_seconds(call: Call, repeats: int) -> float:
    """Return seconds per call by the wall clock."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def interleaved(
    calls: dict[Any, Call],
    rounds: int,
    seconds: Callable[[Call, int], Any] = wall_seconds,
    turn: float = TURN_SECONDS,
) -> dict[Any, Any]:
    """Return the median seconds per call of each function, all called in turn in every round.

    Parameters and errors are those of `interleaved_rounds`.
    """
    rounds_of = interleaved_rounds(calls, rounds, seconds, turn)
    return {name: _median(values) for name, values in rounds_of.items()}


def interleaved_rounds(
    calls: dict[Any, Call],
    rounds: int,
    seconds: Callable[[Call, int], Any] = wall_seconds,
    turn: float = TURN_SECONDS,
) -> dict[Any, list[Any]]:
    """Return the seconds per call of each function in each round, all called in turn.

    Parameters
    ----------
    calls : dict
        Name → function without arguments. Each is warmed up first.
    rounds : int
        How often each is timed.
    seconds : function, optional
        ``(call, repeats)`` → seconds per call, or a NamedTuple of what several clocks say, the slowest clock last.
    turn : float
        A round repeats a call until it lasts about so many seconds; at least once.

    Raises
    ------
    BusyError
        If rounds by a single clock show that other programs took part.
    """
    repeats = {}
    for name, call in calls.items():
        once = [seconds(call, 1) for _ in range(4)][-1]
        repeats[name] = max(1, round(turn / max(once[-1] if isinstance(once, tuple) else once, 1e-7)))
    samples: dict[Any, list[Any]] = {name: [] for name in calls}
    began, had = time.perf_counter(), time.process_time()
    with undisturbed():
        for _ in range(rounds):
            for name, call in calls.items():
                samples[name].append(seconds(call, repeats[name]))
    share = (time.process_time() - had) / (time.perf_counter() - began)
    alone = not any(isinstance(value, tuple) for values in samples.values() for value in values)
    if alone and (reason := disturbance(samples, share)):
        raise BusyError(reason)
    return samples


def _median(values: list[Any]) -> Any:
    if not isinstance(values[0], tuple):
        return statistics.median(values)
    return type(values[0])(*map(statistics.median, zip(*values, strict=True)))
