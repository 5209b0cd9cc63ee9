"""What a step costs where other programs want the cores. Figures are ratios of one run, to one thread's mean.

    python bench/busy.py                     # two or three minutes
    python bench/busy.py --busy 4 --sizes 1e6

Processes that only compute run beside SGD with momentum: on one thread, on all of them at every step, and as it is, on
as many as are worth it. These, NumPy and torch take turns of many steps. The mean counts, as training waits for every
step; the median hides the waits for a core, which are few and very long.
"""

import contextlib
import statistics
import subprocess
import sys
import time

from program import Report, parser_of

import fastopt
from fastopt.bench.cases import Case
from fastopt.bench.check import check
from fastopt.bench.contest import undisturbed
from fastopt.bench.peers.numpy import Numpy
from fastopt.bench.peers.torch import Fused
from fastopt.bench.problem import Problem
from fastopt.bench.sides import Fastopt

TURN = 0.2
"""Seconds of a turn, in which no other side steps: threads that wait for work spin for a while."""

ONE, ALL, CHOSEN = "one thread", "all threads", "chosen"
GOAL = 1.5
"""Times the better of one thread and all, that the mean with the chosen ones is at most."""


@contextlib.contextmanager
def busy(count):
    """Context in which so many other processes compute."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(1.0 if others else 0.0)
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


class On(Fastopt):
    """Fastopt on so many threads, all of them at every step or as many as are worth it."""

    def __init__(self, problem, name, threads, yields):
        super().__init__(problem)
        self.name = name
        self.begin = lambda: fastopt.set_num_threads(threads, yields=yields)


def sides_of(size, threads):
    """Label → side, all of which compute the same."""
    problem = Problem(Case("sgd-momentum", size))
    sides = [On(problem, ONE, 1, True), On(problem, ALL, threads, False), On(problem, CHOSEN, threads, True)]
    fastopt.set_num_threads(threads)
    sides.append(Numpy(problem))
    if Fused.missing() is None:
        sides.append(Fused(problem))
    check(problem, sides)
    return {side.name: side for side in sides}


def turn(side, times):
    """Steps of one side until its turn is over; what each took goes to ``times``."""
    getattr(side, "begin", int)()
    step, clock = side.step, time.perf_counter
    last = clock()
    until = last + TURN
    while last < until:
        step()
        now = clock()
        times.append(now - last)
        last = now


def measured(sides, seconds):
    """Label → mean and median of a step, all sides in turn."""
    times = {name: [] for name in sides}
    with undisturbed():
        for k in range(max(2, round(seconds / TURN))):
            for name in list(sides)[:: -1 if k % 2 else 1]:  # whoever comes after threads that spin waits for them
                turn(sides[name], times[name])
    return {name: (statistics.fmean(each), statistics.median(each)) for name, each in times.items()}


def main():
    parser = parser_of(__doc__, seconds=4.0, threads=fastopt.get_num_threads())
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 4, 12], help="how many processes compute beside it")
    parser.add_argument("--sizes", nargs="+", default=["1e5", "1e6"])
    arguments = parser.parse_args()
    report = Report(
        "busy", "elements", "side", "mean", "median", "to the better", "goal", title="1 = mean on one thread"
    )
    for size in arguments.sizes:
        sides = sides_of(size, arguments.threads)
        for count in arguments.busy:
            with busy(count):
                found = measured(sides, arguments.seconds)
            unit, best = found[ONE][0], min(found[ONE][0], found[ALL][0])
            for name, (mean, median) in found.items():
                row = {"busy": count, "elements": size, "side": name, "mean": mean / unit, "median": median / unit}
                judged = ()
                if name == CHOSEN:
                    row["to_better"] = mean / best
                    judged = f"{mean / best:.2f}", GOAL if count else ""
                report.add(row, count, size, name, f"{mean / unit:.2f}", f"{median / unit:.2f}", *judged)
    report.finish(arguments.results, "busy")


if __name__ == "__main__":
    main()
