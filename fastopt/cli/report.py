"""What a command leaves behind: tables, and the picture of a training."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .runs import UsageError
from .training import Training

IMAGE_FORMATS = (".png", ".pdf", ".svg", ".jpg")


def make_console() -> Console:
    """Standard output; where it is no terminal, wide enough for every table."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 120
    return console


LABEL = 20
"""Columns of a terminal that the first column of a table needs, where its words may be broken."""


def show_table(console: Console, table: Table) -> None:
    """Print a table with a label in its first column, the only one that may wrap, and figures in the others.

    Where the terminal is too narrow for that, each row becomes its label and, below it, the figures with their names:
    no figure is ever cut.
    """
    if fits(console, table) or _least_width(console, table) <= console.width:
        console.print(table)
        return
    for line in _lines(table, console.width):
        console.print(line)
    if table.caption:
        console.print(f"\n{table.caption}")


def fits(console: Console, table: Table) -> bool:
    """Whether a table needs no wrapping. A file or pipe becomes as wide as the table wants, unless it is told."""
    width = _width(console, table)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = max(console.width, width)
    return width <= console.width


def _width(console: Console, table: Table) -> int:
    return console.measure(table, options=console.options.update(max_width=100_000)).maximum


def _least_width(console: Console, table: Table) -> int:
    label = table.columns[0]
    label.max_width = LABEL
    width = _width(console, table)
    label.max_width = None
    return width


def _lines(table: Table, width: int) -> Iterator[Text]:
    """Lay out each row: an empty line, the label, and the figures with their names, as many in a line as fit."""
    names = [str(column.header).replace("/\n", "/").replace("\n", " ") for column in table.columns]
    rows = zip(*(column.cells for column in table.columns), strict=True)
    for row, (label, *figures) in zip(table.rows, rows, strict=True):
        yield Text()
        yield Text.assemble(label, style=row.style or "", overflow="fold")
        line = Text(" ")
        for name, figure in zip(names[1:], figures, strict=True):
            named = Text.assemble(" ", name, " ", figure)
            if line.cell_len > 1 and line.cell_len + 1 + named.cell_len > width:
                yield line
                line = Text(" ")
            line.append(" " * (line.cell_len > 1)).append(named)
        yield line


def two_columns(rows: dict[str, str]) -> Table:
    """A table of names and values."""
    table = Table(box=box.ROUNDED, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


def show_results(console: Console, trainings: Sequence[Training]) -> None:
    """Print the figures of one training one below the other, of several as one row each."""
    if len(trainings) > 1:
        show_table(console, _comparison(trainings))
        return
    label, parameters = trainings[0].run.label, trainings[0].model.parameter_count
    rows = {"optimizer": label, "parameters": f"{parameters:,}", **_figures(trainings[0])}
    console.print(two_columns(rows))


def _comparison(trainings: Sequence[Training]) -> Table:
    caption = f"{trainings[0].model.parameter_count:,} parameters"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0), caption=caption, caption_justify="left")
    table.add_column("optimizer", overflow="fold")
    for name in _figures(trainings[0]):
        table.add_column(name.replace(" ", "\n", 1), justify="right", no_wrap=True)
    best = best_of(trainings)
    for training in trainings:
        table.add_row(
            Text(training.run.label), *_figures(training).values(), style="bold green" if training is best else ""
        )
    return table


def best_of(trainings: Sequence[Training]) -> Training:
    """The training with the highest test accuracy, the first of equals."""
    return max(trainings, key=lambda training: training.history[-1].test_accuracy)


def _figures(training: Training) -> dict[str, str]:
    last = training.history[-1]
    return {
        "steps": f"{training.steps:,}",
        "train loss": f"{last.train_loss:.4f}",
        "train accuracy": f"{last.train_accuracy:.4f}",
        "test accuracy": f"{last.test_accuracy:.4f}",
        "seconds": f"{training.seconds:.2f}",
        "steps/s": f"{training.steps_per_second:,.0f}",
        "optimizer share": f"{training.optimizer_share:.0%}",
    }


def check_picture(path: Path | None) -> None:
    """Find out before the work is done whether the picture, if any, can be written; make its folder.

    Raises
    ------
    UsageError
        If its ending is no image format, or it cannot be written.
    """
    if path is None:
        return
    if path.suffix.lower() not in IMAGE_FORMATS:
        raise UsageError(f"--plot takes a file that ends in {', '.join(IMAGE_FORMATS)}, got {path.name!r}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--plot {path}: {error}") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(f"--plot {path}: cannot be written")


def save_plot(trainings: Sequence[Training], path: Path) -> None:
    """Draw loss and accuracy of all trainings over the epochs.

    Raises
    ------
    OSError, ValueError
        If the file cannot be written, or its ending is no image format.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    legend_rows = -(-len(trainings) // 2)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(11, 4.6 + 0.25 * legend_rows), layout=layout, dpi=150)
    figure.suptitle(_title(trainings), fontweight="bold")
    panels = figure.subplots(1, 2)
    for panel, quantity in zip(panels, ("loss", "accuracy"), strict=True):
        for number, training in enumerate(trainings):
            _draw(panel, training, quantity, number if len(trainings) > 1 else None)
        panel.set(xlabel="epoch", ylabel=quantity)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0.01)
    panels[0].set_yscale("log")
    panels[1].set_ylim(_lowest_accuracy_shown(trainings), 1.005)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path)


def _title(trainings: Sequence[Training]) -> str:
    accuracy = f"test accuracy {best_of(trainings).history[-1].test_accuracy:.4f}"
    if len(trainings) == 1:
        return f"{trainings[0].run.label}: {accuracy}"
    return f"{len(trainings)} runs, solid: test, dashed: train; best {accuracy}"


def _draw(panel: Any, training: Training, quantity: str, number: int | None) -> None:
    """The curves of one run: its number, among several, gives it a colour; alone, train and test have one each."""
    epochs = [point.epoch for point in training.history]
    for split, style, width in (("train", "--", 1.2), ("test", "-", 1.8)):
        values = [getattr(point, f"{split}_{quantity}") for point in training.history]
        if number is None:
            panel.plot(epochs, values, style, linewidth=width, label=split)
        else:
            label = training.run.label if split == "test" else None
            panel.plot(epochs, values, style, linewidth=width, label=label, color=color_of(number))


def color_of(number: int) -> Any:
    """The colour of a curve among several."""
    from matplotlib import colormaps

    return colormaps["tab10"](number) if number < 10 else colormaps["Dark2"](number % 8)


def _lowest_accuracy_shown(trainings: Sequence[Training]) -> float:
    """Leave out the climb from chance, where all that matters happens above it."""
    worst = min(min(training.history[-1][2::2]) for training in trainings)
    return max(0.0, worst - 0.15)
