"""What came out of a case."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .cases import Case
from .ratios import Ratio, geometric_mean, ratio_of

BUSY_STATUS = 75
"""Exit status of a run whose only fault is that cases were not measured: EX_TEMPFAIL, "try again later"."""


class BusyError(Exception):
    """Other programs kept the processors, so that times mean nothing."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"not measured: the machine was busy: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class Outcome:
    """Ratios of one case. Times are kept for GB/s only: no two machines share them."""

    case: Case
    seconds: float
    """Of a step of fastopt, the median of the rounds."""
    bytes_per_parameter: int
    ceiling_fraction: Ratio | None
    """The time of the ceiling over ours; None where something else than memory is the limit."""
    speedups: dict[str, Ratio] = field(default_factory=dict)
    """Peer → its time over ours."""
    missing: dict[str, str] = field(default_factory=dict)
    """Peer → why it did not take part."""

    @property
    def gb_per_s(self) -> float:
        """Return what a step moves, in 1e9 bytes per second."""
        return self.bytes_per_parameter * self.case.parameters / self.seconds / 1e9

    @property
    def peer(self) -> str | None:
        """The fastest one."""
        return min(self.speedups, key=lambda name: self.speedups[name].value, default=None)

    @property
    def speedup(self) -> Ratio | None:
        """Return the speed-up over the fastest peer."""
        return None if self.peer is None else self.speedups[self.peer]

    def summary(self) -> dict[str, Any]:
        """The figures that count."""
        ceiling, speedup = self.ceiling_fraction, self.speedup
        return {
            "bytes_per_parameter": self.bytes_per_parameter,
            "gb_per_s": self.gb_per_s,
            "ceiling_fraction": ceiling and ceiling.value,
            "ceiling_interval": ceiling and [ceiling.low, ceiling.high],
            "peer": self.peer,
            "speedup": speedup and speedup.value,
            "speedup_interval": speedup and [speedup.low, speedup.high],
        }

    def to_json(self) -> dict[str, Any]:
        """Everything, of types that JSON has."""
        case = self.case
        return {
            "id": case.id,
            "optimizer": case.rule.optimizer,
            "hyper_parameters": case.rule.hyper,
            "dtype": case.dtype,
            "model": case.model,
            "stack": case.stack,
            "device": case.device,
            "parameters": case.parameters,
            "arrays": len(case.shapes),
            "microseconds": 1e6 * self.seconds,
            **self.summary(),
            "speedups": {name: list(ratio) for name, ratio in self.speedups.items()},
            "missing": self.missing,
        }


def read_outcome(content: Mapping[str, Any]) -> Outcome:
    """Read what `Outcome.to_json` wrote."""
    case = Case.named(content["id"])
    interval = content["ceiling_interval"]
    ceiling = None if interval is None else Ratio(content["ceiling_fraction"], *interval)
    speedups = {name: Ratio(*ratio) for name, ratio in content["speedups"].items()}
    seconds = content["microseconds"] / 1e6
    return Outcome(case, seconds, content["bytes_per_parameter"], ceiling, speedups, dict(content["missing"]))


def outcome_of(
    case: Case, times: Mapping[str, Sequence[float]], bytes_per_parameter: int, missing: dict[str, str]
) -> Outcome:
    """Make an outcome of the seconds of all rounds, by side."""
    ours = times["fastopt"]
    ratios = {name: ratio_of(others, ours) for name, others in times.items() if name != "fastopt"}
    ceiling = ratios.pop("ceiling", None)
    return Outcome(case, statistics.median(ours), bytes_per_parameter, ceiling, ratios, missing)


def mean_speedup(outcomes: Sequence[Outcome]) -> float | None:
    """Return the geometric mean over the fastest peer of each case, without cold ones: launches count there."""
    speedups = [each.speedup.value for each in outcomes if each.speedup is not None and not each.case.cold]
    return geometric_mean(speedups) if speedups else None
