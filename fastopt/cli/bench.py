"""`fastopt bench`: how fast it is here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fastopt.bench.cases import Case
    from fastopt.bench.outcome import Outcome


Dtype = StrEnum("Dtype", ["float32", "float64"])
StackName = StrEnum("StackName", {"plain": "plain", "clip": "clip", "clip_ema": "clip-ema", "all": "all"})


def bench(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="As adam, sgd-momentum; none means all.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|N", show_default="1e7", help="gpt2, resnet50, vit-b, 400-tensors, or elements."),
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Of parameters and gradients.")] = Dtype.float32,
    stack: Annotated[StackName, typer.Option(help="What a step does beside the rule.")] = StackName.plain,
    peers: Annotated[
        str | None, typer.Option(metavar="NAME,...|none", show_default="all", help="Whom to compare with.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, metavar="S", help="For the rounds of each case, about.")] = 2.0,
    threads: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", show_default="all", help="Threads that a step may use, on all sides."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the figures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure steps against the memory's speed and other libraries.

    The ceiling are plain loops over as many arrays as a step has to read and
    write. Peers are torch, optax, Keras, DeepSpeed, as far as they are
    installed, and NumPy. All are first shown to compute the same, then they
    take turns, round by round; figures are ratios.

      fastopt bench
      fastopt bench adamw lion --model gpt2 --stack clip-ema --plot bench.png

    A case that other programs disturbed is marked, without figures, left out of
    the mean, and the exit status is 75. One that finds no memory, or whose sides
    disagree, is named, and the exit status is 1.
    Ctrl-C ends with what was measured, and exit status 130.
    """
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        typer.echo('This needs matplotlib: pip install "fastopt[demo]"', err=True)
        raise typer.Exit(1)
    from . import report
    from .runs import UsageError, cap_threads
    from .training import INTERRUPTED, interruptible

    try:
        report.check_picture(plot)
        cases = planned(names or [], model or ["1e7"], dtype.value, stack.value)
        chosen = planned_peers(peers)
        cap_threads(threads)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from error
    with interruptible() as stopped:
        outcomes, busy, failed = _measure(cases, chosen, seconds, stopped)
    if outcomes or busy:
        _print(outcomes, busy, as_json)
    if outcomes and plot is not None:
        _draw(outcomes, plot)
    if stopped():
        raise typer.Exit(INTERRUPTED)
    from fastopt.bench.outcome import BUSY_STATUS

    raise typer.Exit(1 if failed else BUSY_STATUS if busy else 0)


def planned(names: Sequence[str], models: Sequence[str], dtype: str, stack: str) -> list[Case]:
    """Return the cases that the words of a command mean.

    Raises
    ------
    UsageError
        If a word means nothing.
    """
    from fastopt.bench.cases import user_cases
    from fastopt.bench.recipes import RECIPES
    from fastopt.bench.shapes import MODELS

    from .runs import UsageError

    recipes = _known(names, RECIPES, "case") or list(RECIPES)
    for name in models:
        if name not in MODELS and not _is_size(name):
            raise UsageError(f"--model takes a number of elements, or {', '.join(MODELS)}; got {name!r}")
    return user_cases(recipes, models, dtype, stack)


def _is_size(text: str) -> bool:
    try:
        return 1 <= float(text) < 1e12
    except ValueError:
        return False


def planned_peers(text: str | None) -> list[str] | None:
    """Return names of peers, None for all; a UsageError says that there is no such peer."""
    from fastopt.bench.peers import PEERS

    return None if text is None else [] if text == "none" else _known(text.split(","), PEERS, "peer")


def _known(words: Sequence[str], names: Iterable[str], what: str) -> list[str]:
    """Find words, in any case, among names."""
    from .runs import UsageError

    by_lower_case = {name.lower(): name for name in names}
    for word in words:
        if word.strip().lower() not in by_lower_case:
            raise UsageError(f"no {what} is called {word!r}; there are {', '.join(by_lower_case.values())}")
    return [by_lower_case[word.strip().lower()] for word in words]


def _measure(
    cases: Sequence[Case], peers: Sequence[str] | None, seconds: float, stopped: Callable[[], bool]
) -> tuple[list[Outcome], dict[str, str], bool]:
    """Return outcomes, the cases that others disturbed and how, and whether one failed."""
    from rich.console import Console

    from fastopt.bench.check import DisagreementError
    from fastopt.bench.measurement import TooLargeError, measure
    from fastopt.bench.outcome import BusyError

    from .progress import counting_bars

    console = Console(stderr=True)  # where results go to a file or a pipe, the progress is seen still
    outcomes: list[Outcome] = []
    busy: dict[str, str] = {}
    failed = False
    with counting_bars(console, transient=True) as bars:
        task = bars.add_task("", total=len(cases))
        for case in cases:
            if stopped():
                break
            bars.update(task, description=case.id)
            try:
                outcomes.append(measure(case, seconds, peers))
            except BusyError as error:
                busy[case.id] = str(error)
            except (DisagreementError, TooLargeError) as error:
                failed = True
                console.print(f"{case.id}: {error}", markup=False, highlight=False)
            bars.advance(task)
    return outcomes, busy, failed


def _print(outcomes: Sequence[Outcome], busy: Mapping[str, str], as_json: bool) -> None:
    import json

    from fastopt.bench.surroundings import surroundings

    if as_json:
        cases = [outcome.to_json() for outcome in outcomes]
        typer.echo(json.dumps({"surroundings": surroundings(), "cases": cases, "not_measured": busy}, indent=1))
        return
    from .bench_report import show
    from .report import make_console

    show(make_console(), outcomes, busy)


def _draw(outcomes: Sequence[Outcome], plot: Path) -> None:
    from fastopt.bench.picture import save_picture
    from fastopt.bench.surroundings import surroundings

    facts = surroundings()
    title = f"fastopt {facts['versions']['fastopt']}, {facts['threads']} threads of {facts['processor']}"
    try:
        save_picture(outcomes, plot, title)
    except OSError as error:
        typer.echo(f"not written: {error}", err=True)
        raise typer.Exit(1) from error
