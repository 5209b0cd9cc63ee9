"""`fastopt info --model`: what the parameters, gradients and state of a model take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastopt.bench.shapes import Shape
from fastopt.memory import Memory, count, parameters_of
from fastopt.parameters import HALVES

from .report import show_table
from .runs import Run, UsageError, plan_run

IN_FULL: list[tuple[str, dict[str, Any]]] = [
    ("sgd", {}),
    ("sgd", {"momentum": "0.9"}),
    ("adam", {}),
    ("adam", {"slot_dtype": "bfloat16"}),
    ("adam", {"slot_dtype": "8bit"}),
]
"""What is compared where no optimizer is named, for parameters of float32 and float64."""

IN_HALF: list[tuple[str, dict[str, Any]]] = [
    ("adam", {"master_weights": "float32"}),
    ("adam", {"master_weights": "split"}),
    ("adam", {"master_weights": "split", "slot_dtype": "bfloat16"}),
    ("adam", {"master_weights": "split", "slot_dtype": "8bit"}),
    ("adam", {"stochastic_rounding": None, "slot_dtype": "8bit"}),
]
"""The same of bfloat16 and float16, which cannot be split."""

UNITS = "kB", "MB", "GB", "TB", "PB", "EB"


class Choice(NamedTuple):
    """An optimizer on parameters of a dtype, and what they take."""

    dtype: str
    label: str
    memory: Memory

    def to_json(self) -> dict[str, Any]:
        """Everything, in bytes."""
        found = self.memory
        facts = {"bytes": found.bytes, "per_element": found.per_element, "state": found.state, "total": found.total}
        return {"dtype": self.dtype, "optimizer": self.label, **facts}


def compared(shapes: Sequence[Shape], dtype: str | None) -> list[Choice]:
    """Count what common choices take, for parameters of a dtype; None: of float32 and bfloat16."""
    found = []
    for kind in [dtype] if dtype else ["float32", "bfloat16"]:
        for name, options in IN_HALF if kind in HALVES else IN_FULL:
            if kind != "float16" or options.get("master_weights") != "split":
                found.append(counted(shapes, kind, plan_run(name, options)))
    return found


def counted(shapes: Sequence[Shape], dtype: str, run: Run) -> Choice:
    """Count what one choice takes.

    Raises
    ------
    UsageError
        If the optimizer refuses an argument, or parameters of this dtype.
    """
    is_half, optimizer = dtype in HALVES, run.make()
    overrides: Mapping[str, Mapping[str, Any]] | None = {"": {"dtype": dtype}} if is_half else None
    try:
        memory = count(optimizer, parameters_of(shapes, overrides, "float32" if is_half else dtype))
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    arguments = {key: value for key, value in run.arguments.items() if key != "learning_rate"}
    return Choice(dtype, run._replace(arguments=arguments).label, memory)


def show(console: Console, choices: Sequence[Choice], tensors: int) -> None:
    """Print the parts of one choice, or the sums of several; then what they are of."""
    show_table(console, _comparison(choices) if len(choices) > 1 else _parts(choices[0]))
    about = f"{choices[0].memory.elements:,} parameters in {tensors:,} {'array' if tensors == 1 else 'arrays'}"
    console.print(about if len(choices) > 1 else f"{choices[0].label}, {about} of {choices[0].dtype}", markup=False)


def _parts(choice: Choice) -> Table:
    memory = choice.memory
    table = Table(box=box.ROUNDED)
    table.add_column("", style="cyan")
    for name in ("bytes for each", "in all"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = {**memory.bytes, "state": memory.state, "total": memory.total}
    for number, (name, size) in enumerate(rows.items(), 1):
        table.add_row(Text(name), *_figures(size, memory), end_section=number == len(memory.bytes))
    return table


def _comparison(choices: Sequence[Choice]) -> Table:
    table = Table(box=box.ROUNDED)
    table.add_column("optimizer", style="cyan", overflow="fold")
    for name in ("dtype", "parameters", "gradients", "state", "total", "bytes\nfor each"):
        table.add_column(name, justify="right", no_wrap=True)
    for dtype, label, memory in choices:
        sizes = memory.bytes["parameters"], memory.bytes["gradients"], memory.state, memory.total
        each, _ = _figures(memory.total, memory)
        table.add_row(Text(label), dtype, *map(in_units, sizes), each)
    return table


def _figures(size: int, memory: Memory) -> tuple[str, str]:
    return f"{size / max(memory.elements, 1):.3f}", in_units(size)


def in_units(size: int) -> str:
    """Bytes as people read them: in powers of 1000."""
    if size < 1000:
        return f"{size} B"
    power = min((len(str(size)) - 1) // 3, len(UNITS))
    return f"{size / 1000**power:.1f} {UNITS[power - 1]}"
