"""Every case of the table against the ceiling and the peers; what falls below a gate, twice, fails."""

import pytest

from fastopt.bench.check import DisagreementError
from fastopt.bench.contest import undisturbed
from fastopt.bench.measurement import Measurement

MORE_TIME = 2.0
"""Factor on the time of rounds that are played once more."""


def test_case(case, benchmark, run):
    try:
        outcome, failures = judged(case, benchmark, run)
    except DisagreementError as error:
        pytest.fail(str(error), pytrace=False)
    benchmark.extra_info.update(outcome.summary(), missing=outcome.missing)
    run.outcomes.append(outcome)
    if failures:
        pytest.fail("\n".join(map(str, failures)), pytrace=False)


def judged(case, benchmark, run):
    """The outcome, and what is too low in it. Arrays are gone afterwards, whatever a failure keeps alive."""
    measurement = Measurement(case, run.peers)
    benchmark.group = f"{case.dtype} {case.model} {case.stack}"
    outcome = first_outcome(measurement, benchmark, run.seconds)
    if run.gates.failures(outcome):
        contest = measurement.contest(MORE_TIME * run.seconds)
        contest.play()
        outcome = measurement.outcome(contest)
    return outcome, run.gates.failures(outcome)


def first_outcome(measurement, benchmark, seconds):
    """Of rounds in which pytest-benchmark times our turns, and everybody else's follow."""
    contest, renews = measurement.contest(seconds), measurement.case.renews
    with undisturbed():
        benchmark.pedantic(
            measurement.step,
            setup=measurement.renew if renews else None,
            teardown=contest.others,
            rounds=contest.rounds,
            iterations=1 if renews else contest.repeats,
        )
    return measurement.outcome(contest, benchmark.stats.stats.data)
