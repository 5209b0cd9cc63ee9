"""One optimizer step inside Keras, torch backend: Keras's own against fastopt.keras. Figures are ratios of one run.

    python bench/keras_step.py

The variables are a small transformer's: 74 of them, 23.6 million parameters, but for the last line. Both sides are
first checked to compute the same from the same gradients, then timed in turn, round by round; the median counts. How
fast Keras's side is depends on where a process's allocator puts its intermediate results, by a factor of two: every
line is the median of several processes, with the least and the greatest ratio.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import fastopt
import fastopt.keras
from fastopt.bench.measure import interleaved
from fastopt.bench.result import Result

THREADS = 2
GOAL = 8.0
STACKED = {"global_clipnorm": 1.0, "use_ema": True}
CASES = [
    ("Adam", STACKED, "transformer", GOAL),
    ("Adam", {}, "transformer", None),
    ("AdamW", STACKED | {"loss_scale_factor": 128.0}, "transformer", None),
    ("SGD", {"momentum": 0.9}, "transformer", None),
    ("Lion", STACKED, "transformer", None),
    ("Lamb", STACKED, "transformer", None),
    ("Adam", STACKED, "mlp", None),
]


def transformer() -> list[tuple[int, ...]]:
    """74 shapes, 23.6 million elements."""
    width = 384
    block = [(width, 3 * width), (3 * width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(10_500, width), (256, width), *block * 12]


def mlp() -> list[tuple[int, ...]]:
    """Six shapes, 17 thousand elements."""
    return [(64, 128), (128,), (128, 64), (64,), (64, 10), (10,)]


def built(module, name, options, values):
    """An optimizer of a module, and its variables."""
    variables = [keras.Variable(value, name=f"variable_{k}") for k, value in enumerate(values)]
    optimizer = getattr(module, name)(**options)
    optimizer.build(variables)
    return optimizer, variables


def measure(name, options, shapes, rounds):
    """Seconds of a step, Keras's and ours."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator) * 0.1 for shape in shapes]
    grads = [torch.randn(shape, generator=generator) for shape in shapes]
    sides = {
        label: built(module, name, options, values)
        for label, module in (("keras", keras.optimizers), ("fastopt", fastopt.keras))
    }
    with torch.no_grad():
        for _ in range(3):
            for optimizer, _ in sides.values():
                optimizer.apply(grads)
        for theirs, ours in zip(sides["keras"][1], sides["fastopt"][1], strict=True):
            np.testing.assert_allclose(ours.value.numpy(), theirs.value.numpy(), rtol=1e-5, atol=1e-5)
        return interleaved({label: lambda o=side[0]: o.apply(grads) for label, side in sides.items()}, rounds)


def in_a_process(case, rounds):
    """Seconds of a step, Keras's and ours, measured in a new process."""
    command = [sys.executable, __file__, "--case", str(case), "--rounds", str(rounds)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--results", metavar="FILE", help="Add the figures to this JSON file.")
    parser.add_argument("--case", type=int, help="Measure one line here, and print it as JSON.")
    arguments = parser.parse_args()
    if arguments.case is not None:
        name, options, model, _ = CASES[arguments.case]
        fastopt.set_num_threads(THREADS)
        torch.set_num_threads(THREADS)
        print(json.dumps(measure(name, options, globals()[model](), arguments.rounds)))
        return
    table = Table("optimizer", "options", "variables", "fastopt ms", "keras / fastopt", "least", "most", "goal")
    rows = []
    for case, (name, options, model, goal) in enumerate(CASES):
        found = [in_a_process(case, arguments.rounds) for _ in range(arguments.processes)]
        ratios = sorted(seconds["keras"] / seconds["fastopt"] for seconds in found)
        ours = statistics.median(seconds["fastopt"] for seconds in found) * 1e3
        shown = ", ".join(f"{key}={value}" for key, value in options.items())
        median, least, most = statistics.median(ratios), ratios[0], ratios[-1]
        numbers = [f"{number:.1f}" for number in (median, least, most)]
        rows.append({"optimizer": name, "options": shown, "model": model, "speedup": median, "interval": [least, most]})
        table.add_row(name, shown, model, f"{ours:.2f}", *numbers, str(goal or ""))
    Console(width=120).print(table)
    if arguments.results:
        Result(arguments.results).update(keras=rows)


if __name__ == "__main__":
    main()
