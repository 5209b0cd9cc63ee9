"""Compiling where no signal goes: what interrupts a build, what a build that was interrupted leaves, what is said."""

import os
import signal
import sys
import time
import traceback

import children
import interrupted_build
import numpy as np
import pytest
from fastopt.kernels import maths
from fastopt.kernels.compile import _aside, _jit
from fastopt.kernels.compile import cache as cache_module
from fastopt.kernels.compile._aside import aside
from numba import types

pytestmark = pytest.mark.xdist_group("compiling")
SIGNALS = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this platform has no timer that signals")

TINY = """
    import children
    from fastopt.kernels.compile import _jit
    from fastopt.kernels import maths
    from numba import types

    def tiny(key=None):
        number = types.float64
        return _jit.specialise(maths.maximum, "tiny", number(number, number), {}, key=key)
"""

# -- what a job meets --------------------------------------------------------------------------------------------------


def divide(x, y):
    return x / y


def test_errors_come_out_with_their_traceback():
    with pytest.raises(ZeroDivisionError) as caught:
        aside(divide, 1, 0)
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "divide"


def test_a_job_sees_the_context_of_its_caller():
    with np.errstate(over="raise", under="print"):
        assert aside(np.geterr) == np.geterr()


def test_warnings_are_the_callers():
    with pytest.warns(UserWarning, match="from the job"):
        aside(lambda: __import__("warnings").warn("from the job", UserWarning, stacklevel=1))


# -- signals -----------------------------------------------------------------------------------------------------------


class Interrupt(Exception):
    """What the handler of these tests raises."""


@pytest.fixture
def interruptible():
    """A signal whose handler raises `Interrupt`."""

    def interrupt(number, frame):
        raise Interrupt

    before = signal.signal(signal.SIGINT, interrupt)
    yield signal.SIGINT
    signal.signal(signal.SIGINT, before)


@SIGNALS
def test_an_interrupt_does_not_wait_for_the_job_but_the_next_job_does(interruptible):
    done = []

    def long():
        signal.raise_signal(interruptible)
        time.sleep(1.0)
        done.append("first")

    with pytest.raises(Interrupt):
        aside(long)
    assert done == []
    aside(done.append, "second")
    assert done == ["first", "second"]


@SIGNALS
def test_no_handler_runs_within_the_compiler(tmp_path):
    """Python runs handlers on the stack of the main thread: none of Numba's functions may be on it, nor LLVM's.

    Nothing is freed meanwhile: where that happens, Python decides.
    """
    code = f"""{TINY}
    import gc, signal
    from numba.core import event

    inside, signals = [], []

    def look(number, frame):
        signals.append(number)
        while frame is not None:
            if "/llvmlite/" in frame.f_code.co_filename or "compiler" in frame.f_code.co_filename:
                inside.append(frame.f_code.co_qualname)
            frame = frame.f_back

    class Signals(event.Listener):
        def on_start(self, event):
            signal.raise_signal(signal.SIGINT)

        def on_end(self, event):
            signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, look)
    gc.disable()
    with event.install_listener("numba:llvm_lock", Signals()):
        compiled = tiny("known")
        before = len(signals)
        loaded = tiny("known")
        address = _jit.c_address(loaded)
    value = compiled(2.0, 5.0)
    children.report(inside=inside, value=value, address=address != 0, seen=[before > 0, len(signals) > before])
    """
    found = children.run(code, FASTOPT_CACHE_DIR=tmp_path)
    assert found == {"compilations": 1, "inside": [], "value": 5.0, "address": True, "seen": [True, True]}


@SIGNALS
def test_interrupted_builds_can_be_repeated(tmp_path):
    """The numbers are those of a process that was never interrupted."""
    found = interrupted_build.interrupted("SGD", seed=1, cache=tmp_path, attempts=6)
    assert found["interrupts"] > 0
    assert found["digest"] == children.steps_of("SGD")
    assert all(path.suffix == ".fastopt" for path in tmp_path.iterdir())


@SIGNALS
@pytest.mark.full
def test_builds_interrupted_for_a_minute():
    assert interrupted_build.torture(seconds=60, seed=2)["interrupts"] > 0


INTERRUPTED = f"""{TINY}
    import os, signal, sys, threading
    from numba.core import event

    class Interrupt(Exception):
        pass

    def interrupt(number, frame):
        raise Interrupt

    class Once(event.Listener):
        sent = False

        def on_start(self, event):
            if not self.sent:
                self.sent = True
                signal.raise_signal(signal.SIGINT)

        def on_end(self, event):
            pass

    def interrupted_tiny():
        signal.signal(signal.SIGINT, interrupt)
        try:
            with event.install_listener("numba:compile", Once()):
                tiny("known")
        except Interrupt:
            return True
        return False
"""


