"""Every case of the table against the ceiling and the peers; what falls below a gate, twice, fails."""

import time

import pytest

from fastopt.bench.check import DisagreementError
from fastopt.bench.contest import undisturbed
from fastopt.bench.measurement import Measurement
from fastopt.bench.outcome import BusyError

MORE_TIME = 2.0
"""Factor on the time of rounds that are played once more."""


class Stopwatch:
    """Tells seconds, but for those of calls that it leaves out."""

    def __init__(self):
        self._left_out = 0.0

    def __call__(self):
        return time.perf_counter() - self._left_out

    def leave_out(self, call):
        start = time.perf_counter()
        call()
        self._left_out += time.perf_counter() - start


STOPWATCH = Stopwatch()


@pytest.mark.benchmark(timer=STOPWATCH)
def test_case(case, benchmark, run):
    try:
        outcome, failures = judged(case, benchmark, run)
    except DisagreementError as error:
        pytest.fail(str(error), pytrace=False)
    except BusyError as error:
        run.busy[case.id] = str(error)
        benchmark.has_error = True  # so that pytest-benchmark keeps nothing of it, and shows nothing
        benchmark.stats.stats.data.clear()
        pytest.skip(str(error))
    benchmark.extra_info.update(outcome.summary(), missing=outcome.missing)
    run.outcomes.append(outcome)
    if failures:
        pytest.fail("\n".join(map(str, failures)), pytrace=False)


def judged(case, benchmark, run):
    """The outcome, and what is too low in it. Arrays are gone afterwards, whatever a failure keeps alive."""
    measurement = Measurement(case, run.peers, run.most_peers(case))
    benchmark.group = f"{case.dtype} {case.model} {case.stack}"
    even_if_busy = run.option("busy") == "ignore"
    outcome = first_outcome(measurement, benchmark, run.seconds, even_if_busy)
    if run.gates.failures(outcome):
        if not case.is_large:  # how well arrays lie in the caches is chance: others are made beside them
            measurement = Measurement(case, run.peers, run.most_peers(case))
        contest = measurement.contest(MORE_TIME * run.seconds)
        contest.play()
        outcome = measurement.outcome(contest, even_if_busy=even_if_busy)
    return outcome, run.gates.failures(outcome)


def first_outcome(measurement, benchmark, seconds, even_if_busy):
    """Of rounds in which pytest-benchmark times our turns, and everybody else's follow."""
    contest = measurement.contest(seconds)

    def prepared_step():
        STOPWATCH.leave_out(measurement.prepare)
        measurement.step()

    step = prepared_step if measurement.case.prepares else measurement.step
    with undisturbed():
        benchmark.pedantic(step, teardown=contest.others, rounds=contest.rounds, iterations=contest.repeats)
    return measurement.outcome(contest, benchmark.stats.stats.data, even_if_busy)
