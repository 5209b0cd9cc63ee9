"""The rows that the five documents come down to, and which tests answer them."""

import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent


class Row(NamedTuple):
    """One system, feature or parameter that a document describes."""

    number: int
    document: str
    detail: str
    asks_for_nothing_because: str


class Test(NamedTuple):
    """A test, its marks as [[rows, oracle], …], and what came of it: "passed", "failed" or "not run"."""

    id: str
    marks: list
    outcome: str

    @property
    def module(self):
        return self.id.partition("::")[0]

    @property
    def rows(self):
        return sorted({row for rows, _ in self.marks for row in rows})


def rows():
    """All rows, by number."""
    with (HERE / "checklist.csv").open(encoding="utf-8", newline="") as file:
        read = [Row(int(number), *rest) for number, *rest in list(csv.reader(file))[1:]]
    return {row.number: row for row in read}


def pytest_in_a_child(*arguments, **environment):
    """The tests of this folder, as a pytest of its own found them, and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "tests.json"
        command = [
            sys.executable,
            "-P",
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--tests-to={found}",
            *arguments,
        ]
        done = subprocess.run(
            [*command, HERE], cwd=HERE.parents[1], env=os.environ | environment, capture_output=True, text=True
        )
        if not found.exists():
            raise RuntimeError(f"pytest stopped with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return read(found), done.stdout


def read(path):
    """The tests that `--tests-to` wrote."""
    return [Test(**test) for test in json.loads(path.read_text())]