@SIGNALS
def test_exit_waits_for_what_is_being_compiled(tmp_path):
    code = f"""{INTERRUPTED}
    found = interrupted_tiny()
    children.report(found=found)
    sys.exit(0)
    """
    assert children.run(code, FASTOPT_CACHE_DIR=tmp_path)["found"]  # whether it ended before the report is chance
    assert children.run(f"{TINY}\n    children.report(value=tiny('known')(2.0, 5.0))", FASTOPT_CACHE_DIR=tmp_path) == {
        "compilations": 0,
        "value": 5.0,
    }


@SIGNALS
@children.FORK
def test_fork_waits_for_what_is_being_compiled(tmp_path):
    code = f"""{INTERRUPTED}
    found = interrupted_tiny()
    child = children.in_fork(lambda: [tiny("other")(2.0, 5.0), tiny("known")(2.0, 7.0)])
    children.report(found=found, child=child, parent=tiny("known")(2.0, 7.0))
    """
    found = children.run(code, FASTOPT_CACHE_DIR=tmp_path, PYTHONWARNINGS="default")
    assert found == {"compilations": 1, "found": True, "child": [5.0, 7.0], "parent": 7.0}


# -- where no other thread can do it -----------------------------------------------------------------------------------

RULES = """
from typing import NamedTuple
import fastopt, numpy as np

class PlainScalars(NamedTuple):
    learning_rate: float

def plain(param, grad, slots, s):
    return param - s.learning_rate * grad, slots

Plain = fastopt.register_rule("Plain", plain, PlainScalars, defaults={"learning_rate": 0.5})
param = np.ones(3, np.float32)
optimizer = Plain()
optimizer.build([param])
optimizer.apply([np.ones(3, np.float32)])
"""


def test_build_while_its_module_is_imported(tmp_path):
    """Another thread that pickled or unpickled the rule would wait for the module, and this one for that thread."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "user_rules.py").write_text(RULES)
    code = "import children, user_rules; children.report(value=float(user_rules.param[0]))"
    first, second = (children.run(code, site=site, FASTOPT_CACHE_DIR=tmp_path / "cache") for _ in range(2))
    assert first["compilations"] > 0
    assert (first["value"], second) == (0.5, {"compilations": 0, "value": 0.5})


def test_build_when_the_interpreter_ends(tmp_path):
    """No thread can be started any more."""
    code = f"""{TINY}
    import atexit
    atexit.register(lambda: children.report(value=tiny()(2.0, 5.0)))
    """
    assert children.run(code) == {"compilations": 1, "value": 5.0}


# -- what is said ------------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal(monkeypatch):
    """What is written to standard error, a terminal, while a function runs; the pause is long at once."""
    pty = pytest.importorskip("pty", reason="this platform has no pseudo-terminals")
    monkeypatch.setattr(_aside, "PATIENCE", 0.0)
    monkeypatch.setattr(_aside, "TICK", 0.01)
    monkeypatch.setattr(_aside, "_pause", {"began": 0.0, "ended": -np.inf, "told": False})

    def written(function):
        ours, theirs = pty.openpty()
        with open(theirs, "w") as stream, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            function()
            print("end", file=stream, flush=True)
            said = b""
            while not said.endswith(b"end\r\n"):
                said += os.read(ours, 1000)
        os.close(ours)
        return said.decode().removesuffix("end\r\n").splitlines()

    return written


def long_jobs():
    for name in ("one", "two"):
        aside(time.sleep, 0.2, says=f"compiling {name}")


def test_a_long_pause_is_explained_once(terminal):
    assert terminal(long_jobs) == ["compiling one"]
    assert terminal(long_jobs) == [], "it is the same pause"


def test_a_second_pause_is_explained_too(terminal, monkeypatch):
    assert terminal(long_jobs) == ["compiling one"]
    monkeypatch.setattr(_aside, "GAP", -1.0)
    assert terminal(long_jobs) == ["compiling one", "compiling two"]


def test_nothing_is_said_of_short_pauses_or_where_others_show_them(terminal, monkeypatch):
    monkeypatch.setattr(_aside, "PATIENCE", 60.0)
    assert terminal(long_jobs) == []
    monkeypatch.setattr(_aside, "PATIENCE", 0.0)
    monkeypatch.setattr(_aside, "_silence", {"wanted": False})
    _aside.be_silent()
    assert terminal(long_jobs) == []


def test_nothing_is_said_where_there_is_no_terminal(terminal, capfd, tmp_path, monkeypatch):
    closed = (tmp_path / "closed").open("w")
    closed.close()
    for stream in (sys.stderr, None, closed):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            long_jobs()
    assert capfd.readouterr() == ("", "")


def test_what_is_compiled_and_where_it_is_kept(terminal, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "cache_folder", lambda: tmp_path)
    number = types.float64

    def make(key):
        return lambda: _jit.specialise(maths.maximum, "tiny", number(number, number), {}, key=key)

    (kept,) = terminal(make("tiny"))
    assert kept == f"fastopt: compiling maximum_tiny and others (once on this machine: kept in {tmp_path})"
    monkeypatch.setattr(_aside, "GAP", -1.0)
    assert terminal(make("tiny")) == [], "it was loaded"
    assert terminal(make(None)) == ["fastopt: compiling maximum_tiny and others (not kept on disk)"]
