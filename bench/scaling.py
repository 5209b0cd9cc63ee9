"""What a step costs as arrays grow, as tensors become more, and as groups become more. Figures are ratios of one run.

    python bench/scaling.py                          # a few minutes, 12 GB of memory
    python bench/scaling.py --largest 3.2e7 --results FILE

Costs are relative: per element, to those of the smallest array; per tensor, to those among the most; per step, to those
with one group.
"""

import argparse

import numpy as np
from rich.console import Console
from rich.table import Table

import fastopt
from fastopt.bench.cases import Case
from fastopt.bench.measure import interleaved
from fastopt.bench.measurement import TooLargeError, measure
from fastopt.bench.result import Result

SIZES = ("1e5", "1e6", "1e7", "3.2e7", "1e8", "3.2e8")
TENSORS = (1, 10, 100, 1_000, 10_000)
TENSOR = 64
GROUPS = (1, 10, 100, 1_000)


def by_size(largest, seconds):
    """AdamW on one array: cost per element, and the fraction of the ceiling."""
    for size in SIZES:
        if float(size) > largest:
            continue
        try:
            found = measure(Case("adamw", size), seconds, [])
        except TooLargeError as error:
            print(f"{size}: {error}", flush=True)
            continue
        cost = found.seconds / found.case.parameters
        yield {"elements": found.case.parameters, "cost": cost, "ceiling_fraction": found.ceiling_fraction.value}


def stepper(tensors, groups):
    """A step of AdamW on so many small tensors, in so many groups."""
    params, grads = (
        {str(group): [np.full(TENSOR, value, np.float32) for _ in range(tensors // groups)] for group in range(groups)}
        for value in (1.0, 0.1)
    )
    optimizer = fastopt.AdamW()
    rates = {f"^{group}/": {"learning_rate_multiplier": 1 - 0.5 * group / groups} for group in range(groups)}
    optimizer.build(params, rates if groups > 1 else None)
    return lambda: optimizer.apply(grads)


def by_tensors(rounds):
    """Cost per tensor."""
    found = interleaved({count: stepper(count, 1) for count in TENSORS}, rounds)
    return [{"tensors": count, "cost": seconds / count} for count, seconds in found.items()]


def by_groups(rounds):
    """Cost of a step on as many tensors, in more and more groups."""
    found = interleaved({count: stepper(TENSORS[-1], count) for count in GROUPS}, rounds)
    return [{"groups": count, "cost": seconds} for count, seconds in found.items()]


def relative(rows, to=0):
    """Costs relative to one of them."""
    return [row | {"cost": row["cost"] / rows[to]["cost"]} for row in rows]


def show(console, title, rows):
    table = Table(*(name.replace("_", " ") for name in rows[0]), title=title)
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else f"{value:.3f}" for value in row.values()))
    console.print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--largest", type=float, default=3.2e8)
    parser.add_argument("--seconds", type=float, default=3.0, help="for the rounds of a size")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--results", metavar="FILE", help="add the figures to this JSON file")
    arguments = parser.parse_args()
    found = {
        "size": relative(list(by_size(arguments.largest, arguments.seconds))),
        "tensors": relative(by_tensors(arguments.rounds), to=-1),
        "groups": relative(by_groups(arguments.rounds)),
    }
    console = Console(width=100)
    show(console, "one array: cost per element", found["size"])
    show(console, f"tensors of {TENSOR} elements: cost per tensor", found["tensors"])
    show(console, f"{TENSORS[-1]:,} tensors in groups: cost per step", found["groups"])
    if arguments.results:
        Result(arguments.results).update(scaling=found)


if __name__ == "__main__":
    main()
