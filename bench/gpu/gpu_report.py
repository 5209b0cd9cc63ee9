"""A pytest plugin that keeps the counts of a run in the result file while it goes on.

`FASTOPT_GPU_RESULT` names the file. pytest writes its own summaries at the end, which a run cut short does not reach.
"""

import os
import time

from fastopt.bench.result import Result

WRITE_SECONDS = 1.0


def pytest_configure(config):
    """Count in the process that reports, not in pytest-xdist's workers."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Counter(Result(os.environ["FASTOPT_GPU_RESULT"])))


class _Counter:
    def __init__(self, result):
        self._result, self._written = result, 0.0
        self._found = {"passed": 0, "failed": 0, "skipped": 0, "failures": [], "reasons": [], "finished": False}

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or not report.passed:
            self._count(report)

    def pytest_collectreport(self, report):
        if not report.passed:
            self._count(report)

    def pytest_sessionfinish(self, session):
        self._found["finished"] = True
        self._write()

    def _count(self, report):
        self._found[report.outcome] += 1
        if report.failed:
            last_line = (str(report.longrepr).strip().splitlines() or [""])[-1]
            self._found["failures"].append(f"{report.nodeid}: {last_line}")
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self._found["reasons"].append(f"{report.nodeid}: {reason}")
        if time.monotonic() - self._written > WRITE_SECONDS:
            self._write()

    def _write(self):
        self._written = time.monotonic()
        self._result.update(tests=self._found)
