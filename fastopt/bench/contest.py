"""Rounds in which all sides of a case take turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from .sides import Side

TURN_SECONDS = 0.02
"""A turn repeats its step until it lasts about this long."""

ROUNDS = (5, 41)
"""At least, at most."""

FEW_ROUNDS = 3
SLOW = 4.0
"""A side that takes so many times as long as the fastest other one is in for `FEW_ROUNDS` only: it decides nothing."""

LEAST_SHARE = 0.7
"""Of the time of the rounds, in which some thread of this process runs: if less, other programs keep it waiting."""

TENFOLD = 10.0
"""Where a quarter of a side's rounds take so many times as long as its fastest one, the rounds say nothing."""

UNEVEN = 3.0
"""Nor do they where the middle half of them differ so many times."""

Clock = Callable[[], float]


class Turn:
    """How one side takes its turns."""

    def __init__(self, side: Side, clock: Clock) -> None:
        self.side = side
        self.rounds = ROUNDS[1]
        self.times: list[float] = []
        self._clock, self._steps, self._beside = clock, 0, 0.0
        self.seconds = self._once()
        if self.seconds < TURN_SECONDS:
            self.seconds = min(self._once() for _ in range(5))
        self.repeats = max(1, round(TURN_SECONDS / max(self.seconds + self._beside, 1e-7)))

    @property
    def length(self) -> float:
        """Seconds that a turn takes, with what is not measured."""
        return (self.seconds + self._beside) * (self.repeats + 1)

    def take(self) -> None:
        """Measure one turn, unless this side has had all its rounds."""
        if len(self.times) >= self.rounds:
            return
        self.warm_up()
        self.times.append(self._separately() if self.side.case.prepares else self._together())

    def warm_up(self) -> None:
        """Whoever was on before has left caches and threads in another state; long steps do not notice."""
        if self.repeats > 1:
            self._once()

    def _together(self) -> float:
        start = self._clock()
        for _ in range(self.repeats):
            self.side.step()
        return (self._clock() - start) / self.repeats

    def _separately(self) -> float:
        return sum(self._once() for _ in range(self.repeats)) / self.repeats

    def _once(self) -> float:
        """Seconds of one step."""
        if self.side.case.prepares:
            begin = self._clock()
            self.side.prepare(self._steps)
            self._steps += 1
            self._beside = self._clock() - begin
        start = self._clock()
        self.side.step()
        return self._clock() - start


class Contest:
    """Our side against others, round by round.

    Parameters
    ----------
    ours, others : Side
        Checked: they may be stepped as often as it takes.
    seconds : float
        What all rounds together should take.
    clock : function, optional
        Tells seconds.
    processor : function, optional
        Tells the seconds that this process has spent on processors, of all threads together.
    """

    def __init__(
        self,
        ours: Side,
        others: Sequence[Side],
        seconds: float,
        clock: Clock = time.perf_counter,
        processor: Clock = time.process_time,
    ) -> None:
        self._ours, self._others = Turn(ours, clock), [Turn(side, clock) for side in others]
        fastest = min((turn.seconds for turn in self._others if turn.side.name != "ceiling"), default=0.0)
        everyone = [self._ours, *self._others]
        slow = [turn for turn in self._others if turn.side.name != "ceiling" and turn.seconds > SLOW * fastest]
        for turn in slow:
            turn.rounds = FEW_ROUNDS
        spent = sum(FEW_ROUNDS * turn.length for turn in slow)
        each = sum(turn.length for turn in everyone if turn not in slow)
        least, most = ROUNDS
        self.rounds = int(min(most, max(least, (seconds - spent) / each)))
        for turn in everyone:
            turn.rounds = min(turn.rounds, self.rounds)
        self._turn = 0
        self._clock, self._processor = clock, processor
        self._began, self._had = clock(), processor()

    @property
    def repeats(self) -> int:
        """Steps of our turn."""
        return self._ours.repeats

    def play(self) -> dict[str, list[float]]:
        """Play all rounds; return the seconds of a step in each of them, by side."""
        self._began, self._had = self._clock(), self._processor()
        with undisturbed():
            for _ in range(self.rounds):
                self._ours.take()
                self.others()
        return self.times()

    def share(self) -> float:
        """Return the time on processors since the rounds began, of all threads together, over the time that passed."""
        return (self._processor() - self._had) / max(self._clock() - self._began, 1e-9)

    def others(self) -> None:
        """Everyone else's turns of a round, in an order that rotates; then warm our side up."""
        count = len(self._others)
        for k in range(count):
            self._others[(k + self._turn) % count].take()
        self._turn += 1
        self._ours.warm_up()

    def times(self, ours: Sequence[float] = ()) -> dict[str, list[float]]:
        """Seconds of a step in each round, by side. Our own times may come from somebody else who has taken them."""
        found = {turn.side.name: turn.times for turn in self._others}
        return {self._ours.side.name: list(ours) or self._ours.times, **found}


def disturbance(times: Mapping[str, Sequence[float]], share: float) -> str | None:
    """Say what shows that other programs took part in rounds; None if nothing does.

    Parameters
    ----------
    times : mapping
        Side → seconds of each of its rounds.
    share : float
        See `Contest.share`.
    """
    if share < LEAST_SHARE:
        return f"this process ran for only {share:.0%} of the time"
    for name, rounds in times.items():
        if len(rounds) <= FEW_ROUNDS:
            continue
        ordered = sorted(rounds)
        least, first, third = (ordered[k * len(ordered) // 4] for k in (0, 1, 3))
        if third >= TENFOLD * least:
            return f"a quarter of {name}'s rounds took {third / least:.0f} times as long as its fastest one"
        if third >= UNEVEN * first:
            return f"the middle half of {name}'s rounds differ {third / first:.1f} times"
    return None


@contextmanager
def undisturbed() -> Iterator[None]:
    """Run what is inside without garbage collection."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
