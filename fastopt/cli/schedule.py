"""`fastopt schedule`: what a learning-rate schedule does, before it is used."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fastopt.schedules import LearningRateSchedule

DEFAULT_STEPS = 100

MOST_ROWS = 10**7
"""Of CSV and JSON, which are made in memory."""


def schedule(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="SCHEDULE", help="Calls or names; then flags.", show_default=False)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", show_default="as long as they last", help="The last step shown.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw all schedules in one picture.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print every step's rates as CSV instead.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print configs and every step's rates as JSON.")] = False,
) -> None:
    """Show the rates of learning-rate schedules.

    A schedule is a call, or a name with the arguments as flags; what is
    required and not given is filled in, and shown:

      fastopt schedule "CosineDecay(0.01, 1000)" "OneCycle(0.01, 1000)"
      fastopt schedule warmupcosine --warmup-steps 50 --total-steps 500
      fastopt schedule stepdecay:variant=formula stepdecay:variant=code

    Flags come last, and go to all schedules given by name.
    """
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        typer.echo('This needs matplotlib: pip install "fastopt[demo]"', err=True)
        raise typer.Exit(1)
    from . import report
    from .runs import UsageError

    try:
        if as_csv and as_json:
            raise UsageError("--csv and --json exclude each other")
        report.check_picture(plot)
        schedules, last = _planned(names or [], steps)
        if as_csv or as_json:
            _print_data(schedules, last, as_json)
        else:
            _print_tables(schedules, last)
        if plot is not None:
            _save_picture(schedules, last, plot)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from error


def _planned(tokens: Sequence[str], steps: int | None) -> tuple[list[LearningRateSchedule], int]:
    """The schedules, and the last step to show."""
    from fastopt.schedules import base

    from .curves import examples, natural_steps
    from .runs import UsageError, plan_schedules, read_flags

    texts = list(takewhile(lambda token: not token.startswith("--"), tokens))
    if not texts:
        raise UsageError(f"name a schedule, before any flags: {', '.join(base.KNOWN)}")
    schedules = plan_schedules(texts, read_flags(tokens[len(texts) :]), examples(steps or DEFAULT_STEPS))
    return schedules, steps or max(map(natural_steps, schedules)) or DEFAULT_STEPS


def _print_tables(schedules: Sequence[LearningRateSchedule], last: int) -> None:
    from .curves import show_schedules
    from .report import make_console

    show_schedules(make_console(), schedules, last)


def _print_data(schedules: Sequence[LearningRateSchedule], last: int, as_json: bool) -> None:
    import csv
    import json
    import sys

    from fastopt.schedules import serialize

    from .curves import sample
    from .runs import UsageError

    if last > MOST_ROWS:
        raise UsageError(f"every step up to {last:,} is too much: choose --steps of at most {MOST_ROWS:,}")
    steps = range(last + 1)
    curves = sample(schedules, steps)
    if as_json:
        described = [
            {"label": curve.label, **serialize(schedule), "rates": curve.rates}
            for schedule, curve in zip(schedules, curves, strict=True)
        ]
        typer.echo(json.dumps({"steps": last + 1, "schedules": described}))
        return
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["step", *(curve.label for curve in curves)])
    writer.writerows(zip(steps, *(curve.rates for curve in curves), strict=True))


def _save_picture(schedules: Sequence[LearningRateSchedule], last: int, path: Path) -> None:
    from .curves import save_plot

    try:
        save_plot(schedules, last, path)
    except OSError as error:
        typer.echo(f"the picture was not written: {error}", err=True)
        raise typer.Exit(1) from error
