"""The picture of a run: how close to the ceiling, and how far ahead of whom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .outcome import Outcome
from .peers import PEERS

INK, FAINT, OURS = "#222222", "#d9d9d9", "#2a6f97"

NARROW = 0.3
"""The fraction whose bar holds no number, which stands beside it then."""


def save_picture(outcomes: Sequence[Outcome], path: Path, title: str) -> None:
    """Bars of the fraction of the ceiling, and marks for the speed-up over each peer.

    Raises
    ------
    OSError, ValueError
        If the file cannot be written, or its ending is no image format.
    """
    picture_of(outcomes, title).savefig(path)


def picture_of(outcomes: Sequence[Outcome], title: str) -> Any:
    """The picture as a figure of matplotlib."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(12, 1.8 + 0.3 * len(outcomes)), dpi=150, layout=ConstrainedLayoutEngine(h_pad=0.1))
    figure.suptitle(title, fontweight="bold")
    fractions, speedups = figure.subplots(1, 2, sharey=True)
    places = range(len(outcomes), 0, -1)
    _draw_fractions(fractions, outcomes, places)
    _draw_speedups(speedups, outcomes, places)
    fractions.set_yticks(list(places), labels_of(outcomes))
    fractions.set_ylim(0.4, len(outcomes) + 0.6)
    for panel in (fractions, speedups):
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(axis="y", length=0)
    return figure


def labels_of(outcomes: Sequence[Outcome]) -> list[str]:
    """Label each case with only what tells it from the others."""
    parts = [outcome.case.parts for outcome in outcomes]
    differing = [k for k in range(len(parts[0])) if len({part[k] for part in parts}) > 1] or [0]
    return [" ".join(part[k] for k in differing) for part in parts]


def _draw_fractions(panel: Any, outcomes: Sequence[Outcome], places: Sequence[int]) -> None:
    for outcome, place in zip(outcomes, places, strict=True):
        ratio = outcome.ceiling_fraction
        if ratio is None:
            panel.text(0.01, place, "not bound by memory", va="center", color=INK, fontsize=8)
            continue
        errors = [[max(0.0, ratio.value - ratio.low)], [max(0.0, ratio.high - ratio.value)]]
        panel.barh(place, ratio.value, height=0.7, color=OURS, xerr=errors, ecolor=INK)
        inside = ratio.value > NARROW
        start, color = (0.01, "white") if inside else (ratio.high + 0.02, INK)
        panel.text(start, place, f"{ratio.value:.2f}", va="center", color=color, fontsize=8)
    panel.axvline(1.0, color=INK, linestyle="--", linewidth=1)
    panel.set(xlabel="fraction of the ceiling:\nplain loops over as many arrays, same run", xlim=(0, None))


def _draw_speedups(panel: Any, outcomes: Sequence[Outcome], places: Sequence[int]) -> None:
    from matplotlib import colormaps

    for number, name in enumerate(PEERS):
        pairs = zip(outcomes, places, strict=True)
        found = [(outcome.speedups[name].value, place) for outcome, place in pairs if name in outcome.speedups]
        if found:
            values, rows = zip(*found, strict=True)
            panel.scatter(values, rows, s=36, color=colormaps["tab10"](number), label=name, zorder=3)
    panel.hlines(list(places), *_span(outcomes), color=FAINT, linewidth=0.6)
    panel.axvline(1.0, color=INK, linestyle="--", linewidth=1)
    panel.set(xlabel="speed-up: time of the peer over fastopt's;\nleft of 1 the peer is faster", xscale="log")
    if any(outcome.speedups for outcome in outcomes):
        panel.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4, frameon=False, fontsize=8)


def _span(outcomes: Sequence[Outcome]) -> tuple[float, float]:
    values = [ratio.value for outcome in outcomes for ratio in outcome.speedups.values()]
    return min([0.8, *values]), max([10.0, *values])
