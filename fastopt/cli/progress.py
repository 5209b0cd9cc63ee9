"""What a training shows of itself: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.constrain import Constrain
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from .training import Training, Watch

REFRESH = 0.1
"""Seconds between two updates of the live line."""

ROOM = 4
"""For two ^C, right of the live line."""


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


class _Narrowed(NamedTuple):
    """Leaves room at the right for what a terminal echoes, as ^C.

    A line that this made longer than the terminal is wide would become two, of which the first is never erased.
    """

    content: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Constrain(self.content, options.max_width - ROOM)


class Bars(Progress):
    """Progress bars that an echoed ^C does not break."""

    def get_renderables(self) -> Iterator[RenderableType]:
        """See `rich.progress.Progress`."""
        yield _Narrowed(self.make_tasks_table(self.tasks))


def counting_bars(console: Console, transient: bool = False) -> Bars:
    """Bars that tell how many of a number of things are done, in a terminal; elsewhere nothing."""
    label = TextColumn("{task.description}", table_column=Column(no_wrap=True, max_width=max(8, console.width - 30)))
    columns = label, BarColumn(bar_width=None), MofNCompleteColumn(), TimeElapsedColumn()
    live = console.is_terminal and not console.is_dumb_terminal
    return Bars(*columns, console=console, disable=not live, transient=transient, expand=True)


class LiveLine(Watch):
    """A progress bar per run, with loss, accuracy, learning rate and speed, as far as there is room for them."""

    WHOLE, SHORT = 76, 62
    """Widths of a terminal from which on the line has everything, and everything but its label."""

    def __init__(self, console: Console) -> None:
        label = Column(no_wrap=True, max_width=max(8, console.width - 74))
        self._labelled = console.width >= self.WHOLE
        self._bars = Bars(
            *([TextColumn("{task.description}", table_column=label)] if self._labelled else []),
            BarColumn(bar_width=None),
            TextColumn("loss [bold]{task.fields[loss]}"),
            TextColumn("accuracy [bold]{task.fields[accuracy]:.4f}"),
            *([TextColumn("rate [bold]{task.fields[rate]:.2g}")] if console.width >= self.SHORT else []),
            *([TextColumn("[cyan]{task.fields[speed]:,.0f} steps/s")] if console.width >= self.SHORT else []),
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
        if not self._labelled:
            self._bars.console.print(training.run.label, markup=False, highlight=False)
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
            "loss": f"{loss:.4f}" if loss < 1e4 else f"{loss:.3g}",
            "accuracy": training.history[-1].test_accuracy,
            "rate": training.optimizer.learning_rate,
            "speed": training.steps_per_second,
        }
