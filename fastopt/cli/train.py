"""`fastopt train`: a small network, real data, any optimizer."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from .data import Digits
    from .runs import Run
    from .training import Settings, Training


class Precision(StrEnum):
    """The dtypes that parameters come in."""

    float32 = "float32"
    float64 = "float64"


def train(
    context: typer.Context,
    optimizer: Annotated[
        str | None, typer.Option(metavar="NAME", show_default="adam", help="Any, as sgd, lamb, Muon.")
    ] = None,
    batch_size: Annotated[str, typer.Option(metavar="N|full", help="Samples per step; full: all at once.")] = "32",
    epochs: Annotated[int, typer.Option(min=1, metavar="N", help="Times that every sample is used.")] = 30,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the initial weights and the order of samples.")] = 0,
    threads: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", show_default="all", help="Threads that a step of the optimizer may use."),
    ] = None,
    hidden: Annotated[str, typer.Option(metavar="N,N,...|none", help="Widths of the hidden layers.")] = "128,64",
    activation: Annotated[str, typer.Option(metavar="NAME", help="Between layers: relu, gelu, tanh, ...")] = "relu",
    loss: Annotated[
        str, typer.Option(metavar="NAME", help="What is trained for, as mse; in probabilities.")
    ] = "sparse_categorical_crossentropy",
    dtype: Annotated[Precision, typer.Option(help="Of parameters and gradients.")] = Precision.float32,
    epoch_schedule: Annotated[
        str | None,
        typer.Option(metavar="SCHEDULE", help='Learning rate of every epoch, as "StepDecay(0.1, 0.5, 10)".'),
    ] = None,
    plateau: Annotated[
        int | None,
        typer.Option(min=0, metavar="EPOCHS", help="Divide the rate by 10 when the loss has not fallen for so long."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw loss and accuracy.")] = None,
    compare: Annotated[
        str | None,
        typer.Option(metavar="RUN,RUN,...", help="Several runs, such as sgd:momentum=.9,adam."),
    ] = None,
    digest: Annotated[bool, typer.Option("--digest", help="Print a hash of the final parameters.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the last line only.")] = False,
) -> None:
    """Train a small network on scikit-learn's scans of handwritten digits.

    Every hyper-parameter of the optimizer is a flag too, as in

      --learning-rate 0.01 --beta-1=.9 --amsgrad
      --learning-rate "CosineDecay(0.01, 1000)" --no-nesterov

    Where an optimizer's defaults do not suit this network, better ones are
    used, and shown.

    The last line is the test accuracy: with --compare, the best of all runs.
    Ctrl-C ends the training with what was reached, and exit status 130.
    """
    _require_extra(plot)
    from . import report
    from .runs import UsageError, cap_threads
    from .training import interruptible

    console = report.make_console()
    try:
        with interruptible() as stopped:
            settings = _settings(batch_size, epochs, seed, hidden, dtype)
            settings = _with_functions(settings, activation, loss, epoch_schedule, plateau)
            runs = _runs(optimizer, compare, context.args)
            _check_rates(runs, settings)
            report.check_picture(plot)
            cap_threads(threads)
            trainings = _train(runs, settings, console, quiet, stopped)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from error
    if not quiet:
        report.show_results(console, trainings)
    failed = _tell_problems(trainings) | _save_plot(trainings, plot)
    _tell_results(trainings, digest)
    raise typer.Exit(_status_of(trainings, failed))


def _require_extra(plot: Path | None) -> None:
    needed = ["sklearn", *(["matplotlib"] if plot is not None else [])]
    if any(importlib.util.find_spec(module) is None for module in needed):
        typer.echo('This needs scikit-learn and matplotlib: pip install "fastopt[demo]"', err=True)
        raise typer.Exit(1)


def _settings(batch_size: str, epochs: int, seed: int, hidden: str, dtype: Precision) -> Settings:
    from .training import Settings

    batch = None if batch_size.lower() == "full" else _counts("batch-size", batch_size)[0]
    widths = () if hidden.lower() == "none" else _counts("hidden", hidden)
    return Settings(epochs, batch, seed, widths, dtype.value)


def _with_functions(
    settings: Settings, activation: str, loss: str, epoch_schedule: str | None, patience: int | None
) -> Settings:
    from dataclasses import replace

    from fastopt import activations

    from .objective import Objective
    from .runs import UsageError, read_schedule

    try:
        activations.backward(activation)
        Objective(loss)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    schedule = None if epoch_schedule is None else read_schedule(epoch_schedule)
    return replace(settings, activation=activation, loss=loss, epoch_schedule=schedule, patience=patience)


def _counts(flag: str, text: str) -> tuple[int, ...]:
    from .runs import UsageError

    counts = text.split(",") if flag == "hidden" else [text]
    if not all(count.strip().isdecimal() and int(count) for count in counts):
        expected = "whole numbers above 0, or none" if flag == "hidden" else "a whole number above 0, or full"
        raise UsageError(f"--{flag} takes {expected}, got {text!r}")
    return tuple(map(int, counts))


def _runs(optimizer: str | None, compare: str | None, extra: Sequence[str]) -> list[Run]:
    from .runs import UsageError, plan_comparison, plan_run, read_flags

    flags = read_flags(extra)
    if compare is None:
        runs = [plan_run(optimizer or "adam", flags)]
    elif optimizer is None:
        runs = plan_comparison(compare, flags)
    else:
        raise UsageError("--optimizer and --compare exclude each other: name all optimizers in --compare")
    for run in runs:
        run.make()  # refuse bad values before anything is trained
    return runs


def _check_rates(runs: Sequence[Run], settings: Settings) -> None:
    """Only one of two may set a learning rate."""
    from fastopt.schedules import LearningRateSchedule

    from .runs import UsageError

    by_epoch = settings.epoch_schedule is not None or settings.patience is not None
    by_step = [run.label for run in runs if isinstance(run.arguments["learning_rate"], LearningRateSchedule)]
    if by_epoch and by_step:
        raise UsageError(
            f"--epoch-schedule and --plateau set the learning rate, but a schedule rules that of {by_step[0]}"
        )


def _train(
    runs: Sequence[Run], settings: Settings, console: Console, quiet: bool, stopped: Callable[[], bool]
) -> list[Training]:
    import numpy as np

    from .data import load_digits
    from .progress import watching

    planned = _planned(runs, settings, load_digits(np.dtype(settings.dtype)))
    with watching(console, quiet) as watch:
        for number, training in enumerate(planned, 1):
            training.prepare()
            training.fit(watch, stopped)
            if training.interrupted:
                return planned[:number]
    return planned


def _planned(runs: Sequence[Run], settings: Settings, digits: Digits) -> list[Training]:
    """The trainings of all runs, with schedules that have a rate for each of their steps."""
    from fastopt.schedules import LearningRateSchedule

    from .curves import POINTS, sample, spread
    from .runs import UsageError
    from .training import Training

    try:
        trainings = [Training(run, settings, digits) for run in runs]
    except (MemoryError, OverflowError, ValueError) as error:
        raise UsageError(f"--hidden {','.join(map(str, settings.hidden))} is too large: {error}") from error
    for training in trainings:
        rate = training.run.arguments["learning_rate"]
        if isinstance(rate, LearningRateSchedule):
            sample([rate], spread(training.total_steps - 1, POINTS))
    if settings.epoch_schedule is not None:
        sample([settings.epoch_schedule], spread(settings.epochs - 1, POINTS))
    return trainings


def _tell_problems(trainings: Sequence[Training]) -> bool:
    for training in trainings:
        if training.problem:
            typer.echo(f"{training.run.label} stopped after {training.steps} steps: {training.problem}", err=True)
    return any(training.problem for training in trainings)


def _tell_results(trainings: Sequence[Training], digest: bool) -> None:
    from . import report

    if digest:
        for training in trainings:
            typer.echo(f"{training.digest()}  {training.run.label}")
    typer.echo(f"test accuracy {report.best_of(trainings).history[-1].test_accuracy:.4f}")


def _status_of(trainings: Sequence[Training], failed: bool) -> int:
    from .training import INTERRUPTED

    return INTERRUPTED if any(training.interrupted for training in trainings) else int(failed)


def _save_plot(trainings: Sequence[Training], plot: Path | None) -> bool:
    """Whether the picture was wanted and failed."""
    from . import report

    if plot is None:
        return False
    try:
        report.save_plot(trainings, plot)
    except OSError as error:
        typer.echo(f"the picture was not written: {error}", err=True)
    return not plot.exists()
