"""One optimizer step inside Keras, torch backend: Keras's own against fastopt.keras. Figures are ratios of one run.

    python bench/keras_step.py

The variables are a small transformer's: 74 of them, 23.6 million parameters, but for the last line. Both sides are
first checked to compute the same from the same gradients, then timed in turn, round by round; the median counts. How
fast Keras's side is depends on where a process's allocator puts its intermediate results, by a factor of two: every
line is the median of several processes, with the least and the greatest ratio.
"""

import json
import os
import statistics
import subprocess
import sys

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import torch
from program import Report, parser_of

import fastopt
import fastopt.keras
from fastopt.bench.measure import interleaved
from fastopt.bench.outcome import BUSY_STATUS, BusyError

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


def in_processes(case, rounds, processes):
    """Seconds of a step, Keras's and ours, each pair measured in a new process."""
    command = [sys.executable, __file__, "--case", str(case), "--rounds", str(rounds)]
    found = []
    for _ in range(processes):
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode == BUSY_STATUS:
            raise BusyError(done.stdout.strip())
        done.check_returncode()
        found.append(json.loads(done.stdout))
    return found


def main():
    parser = parser_of(__doc__, rounds=15, processes=5)
    parser.add_argument("--case", type=int, help="measure one line here, and print it as JSON")
    arguments = parser.parse_args()
    if arguments.case is not None:
        name, options, model, _ = CASES[arguments.case]
        fastopt.set_num_threads(THREADS)
        torch.set_num_threads(THREADS)
        try:
            print(json.dumps(measure(name, options, globals()[model](), arguments.rounds)))
        except BusyError as error:
            print(error.reason)
            raise SystemExit(BUSY_STATUS) from None
        return
    report = Report("optimizer", "options", "variables", "fastopt ms", "keras / fastopt", "least", "most", "goal")
    for case, (name, options, model, goal) in enumerate(CASES):
        shown = ", ".join(f"{key}={value}" for key, value in options.items())
        found = report.attempt(f"{name} {shown}", in_processes, case, arguments.rounds, arguments.processes)
        if found is None:
            continue
        ratios = sorted(seconds["keras"] / seconds["fastopt"] for seconds in found)
        ours = statistics.median(seconds["fastopt"] for seconds in found) * 1e3
        median, least, most = statistics.median(ratios), ratios[0], ratios[-1]
        row = {"optimizer": name, "options": shown, "model": model, "speedup": median, "interval": [least, most]}
        report.add(row, name, shown, model, f"{ours:.2f}", f"{median:.1f}", f"{least:.1f}", f"{most:.1f}", goal or "")
    report.finish(arguments.results, "keras")


if __name__ == "__main__":
    main()
