"""The mark `row`, `--row N` to find a row's tests, and a run's tests as JSON."""

import json
from pathlib import Path

import pytest

FOUND = pytest.StashKey[dict]()


def pytest_addoption(parser):
    parser.addoption("--row", type=int, help="run the tests of one row of tests/documents/checklist.csv")
    parser.addoption("--tests-to", help="write the tests of tests/documents, their rows and outcomes to a JSON file")


def pytest_configure(config):
    config.stash[FOUND] = {}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.path.parent == Path(__file__).parent:
            marks = [[list(mark.args), mark.kwargs.get("oracle", "")] for mark in item.iter_markers("row")]
            config.stash[FOUND][item.nodeid] = {"id": _short(item.nodeid), "marks": marks, "outcome": "not run"}
    items.sort(key=lambda item: item.path.name == "test_bite.py")  # last: by then all kernels are compiled
    row = config.getoption("--row", None)
    if row is not None:
        items[:] = [item for item in items if any(row in mark.args for mark in item.iter_markers("row"))]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    test = item.config.stash[FOUND].get(item.nodeid)
    if test is not None and (report.when == "call" or not report.passed):
        test["outcome"] = report.outcome
    return report


def pytest_sessionfinish(session):
    path = session.config.getoption("--tests-to", None)
    if path:
        Path(path).write_text(json.dumps(list(session.config.stash[FOUND].values())))


def _short(nodeid):
    return nodeid.rpartition("documents/")[2]
