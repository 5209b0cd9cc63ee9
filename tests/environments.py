"""Some things are fixed per process: tests that need them otherwise run in a child, and are reported as if here.

``@pytest.mark.keras_backend("torch")`` is all that a test needs; those with the same needs and xdist group share a
child. With the environment that a marker stands for they run without one:
`KERAS_TESTS_BACKEND=torch pytest tests/test_keras_torch.py --pdb`.
"""

import importlib.util
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

_REPORTS = "FASTOPT_TESTS_REPORTS"
_BACKEND = "KERAS_TESTS_BACKEND"
_TIMEOUT = 1500
_FOUND = pytest.StashKey()


def backend_of_this_process():
    """The backend that the tests of this process have: NumPy's, unless it is a child."""
    return os.environ.get(_BACKEND, "numpy")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist, which reads the groups, is to see these
def pytest_collection_modifyitems(items):
    """Skip what needs a backend that is not installed, here and not in a child.

    What shares a child stays with one worker: every worker that had one of its tests would run them all.
    """
    for item in items:
        backend = item.get_closest_marker("keras_backend")
        if backend and importlib.util.find_spec(backend.args[0]) is None:
            item.add_marker(pytest.mark.skip(reason=f"Keras's backend {backend.args[0]} is not installed"))
        needs = _needs(item)
        if needs and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(" ".join(f"keras-{value}" for _, value in needs)))


def is_child():
    """Whether this process runs tests for another one."""
    return _REPORTS in os.environ


def pytest_configure(config):
    """Declare the marker; in a child, write the reports down."""
    config.addinivalue_line("markers", "keras_backend(name): the backend of Keras that a test needs")
    if is_child():
        config.pluginmanager.register(_Recorder(config, os.environ[_REPORTS]))


class _Recorder:
    def __init__(self, config, path):
        self._config, self._path = config, path

    def pytest_runtest_logreport(self, report):
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with open(self._path, "ab") as file:
            pickle.dump(data, file)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    """Report what a child found, where a test needs what this process does not have."""
    if not _needs(item):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _reports_of(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    item.session._setupstate.teardown_exact(nextitem)  # what tests before it left for others of its module
    return True


def _needs(item):
    """What must change in the environment for an item, as pairs of name and value."""
    if item.get_closest_marker("skip"):
        return ()
    needs = []
    backend = item.get_closest_marker("keras_backend")
    if backend and backend.args[0] != backend_of_this_process():
        needs.append((_BACKEND, backend.args[0]))
    return tuple(needs)


def _company(item):
    """What the items that share a child have in common."""
    group = item.get_closest_marker("xdist_group")
    return _needs(item), group and group.args[0]


def _own_id(item):
    """The item's id without what pytest-xdist appends for its group."""
    return item.nodeid.split("@")[0]


def _reports_of(item):
    found = item.session.stash.setdefault(_FOUND, {})
    company = _company(item)
    if company not in found:
        found[company] = _run([other for other in item.session.items if _company(other) == company], company[0])
    reports, output = found[company]
    own = reports.get(_own_id(item), [])
    if not own or own[-1]["when"] != "teardown":
        own = [*own, _lost(item, output)]
    for data in own:
        yield item.config.hook.pytest_report_from_serializable(config=item.config, data=data | {"nodeid": item.nodeid})


def _run(items, needs):
    """Run items in a child; their reports, by id, and all that it wrote to the terminal."""
    with tempfile.TemporaryDirectory() as folder:
        reports, names = Path(folder, "reports"), Path(folder, "names")
        names.write_text("\n".join(map(_own_id, items)))
        environment = os.environ | dict(needs) | {_REPORTS: str(reports), "PYTEST_ADDOPTS": ""}
        style = f"--tb={items[0].config.option.tbstyle}"
        warnings = [f"-W{filter}" for filter in items[0].config.option.pythonwarnings or ()]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", style, *warnings, f"@{names}"]
        root = items[0].config.rootpath
        try:
            child = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=_TIMEOUT)
            output = f"exit status {child.returncode}\n{child.stdout}\n{child.stderr}"
        except subprocess.TimeoutExpired as error:
            output = f"{error}\n{error.stdout}\n{error.stderr}"
        return _read(reports), output


def _read(path):
    found = {}
    if path.exists():
        with path.open("rb") as file:
            while file.peek(1):
                data = pickle.load(file)
                found.setdefault(data["nodeid"], []).append(data)
    return found


def _lost(item, output):
    report = pytest.TestReport(
        item.nodeid, item.location, {}, "failed", f"the child process did not live to the end of it\n{output}", "call"
    )
    return item.config.hook.pytest_report_to_serializable(config=item.config, report=report)
