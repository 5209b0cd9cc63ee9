"""The rates of schedules over the steps: sampled, as a table, as lines of text, as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastopt.schedules import CosineDecay, LearningRateSchedule, LinearWarmup

from .report import color_of, fits, show_table
from .runs import UsageError, shown_schedule

SPARKS, ASCII_SPARKS = "▁▂▃▄▅▆▇█", "_.:-=+*#"
SPARK_WIDTH = 40
TABLE_ROWS = 11
POINTS = 4000
"""Steps at which a schedule is looked at, if it has more."""

MOST_STEPS = 10**15
"""More are not shown unless they are asked for."""

LENGTHS = ("warmup_steps", "stable_steps", "decay_steps", "first_decay_steps", "total_steps")
"""Arguments that say how many steps a part of a schedule takes."""


class Curve(NamedTuple):
    """A schedule and its rates at some steps."""

    label: str
    rates: list[float]


def examples(steps: int) -> dict[str, Any]:
    """Values for the required arguments of every schedule, so that its shape is seen within ``steps``."""
    rate, tenth = 0.1, max(1, steps // 10)
    return {
        "initial_learning_rate": rate,
        "learning_rate": rate,
        "max_learning_rate": rate,
        "peak_learning_rate": rate,
        "decay_steps": max(1, steps - 6 * tenth),
        "first_decay_steps": max(1, steps // 7),
        "total_steps": steps,
        "warmup_steps": steps // 10,
        "stable_steps": 5 * tenth,
        "decay_rate": 0.5,
        "decay": 0.1,
        "drop": 0.5,
        "epochs_drop": 2 * tenth,
        "boundaries": [3 * tenth, 6 * tenth],
        "values": [rate, rate / 2, rate / 10],
        "schedules": [LinearWarmup(rate, 3 * tenth), rate, CosineDecay(rate, 4 * tenth)],
    }


def natural_steps(schedule: object) -> int:
    """About how many steps it takes to see all that a schedule does; 0 if it does not say."""
    if not isinstance(schedule, LearningRateSchedule):
        return 0
    own = sum(getattr(schedule, key, 0) for key in LENGTHS)
    if hasattr(schedule, "t_mul"):
        own *= 1 + schedule.t_mul + schedule.t_mul * schedule.t_mul
    if hasattr(schedule, "epochs_drop"):
        own = 4 * schedule.epochs_drop * getattr(schedule, "steps_per_epoch", 1)
    inner = natural_steps(getattr(schedule, "learning_rate", None))
    boundaries = getattr(schedule, "boundaries", None)
    if boundaries:
        last = natural_steps(getattr(schedule, "schedules", [None])[-1])
        own = boundaries[-1] + (last or boundaries[-1] / 3)
    return math.ceil(min(own + inner, MOST_STEPS))


def spread(last: int, count: int) -> list[int]:
    """At most ``count`` steps from 0 to ``last``, evenly spread."""
    return sorted({round(number * last / (count - 1)) for number in range(count)})


def sample(schedules: Sequence[LearningRateSchedule], steps: Sequence[int]) -> list[Curve]:
    """The rates of all schedules.

    Raises
    ------
    UsageError
        If a schedule cannot give a rate, or gives one below zero.
    """
    return [Curve(shown_schedule(schedule), [_rate(schedule, step) for step in steps]) for schedule in schedules]


def _rate(schedule: LearningRateSchedule, step: int) -> float:
    try:
        rate = schedule(step)
    except (ArithmeticError, ValueError) as error:
        raise UsageError(f"{shown_schedule(schedule)} has no rate at step {step}: {error}") from error
    if rate < 0:
        raise UsageError(f"{shown_schedule(schedule)} has a negative rate at step {step}, {rate:g}: steps would climb")
    return rate


def telling_steps(schedules: Sequence[LearningRateSchedule], last: int) -> list[int]:
    """The steps at which a rate changes, if they are few, else some that are evenly spread; the first and the last."""
    if last < POINTS:
        every = list(zip(*(curve.rates for curve in sample(schedules, range(last + 1))), strict=True))
        changes = [step for step in range(1, last + 1) if every[step] != every[step - 1]]
        if len(changes) <= 2 * TABLE_ROWS:
            return sorted({0, *changes, last})
    return spread(last, TABLE_ROWS)


def sparkline(rates: Sequence[float], sparks: str = SPARKS) -> str:
    """The rates as blocks of eight heights, from the lowest to the highest."""
    lowest, height = min(rates), max(rates) - min(rates)
    return "".join(sparks[round((rate - lowest) / height * 7) if height else 0] for rate in rates)


def show_schedules(console: Console, schedules: Sequence[LearningRateSchedule], last: int) -> None:
    """Print a summary, and the rates at some steps.

    Where a terminal is too narrow for a column per schedule with its name above it, schedules get numbers, and as many
    tables as that takes.
    """
    steps = telling_steps(schedules, last)
    curves = sample(schedules, steps)
    rates = _rate_table(steps, curves)
    summary = sample(schedules, spread(last, POINTS))
    if not fits(console, rates):
        summary, curves = _numbered(summary), [Curve(str(k + 1), curve.rates) for k, curve in enumerate(curves)]
    show_table(console, _summary_table(console, summary, last))
    while curves:
        count = next((n for n in range(len(curves), 1, -1) if fits(console, _rate_table(steps, curves[:n]))), 1)
        console.print(_rate_table(steps, curves[:count]))
        curves = curves[count:]


def _numbered(curves: Sequence[Curve]) -> list[Curve]:
    return [Curve(f"{number}. {curve.label}", curve.rates) for number, curve in enumerate(curves, 1)]


def _summary_table(console: Console, curves: Sequence[Curve], last: int) -> Table:
    """A row per schedule: its shape, and its first, lowest, highest and last rate."""
    ascii_only = console.options.ascii_only
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("schedule", overflow="fold")
    table.add_column(f"steps 0 to {_whole(last)}", no_wrap=True)
    for name in ("first", "lowest", "highest", "last"):
        table.add_column(name, justify="right", no_wrap=True)
    for curve in curves:
        rates = curve.rates
        shown = [rates[index] for index in spread(len(rates) - 1, min(SPARK_WIDTH, console.width // 4))]
        shape = sparkline(shown, ASCII_SPARKS if ascii_only else SPARKS)
        table.add_row(Text(curve.label), shape, *map(_figure, (rates[0], min(rates), max(rates), rates[-1])))
    return table


def _rate_table(steps: Sequence[int], curves: Sequence[Curve]) -> Table:
    """A row per step, and a column per schedule."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("step", justify="right", style="cyan", no_wrap=True)
    for curve in curves:
        table.add_column(Text(curve.label), justify="right", overflow="fold")
    for row, step in enumerate(steps):
        table.add_row(_whole(step), *(_figure(curve.rates[row]) for curve in curves))
    return table


def _whole(step: int) -> str:
    return f"{step:,}" if step < 10**12 else f"{Decimal(step):.4g}"


def _figure(rate: float) -> str:
    return f"{rate:.4g}"


def save_plot(schedules: Sequence[LearningRateSchedule], last: int, path: Path) -> None:
    """Draw all schedules into one picture.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.6 + 0.25 * len(schedules)), layout="constrained", dpi=150)
    panel = figure.subplots()
    steps = spread(last, POINTS)
    for number, curve in enumerate(sample(schedules, steps)):
        panel.plot(steps, curve.rates, drawstyle="steps-post", color=color_of(number), label=curve.label)
    panel.set(xlabel="step", ylabel="learning rate")
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(x=0.01)
    figure.legend(loc="outside lower center", frameon=False)
    figure.savefig(path)
