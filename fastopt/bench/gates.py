"""What a case must reach: thresholds in one file, earlier runs of the same processor in another. Ratios only.

The first file is TOML: tables ``[[gate]]`` with

- ``cases``: a regular expression, searched in a case's id;
- ``against``: ``"ceiling"`` or ``"peer"``, the fastest one;
- ``at_least``: the ratio; or ``exempt = true``;
- ``cause``: why, where it is less than elsewhere.

Of several that match a case, the last one counts. ``[mean]`` has the geometric mean of the speed-ups that a whole run
must reach, ``[baseline]`` the tolerances: shares of the earlier ratio that may be lost.

A ratio fails if even the upper end of its interval is below: what may be noise is none of it.
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .outcome import Outcome, mean_speedup
from .ratios import Ratio

CEILING, PEER = "ceiling", "peer"

NEAR = 0.25
"""Below this share of the ceiling something else than memory is the limit: the share follows the processor's clock."""


class Gate(NamedTuple):
    """One rule of the file."""

    cases: str
    against: str
    at_least: float
    cause: str = ""


class Failure(NamedTuple):
    """A ratio that is too low."""

    what: str
    measured: Ratio
    at_least: float

    def __str__(self) -> str:
        ratio = f"{self.measured.value:.3g} (interval {self.measured.low:.3g} to {self.measured.high:.3g})"
        return f"{self.what}: {ratio}, must be at least {self.at_least:.3g}"


@dataclass(frozen=True)
class Gates:
    """Thresholds, and the ratios of earlier runs, by case and by what they are against."""

    gates: Sequence[Gate]
    tolerances: Mapping[str, float]
    mean_at_least: float
    baseline: Mapping[str, Mapping[str, float]]

    def failures(self, outcome: Outcome) -> list[Failure]:
        """All that is too low in an outcome."""
        found = []
        for against, ratio in ratios_of(outcome).items():
            limits = {f"against the {against}": self.threshold(outcome.case.id, against)}
            earlier = self.baseline.get(outcome.case.id, {}).get(against)
            if earlier is not None:
                limits[f"against the {against}, by the baseline"] = earlier * (1 - self.tolerances[against])
            found += [
                Failure(f"{outcome.case.id} {what}", ratio, limit)
                for what, limit in limits.items()
                if limit is not None and not ratio.high >= limit
            ]
        return found

    def threshold(self, case_id: str, against: str) -> float | None:
        """The last gate that matches, if any."""
        matching = [gate.at_least for gate in self.gates if gate.against == against and re.search(gate.cases, case_id)]
        return matching[-1] if matching else None

    def mean_failure(self, outcomes: Sequence[Outcome]) -> str | None:
        """Say what is wrong with the mean of a whole run."""
        mean = mean_speedup(outcomes)
        if mean is None or mean >= self.mean_at_least:
            return None
        return f"geometric mean of the speed-ups over the fastest peers: {mean:.3g}, at least {self.mean_at_least:g}"


def ratios_of(outcome: Outcome) -> dict[str, Ratio]:
    """Return what is judged, by what it is against."""
    found = {CEILING: outcome.ceiling_fraction, PEER: outcome.speedup}
    return {against: ratio for against, ratio in found.items() if ratio is not None}


def baseline_path(folder: Path, facts: Mapping[str, Any]) -> Path:
    """Return where earlier runs of one processor and number of threads are kept, as `surroundings` tells them."""
    name = re.sub(r"[^a-z0-9]+", "-", facts["processor"].lower()).strip("-")
    return folder / f"{name}-{facts['threads']}-threads.json"


def read_gates(gates: Path, baseline: Path) -> Gates:
    """Read the two files; the baseline need not be there.

    Raises
    ------
    ValueError
        If a gate is not as the head of this module says.
    """
    content = tomllib.loads(gates.read_text(encoding="utf-8"))
    earlier = json.loads(baseline.read_text(encoding="utf-8"))["cases"] if baseline.exists() else {}
    tolerances = content["baseline"]
    rules = [_gate(table) for table in content["gate"]]
    return Gates(rules, {key: tolerances[key] for key in (CEILING, PEER)}, content["mean"]["at_least"], earlier)


def _gate(table: Mapping[str, Any]) -> Gate:
    unknown = set(table) - {"cases", "against", "at_least", "exempt", "cause"}
    if unknown or table.get("against") not in (CEILING, PEER):
        raise ValueError(f"a [[gate]] takes cases, against (ceiling or peer), at_least or exempt, cause; got {table}")
    if ("at_least" in table) == bool(table.get("exempt")):
        raise ValueError(f"a [[gate]] has either at_least or exempt = true, got {table}")
    re.compile(table["cases"])
    return Gate(table["cases"], table["against"], table.get("at_least", 0.0), table.get("cause", ""))


def baseline_of(runs: Iterable[Iterable[Outcome]]) -> dict[str, dict[str, float]]:
    """The section ``cases`` of a baseline file: what a later run can be held against, medians of several."""
    found: dict[str, dict[str, list[float]]] = {}
    for outcome in itertools.chain.from_iterable(runs):
        for against, ratio in ratios_of(outcome).items():
            found.setdefault(outcome.case.id, {}).setdefault(against, []).append(ratio.value)
    return {
        case: {
            against: round(ratio, 3)
            for against, ratio in zip(ratios, map(statistics.median, ratios.values()), strict=True)
            if against == PEER or ratio >= NEAR
        }
        for case, ratios in found.items()
    }
