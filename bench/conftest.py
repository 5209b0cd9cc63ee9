"""Options of the benchmarks, and what a run keeps: results, a table, the mean over all cases."""

import datetime
import os
from pathlib import Path

import pytest

from fastopt.bench.cases import QUICK, TABLE, matching
from fastopt.bench.gates import read_gates
from fastopt.bench.measurement import ENOUGH
from fastopt.bench.result import Result
from fastopt.bench.sides import SLOW
from fastopt.bench.surroundings import surroundings

BENCH = Path(__file__).parent


def pytest_addoption(parser):
    group = parser.getgroup("fastopt")
    group.addoption("--quick", action="store_true", help="few and small cases, held against gates of their own")
    group.addoption("--cases", default="", metavar="REGEX", help="only cases in whose id this is found")
    group.addoption("--seconds", type=float, default=1.7, help="what the rounds of a case may take, about")
    group.addoption("--peers", metavar="NAME,...", help="only these; 'none' for none")
    group.addoption("--fewer-peers", action="store_true", help=f"{ENOUGH} in large cases, the fastest as a rule")
    group.addoption(
        "--baseline", default=BENCH / "baseline.json", metavar="FILE", help="ratios of earlier runs, or none"
    )
    group.addoption("--results", metavar="FILE", help="write all figures there, as JSON")


class Run:
    """What the options say, and what has been measured."""

    def __init__(self, config):
        self._config = config
        self.quick = config.getoption("quick")
        self.seconds = config.getoption("seconds")
        named = config.getoption("peers") or ("torch fused,NumPy" if self.quick else None)
        self.peers = named and [name for name in named.split(",") if name != "none"]
        gates = BENCH / ("gates-quick.toml" if self.quick else "gates.toml")
        self.fewer_peers = config.getoption("fewer_peers") and self.peers is None
        baseline = "none" if self.quick else config.getoption("baseline")
        self.gates = read_gates(gates, Path(baseline))
        self.outcomes = []

    @property
    def cases(self):
        """Those to measure."""
        return matching(QUICK if self.quick else TABLE.values(), self._config.getoption("cases"))

    def most_peers(self, case):
        """How many may take part in a case; None for all."""
        return ENOUGH if self.fewer_peers and case.is_large else None

    @property
    def is_whole(self):
        """Whether all cases of the full table have been measured, with the fastest peers that there are."""
        return not self.quick and len(self.outcomes) == len(TABLE) and self.peers is None

    def finish(self):
        """Write what was asked for; what is wrong with the run as a whole."""
        if path := self._config.getoption("results"):
            Result(path).update(
                format=1,
                date=datetime.date.today().isoformat(),
                surroundings=surroundings(),
                cases=[outcome.to_json() for outcome in self.outcomes],
            )
        return self.gates.mean_failure(self.outcomes) if self.is_whole else None


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
    run = session.config.fastopt_run
    run.mean_failure = run.finish() if run.outcomes else None
    if run.mean_failure:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    run = config.fastopt_run
    if not run.outcomes:
        return
    from fastopt.cli.bench_report import outcome_table, show
    from fastopt.cli.report import make_console

    show(make_console(), outcome_table(run.outcomes), run.outcomes)
    if run.fewer_peers and any(outcome.case.is_large for outcome in run.outcomes):
        terminalreporter.write_line(f"in large cases {ENOUGH} peers take part; make bench-results has all")
    if os.environ.get(SLOW):
        terminalreporter.write_line(f"{SLOW}={os.environ[SLOW]}: steps of that optimizer were slow on purpose")
    if run.mean_failure:
        terminalreporter.write_line(f"FAILED {run.mean_failure}", red=True)
