"""One case, from its arrays to its outcome."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from .cases import Case
from .check import check
from .contest import Contest, disturbance
from .memory import MEMORY
from .outcome import BusyError, Outcome, outcome_of
from .peers import PEERS
from .problem import Problem
from .sides import Ceiling, Fastopt, Side, Traffic

MEMINFO = Path("/proc/meminfo")
SHARE_OF_MEMORY = 0.7
"""Of what is free: more is not filled with arrays."""

ENOUGH = 3
"""Peers of a large case where time is short: one of the first three that can do it is the fastest, or as fast."""


class TooLargeError(Exception):
    """A case that this machine has no memory for."""


class Measurement:
    """A case with all its sides, built and checked.

    Parameters
    ----------
    case : Case
    peers : iterable of str, optional
        Names out of `PEERS`; None means all.
    most_peers : int, optional
        Of the peers that can take part, only the first so many do.

    Raises
    ------
    DisagreementError
        If the sides do not compute the same.
    TooLargeError
        If there is no memory for it.
    """

    def __init__(self, case: Case, peers: Iterable[str] | None = None, most_peers: int | None = None) -> None:
        gc.collect()  # sides of the last case may be parts of cycles
        MEMORY.keep_only({case.itemsize * size for size in (case.parameters, *map(math.prod, case.shapes))})
        _check_size(case)
        self.case, self._prepared = case, 0
        problem = Problem(case)
        self._ours = Fastopt(problem)
        self._traffic = Traffic(self._ours)
        names, self.missing = chosen_peers(case, self._traffic.updated, peers, free_bytes(), most_peers)
        rivals: list[Side] = [PEERS[name](problem) for name in names]
        fast = [self._ours, *rivals] if not self._ours.slow else rivals
        check(problem, fast)
        ceiling = [Ceiling(problem, self._traffic)] if case.rule.facts.memory_bound else []
        self._others: list[Side] = [*ceiling, *rivals]

    def contest(self, seconds: float) -> Contest:
        """New rounds, taking about so many seconds."""
        return Contest(self._ours, self._others, seconds)

    def outcome(self, contest: Contest, ours: Sequence[float] = (), even_if_busy: bool = False) -> Outcome:
        """Return what came out of rounds that were played; ``ours`` are our times if somebody else has taken them.

        Raises
        ------
        BusyError
            If the rounds show that other programs took part, unless that is to be overlooked.
        """
        times = contest.times(ours)
        reason = disturbance(times, contest.share())
        if reason and not even_if_busy:
            raise BusyError(reason)
        return outcome_of(self.case, times, self._traffic.bytes_per_parameter, self.missing)

    def step(self) -> None:
        """A step of fastopt."""
        self._ours.step()

    def prepare(self) -> None:
        """Do what comes before a step of fastopt, and is not timed."""
        self._prepared += 1
        self._ours.prepare(self._prepared)


def _check_size(case: Case) -> None:
    """Refuse what does not fit: parameters, gradients and two slots, of the problem, of fastopt and of the ceiling."""
    needed, free = 10 * case.parameters * case.itemsize, free_bytes()
    if needed > free:
        raise TooLargeError(f"needs some {needed / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free")


def measure(case: Case, seconds: float, peers: Iterable[str] | None = None) -> Outcome:
    """Build, check, and play one contest.

    Raises
    ------
    BusyError, DisagreementError, TooLargeError
        See `Measurement`.
    """
    measurement = Measurement(case, peers)
    contest = measurement.contest(seconds)
    contest.play()
    return measurement.outcome(contest)


def chosen_peers(
    case: Case,
    updated: int,
    peers: Iterable[str] | None = None,
    free: float = math.inf,
    most_peers: int | None = None,
) -> tuple[list[str], dict[str, str]]:
    """Choose who takes part, and say why the others do not.

    ``updated`` is the number of arrays, as large as the parameters, that a step changes; ``free`` are bytes;
    ``most_peers`` is how many may take part, None for all.
    """
    array = case.parameters * case.itemsize
    # The problem, the ceiling and fastopt, which has its own already.
    left = SHARE_OF_MEMORY * free - array * (2 + updated)
    taken: list[str] = []
    missing: dict[str, str] = {}
    for name in PEERS if peers is None else peers:
        kind = PEERS[name]
        needed = array * (1 + updated + kind.arrays_beside)
        if reason := kind.missing() or kind.lacks(case):
            missing[name] = reason
        elif len(taken) == most_peers:
            missing[name] = f"left out to save time: only {most_peers} may take part"
        elif needed > left:
            missing[name] = "no memory is left for it beside the others"
        else:
            taken.append(name)
            left -= needed
    return taken, missing


def free_bytes() -> float:
    """Memory that can be had, with what is kept; infinite where the system does not tell."""
    return _system_bytes() + MEMORY.idle_bytes


def _system_bytes() -> float:
    if MEMINFO.exists():  # Linux: what its file caches would give back is available too
        kilobytes = dict(line.split(":") for line in MEMINFO.read_text().splitlines())["MemAvailable"].split()[0]
        return 1024.0 * int(kilobytes)
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return math.inf
