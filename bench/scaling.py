"""What a step costs as arrays grow, as tensors become more, and as groups become more. Figures are ratios of one run.

    python bench/scaling.py                          # a few minutes, 12 GB of memory
    python bench/scaling.py --largest 3.2e7 --results FILE

Costs are relative: per element, to those of the smallest array; per tensor, to those among the most; per step, to those
with one group.
"""

import numpy as np
from program import Report, parser_of

import fastopt
from fastopt.bench.cases import Case
from fastopt.bench.measure import interleaved
from fastopt.bench.measurement import TooLargeError, measure

SIZES = ("1e5", "1e6", "1e7", "3.2e7", "1e8", "3.2e8")
TENSORS = (1, 10, 100, 1_000, 10_000)
TENSOR = 64
GROUPS = (1, 10, 100, 1_000)
TITLES = {
    "size": "elements of one array: cost per element",
    "tensors": f"tensors of {TENSOR} elements: cost per tensor",
    "groups": f"groups of {TENSORS[-1]:,} tensors: cost per step",
}


def by_size(report, largest, seconds):
    """AdamW on one array: cost per element, and the fraction of the ceiling."""
    for size in SIZES:
        if float(size) > largest:
            continue
        try:
            found = report.attempt(size, measure, Case("adamw", size), seconds, [])
        except TooLargeError as error:
            print(f"{size}: {error}", flush=True)
            continue
        if found is None:
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


def main():
    arguments = parser_of(__doc__, largest=3.2e8, seconds=3.0, rounds=15).parse_args()
    report = Report("what", "number", "relative cost", "of the ceiling")
    measured = {
        "size": list(by_size(report, arguments.largest, arguments.seconds)),
        "tensors": report.attempt("tensors", by_tensors, arguments.rounds),
        "groups": report.attempt("groups", by_groups, arguments.rounds),
    }
    found = {}
    for what, rows in measured.items():
        unit = rows and rows[-1 if what == "tensors" else 0]["cost"]
        found[what] = [row | {"cost": row["cost"] / unit} for row in rows or ()]
        for row in found[what]:
            number, cost, *share = row.values()
            report.add(row, TITLES[what], f"{number:,}", f"{cost:.3f}", *(f"{each:.3f}" for each in share))
    report.finish(arguments.results, "scaling", found)


if __name__ == "__main__":
    main()
