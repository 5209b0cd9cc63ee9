"""Options of the benchmarks, and what a run keeps: results, a table, the mean over all cases."""

import datetime
import os
import re
from pathlib import Path

import pytest

from fastopt.bench.cases import QUICK, TABLE, matching
from fastopt.bench.gates import baseline_path, read_gates
from fastopt.bench.measurement import ENOUGH
from fastopt.bench.outcome import BUSY_STATUS
from fastopt.bench.result import Result
from fastopt.bench.sides import SLOW
from fastopt.bench.surroundings import surroundings

BENCH = Path(__file__).parent
BASELINES = BENCH / "baselines"


def pytest_addoption(parser):
    group = parser.getgroup("fastopt")
    group.addoption("--quick", action="store_true", help="few and small cases, held against gates of their own")
    group.addoption("--cases", default="", metavar="REGEX", help="only cases in whose id this is found")
    group.addoption("--seconds", type=float, default=1.7, help="what the rounds of a case may take, about")
    group.addoption("--peers", metavar="NAME,...", help="only these; 'none' for none")
    group.addoption("--fewer-peers", action="store_true", help=f"{ENOUGH} in large cases, the fastest as a rule")
    group.addoption("--baseline", metavar="FILE", help="ratios of earlier runs, or none; default: this processor's")
    group.addoption("--results", metavar="FILE", help="write all figures there, as JSON")
    group.addoption(
        "--busy",
        choices=("fail", "pass", "ignore"),
        default="fail",
        help=f"where other programs disturb cases: exit status {BUSY_STATUS}, or 0, or judge them all the same",
    )


class Run:
    """What the options say, and what has been measured."""

    def __init__(self, config):
        self.option = config.getoption
        self.quick = self.option("quick")
        self.seconds = self.option("seconds")
        named = self.option("peers") or ("torch fused,NumPy" if self.quick else None)
        self.peers = named and [name for name in named.split(",") if name != "none"]
        self.fewer_peers = self.option("fewer_peers") and self.peers is None
        self.baseline = Path(self.option("baseline") or baseline_path(BASELINES, surroundings()))
        gates = BENCH / ("gates-quick.toml" if self.quick else "gates.toml")
        self.gates = read_gates(gates, Path("none") if self.quick else self.baseline)
        self.outcomes, self.functions, self.tables, self.busy, self.mean_failure = [], {}, {}, {}, None
        self.pattern = re.compile(self.option("cases"))

    @property
    def cases(self):
        """Those to measure."""
        return matching(QUICK if self.quick else TABLE.values(), self.option("cases"))

    def most_peers(self, case):
        """How many may take part in a case; None for all."""
        return ENOUGH if self.fewer_peers and case.is_large else None

    @property
    def is_whole(self):
        """Whether all cases of the full table have been measured, with the fastest peers that there are."""
        return not self.quick and len(self.outcomes) == len(TABLE) and self.peers is None

    def finish(self, status):
        """Write what was asked for, judge the run as a whole; its exit status, given that of its cases."""
        if (path := self.option("results")) and (self.outcomes or self.functions or self.tables):
            cases = [outcome.to_json() for outcome in self.outcomes]
            measured = {"cases": cases, "functions": self.functions, "tables": self.tables}
            Result(path).update(
                format=1,
                date=datetime.date.today().isoformat(),
                surroundings=surroundings(),
                not_measured=self.busy,
                **{section: found for section, found in measured.items() if found},
            )
        self.mean_failure = self.gates.mean_failure(self.outcomes) if self.is_whole else None
        if self.mean_failure:
            return pytest.ExitCode.TESTS_FAILED
        return BUSY_STATUS if status == pytest.ExitCode.OK and self.busy and self.option("busy") == "fail" else status

    def notes(self):
        """Sentences below the table."""
        if not (self.quick or self.baseline.exists() or self.option("baseline")):
            name = self.baseline.name
            yield f"no baseline of this processor: gates alone count; make bench-baseline makes one, {name}"
        if self.fewer_peers and any(outcome.case.is_large for outcome in self.outcomes):
            yield f"in large cases {ENOUGH} peers take part; make bench-results has all"
        if os.environ.get(SLOW):
            yield f"{SLOW}={os.environ[SLOW]}: steps of that optimizer were slow on purpose"


def pytest_configure(config):
    config.fastopt_run = Run(config)


@pytest.fixture
def run(request):
    return request.config.fastopt_run


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        cases = metafunc.config.fastopt_run.cases
        metafunc.parametrize("case", cases, ids=[case.id for case in cases])


def pytest_benchmark_update_machine_info(config, machine_info):
    """Which machine it was is nobody's business."""
    machine_info.pop("node", None)


def pytest_sessionfinish(session):
    session.exitstatus = session.config.fastopt_run.finish(session.exitstatus)


def pytest_terminal_summary(terminalreporter, config):
    run = config.fastopt_run
    if not run.outcomes and not run.busy:
        return
    from fastopt.cli.bench_report import show
    from fastopt.cli.report import make_console

    show(make_console(), run.outcomes, run.busy)
    for sentence in run.notes():
        terminalreporter.write_line(sentence)
    if run.mean_failure:
        terminalreporter.write_line(f"FAILED {run.mean_failure}", red=True)
