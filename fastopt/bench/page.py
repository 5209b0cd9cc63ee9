"""A run as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from .outcome import Outcome
from .peers import PEERS
from .ratios import Ratio

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #eee; }
th:first-child, td:first-child { text-align: left; }
td.bar { min-width: 14rem; }
.bar div { background: #2a6f97; color: white; padding: 0 .4rem; text-align: left; white-space: nowrap; }
.best { font-weight: bold; } .slower { color: #b00020; } .none { color: #aaa; }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd; } th, td { border-color: #333; } }
"""


def page(outcomes: Sequence[Outcome], surroundings: Mapping[str, Any], title: str) -> str:
    """The whole page."""
    peers = [name for name in PEERS if any(name in outcome.speedups for outcome in outcomes)]
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>',
            f"<h1>{escape(title)}</h1>",
            "<p>Bars: fraction of the speed of plain loops over as many arrays, in the same run. Peers: their time "
            "over fastopt's; the fastest is bold, and red where it is faster than fastopt.</p>",
            "<table>",
            _header(["case", "of the ceiling", "GB/s", *peers]),
            *(_row(outcome, peers) for outcome in outcomes),
            "</table>",
            "<h2>The machine</h2>",
            "<table>",
            *(f"<tr><td>{escape(name)}</td><td>{escape(fact)}</td></tr>" for name, fact in _facts(surroundings)),
            "</table></html>\n",
        ]
    )


def _header(names: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<th>{escape(name)}</th>" for name in names) + "</tr>"


def _row(outcome: Outcome, peers: Sequence[str]) -> str:
    cells = [f"<td>{escape(outcome.case.id)}</td>", _bar(outcome.ceiling_fraction), f"<td>{outcome.gb_per_s:.3g}</td>"]
    return "<tr>" + "".join([*cells, *(_speedup(outcome, name) for name in peers)]) + "</tr>"


def _bar(ratio: Ratio | None) -> str:
    if ratio is None:
        return '<td class="none">not bound by memory</td>'
    width = min(100.0, 100 * ratio.value)
    return f'<td class="bar"><div style="width: {width:.0f}%">{ratio.value:.2f}</div></td>'


def _speedup(outcome: Outcome, name: str) -> str:
    if name not in outcome.speedups:
        return f'<td class="none" title="{escape(outcome.missing.get(name, ""))}">–</td>'
    ratio = outcome.speedups[name]
    classes = ["best"] * (name == outcome.peer) + ["slower"] * (ratio.high < 1)
    return f'<td class="{" ".join(classes)}" title="{ratio.low:.3g} to {ratio.high:.3g}">{ratio.value:.3g}</td>'


def _facts(surroundings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, fact in surroundings.items():
        shown = ", ".join(f"{key} {value}" for key, value in fact.items()) if isinstance(fact, Mapping) else str(fact)
        yield name.replace("_", " "), shown
