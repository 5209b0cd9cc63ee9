"""What `fastopt bench` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastopt.bench.outcome import Outcome, mean_speedup
from fastopt.bench.peers import PEERS
from fastopt.bench.ratios import Ratio

from .report import show_table

GOOD, FAIR = 0.88, 0.6
"""Fractions of the ceiling from which on a figure is green, or yellow."""

COLUMNS = ("bytes/\nparam.", "GB/s", "of the\nceiling")


def outcome_table(outcomes: Sequence[Outcome]) -> Table:
    """A row for each case, a column for each peer that took part in any."""
    peers = [name for name in PEERS if any(name in outcome.speedups for outcome in outcomes)]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), caption_justify="left")
    table.caption = "peers: their time over fastopt's; fastest peer bold, red where it is faster than fastopt"
    table.add_column("case", overflow="fold")
    for name in (*COLUMNS, *(name.replace(" ", "\n") for name in peers)):
        table.add_column(name, justify="right", no_wrap=True)
    for outcome in outcomes:
        table.add_row(*_row(outcome, peers))
    return table


def _row(outcome: Outcome, peers: Sequence[str]) -> list[Text | str]:
    moved = str(outcome.bytes_per_parameter), f"{outcome.gb_per_s:.3g}"
    ratios = [_fraction(outcome.ceiling_fraction), *(_speedup(outcome, name) for name in peers)]
    return [outcome.case.id.replace("/cpu", ""), *moved, *ratios]


def _fraction(ratio: Ratio | None) -> Text:
    if ratio is None:
        return Text("–")
    style = "green" if ratio.value >= GOOD else "yellow" if ratio.value >= FAIR else ""
    return Text(f"{ratio.value:.2f}", style)


def _speedup(outcome: Outcome, name: str) -> Text:
    if name not in outcome.speedups:
        return Text("–", "dim")
    ratio = outcome.speedups[name]
    fastest = "bold" if name == outcome.peer else ""
    return Text(f"{ratio.value:.3g}", f"{fastest} {'red' if ratio.high < 1 else ''}".strip())


def show(console: Console, outcomes: Sequence[Outcome], busy: Mapping[str, str]) -> None:
    """Print a table, the mean, why which peer did not take part, and which cases other programs disturbed."""
    if outcomes:
        show_table(console, outcome_table(outcomes))
    if (mean := mean_speedup(outcomes)) is not None:
        console.print(f"geometric mean of the speed-ups over the fastest peer of each case: {mean:.2f}")
    missing = [set(outcome.missing.items()) for outcome in outcomes]
    for name, reason in sorted(set.intersection(*missing) if missing else ()):
        console.print(f"without {name}: {reason}", style="dim")
    for case, reason in busy.items():
        console.print(f"{case}: {reason}", style="yellow", highlight=False)
    if busy:
        cases = len(outcomes) + len(busy)
        console.print(f"{len(busy)} of {cases} cases not measured: run them again when nothing else runs")
