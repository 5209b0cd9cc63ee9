"""What a training shows of itself: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from .training import Training, Watch

REFRESH = 0.1
"""Seconds between two updates of the live line."""


@contextlib.contextmanager
def watching(console: Console, quiet: bool) -> Iterator[Watch]:
    """The way to follow trainings that fits the console."""
    if quiet:
        yield Watch()
    elif not console.is_terminal or console.is_dumb_terminal:
        yield PlainLines(console)
    else:
        with LiveLine(console) as live:
            yield live


class PlainLines(Watch):
    """A line for about every tenth epoch, without control codes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begin(self, training: Training) -> None:
        """Name the run."""
        self._print(training.run.label)

    def epoch(self, training: Training) -> None:
        """Print what has been reached."""
        number = len(training.history) - 1
        every = -(-training.epochs // 10)
        if number % every and number < training.epochs and not (training.interrupted or training.problem):
            return
        point = training.history[-1]
        self._print(
            f"epoch {number:>{len(str(training.epochs))}}/{training.epochs}"
            f"  loss {point.train_loss:.4f}"
            f"  accuracy {point.train_accuracy:.4f} train {point.test_accuracy:.4f} test"
            f"  learning rate {training.optimizer.learning_rate:.3g}"
            f"  {training.steps_per_second:.0f} steps/s"
        )

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class LiveLine(Watch):
    """A progress bar per run, with loss, accuracy, learning rate and speed."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, max_width=max(8, console.width - 70))),
            BarColumn(bar_width=None),
            TextColumn("loss [bold]{task.fields[loss]:.4f}"),
            TextColumn("accuracy [bold]{task.fields[accuracy]:.4f}"),
            TextColumn("rate [bold]{task.fields[rate]:.2g}"),
            TextColumn("[cyan]{task.fields[speed]:,.0f} steps/s"),
            console=console,
            expand=True,
        )
        self._task = TaskID(0)
        self._next = 0.0

    def __enter__(self) -> LiveLine:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def begin(self, training: Training) -> None:
        """Add the run's bar."""
        fields = self._fields(training, training.history[-1].train_loss)
        self._task = self._bars.add_task(training.run.label, total=training.total_steps, **fields)

    def step(self, training: Training) -> None:
        """Move the bar, now and then."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + REFRESH
            fields = self._fields(training, training.batch_loss)
            self._bars.update(self._task, completed=training.steps, **fields)

    def epoch(self, training: Training) -> None:
        """Show the losses over all samples."""
        fields = self._fields(training, training.history[-1].train_loss)
        self._bars.update(self._task, completed=training.steps, **fields)

    @staticmethod
    def _fields(training: Training, loss: float) -> dict[str, Any]:
        return {
            "loss": loss,
            "accuracy": training.history[-1].test_accuracy,
            "rate": training.optimizer.learning_rate,
            "speed": training.steps_per_second,
        }
