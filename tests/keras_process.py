"""Keras's backend is fixed per process: tests marked with another one run in a child, and are reported as if here.

``@pytest.mark.keras_backend("torch")`` is all that a test needs; those of one backend and xdist group share a child.
`KERAS_TESTS_BACKEND=torch pytest tests/test_keras_torch.py --pdb` runs them without one.
"""

import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

_REPORTS = "KERAS_TESTS_REPORTS"
_TIMEOUT = 1500
_FOUND = pytest.StashKey()


def backend_of_this_process():
    """The backend that the tests of this process have: NumPy's, unless it is a child."""
    return os.environ.get("KERAS_TESTS_BACKEND", "numpy")


def is_child():
    """Whether this process runs tests for another one."""
    return _REPORTS in os.environ


@pytest.fixture(scope="session")
def keras():
    """Keras, on the backend of this process."""
    if backend_of_this_process() == "numpy":
        import keras_reference

        return keras_reference.import_keras()
    import keras

    return keras


@pytest.fixture
def on_backend(backend, keras):
    """That Keras has the backend which the test is for."""
    assert keras.backend.backend() == backend


@pytest.fixture(scope="session")
def fast(keras):
    """``fastopt.keras``."""
    import fastopt.keras

    return fastopt.keras


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
def pytest_runtest_protocol(item):
    """Report what a child found, where a test needs another backend than this process has."""
    if _backend(item) in (None, backend_of_this_process()):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _reports_of(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _backend(item):
    marker = item.get_closest_marker("keras_backend")
    return marker and marker.args[0]


def _company(item):
    """What the items that share a child have in common."""
    group = item.get_closest_marker("xdist_group")
    return _backend(item), group and group.args[0]


def _own_id(item):
    """The item's id without what pytest-xdist appends for its group."""
    return item.nodeid.split("@")[0]


def _reports_of(item):
    found = item.session.stash.setdefault(_FOUND, {})
    company = _company(item)
    if company not in found:
        found[company] = _run([other for other in item.session.items if _company(other) == company], company[0])
    reports, output = found[company]
    for data in reports.get(_own_id(item)) or [_lost(item, output)]:
        yield item.config.hook.pytest_report_from_serializable(config=item.config, data=data | {"nodeid": item.nodeid})


def _run(items, backend):
    """Run items in a child; their reports, by id, and all that it wrote to the terminal."""
    with tempfile.TemporaryDirectory() as folder:
        reports, names = Path(folder, "reports"), Path(folder, "names")
        names.write_text("\n".join(map(_own_id, items)))
        environment = os.environ | {"KERAS_TESTS_BACKEND": backend, _REPORTS: str(reports), "PYTEST_ADDOPTS": ""}
        style = f"--tb={items[0].config.option.tbstyle}"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", style, f"@{names}"]
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
        item.nodeid, item.location, {}, "failed", f"the child process did not report it\n{output}", "call"
    )
    return item.config.hook.pytest_report_to_serializable(config=item.config, report=report)
