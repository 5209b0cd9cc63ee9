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

from program import Report, parser_of

import fastopt
import fastopt.keras
from fastopt.bench.cases import CLIP, EMA, SCALE, STACKS, Case, Stack
from fastopt.bench.check import check
from fastopt.bench.measure import interleaved
from fastopt.bench.outcome import BUSY_STATUS, BusyError
from fastopt.bench.peers.keras import Keras
from fastopt.bench.problem import Problem
from fastopt.bench.shapes import MODELS
from fastopt.bench.sides import common_options

THREADS = 2
GOAL = 8.0
STACKS["clip-ema-scale"] = Stack(clip=CLIP, ema=EMA, scale=SCALE)


def transformer(width=384):
    """74 shapes, 23.6 million elements."""
    block = [(width, 3 * width), (3 * width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(10_500, width), (256, width), *block * 12]


MODELS |= {"transformer": transformer, "mlp": lambda: [(64, 128), (128,), (128, 64), (64,), (64, 10), (10,)]}
CASES = [
    (Case("adam", "transformer", stack="clip-ema"), GOAL),
    (Case("adam", "transformer"), None),
    (Case("adamw", "transformer", stack="clip-ema-scale"), None),
    (Case("sgd-momentum", "transformer"), None),
    (Case("lion", "transformer", stack="clip-ema"), None),
    (Case("lamb", "transformer", stack="clip-ema"), None),
    (Case("adam", "mlp", stack="clip-ema"), None),
]


class Adapter(Keras):
    """fastopt.keras on variables like Keras's."""

    name = "fastopt"
    norm_in_float32 = False

    def optimizers(self):
        return fastopt.keras


def measure(case, rounds):
    """Seconds of a step, Keras's and ours, which are first found to compute the same."""
    problem = Problem(case)
    sides = [Keras(problem), Adapter(problem)]
    check(problem, sides)
    return interleaved({side.name: side.step for side in sides}, rounds)


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
        fastopt.set_num_threads(THREADS)
        try:
            print(json.dumps(measure(CASES[arguments.case][0], arguments.rounds)))
        except BusyError as error:
            print(error.reason)
            raise SystemExit(BUSY_STATUS) from None
        return
    report = Report("optimizer", "options", "variables", "fastopt ms", "keras / fastopt", "least", "most", "goal")
    for number, (case, goal) in enumerate(CASES):
        found = report.attempt(case.id, in_processes, number, arguments.rounds, arguments.processes)
        if found is None:
            continue
        ratios = sorted(seconds["Keras"] / seconds["fastopt"] for seconds in found)
        ours = statistics.median(seconds["fastopt"] for seconds in found) * 1e3
        median, least, most = statistics.median(ratios), ratios[0], ratios[-1]
        name, momentum = case.rule.optimizer, {"momentum": case.rule.hyper.get("momentum")}
        options = {key: value for key, value in (momentum | common_options(case)).items() if value}
        shown = ", ".join(f"{key}={value}" for key, value in options.items())
        row = {"optimizer": name, "options": shown, "model": case.model, "speedup": median, "interval": [least, most]}
        figures = f"{ours:.2f}", f"{median:.1f}", f"{least:.1f}", f"{most:.1f}"
        report.add(row, name, shown, case.model, *figures, goal or "")
    report.finish(arguments.results, "keras")


if __name__ == "__main__":
    main()
