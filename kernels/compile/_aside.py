"""Where code is compiled: in a thread of its own, which no signal reaches.

An exception that a signal handler raises, as Ctrl-C does, would cut the compiler in two: Numba's registries, LLVM and
the locks of both do not stand that. Python runs handlers in the main thread alone. That one waits here, and can be
interrupted at any time; the compilation goes on to its end, and the next one waits for it.
"""

import _thread
import atexit
import contextlib
import contextvars
import sys
import threading
import time
from types import FrameType
from typing import Any

from ._numba import global_compiler_lock

STACK = 1 << 24
"""Bytes of the thread's stack: the compiler needs more than threads have on some systems."""

TICK = 0.1
"""Seconds that are waited at a time: on Windows nothing interrupts a wait."""

PATIENCE, GAP = 2.0, 1.0
"""Seconds of compiling after which that is said; seconds without, after which it counts as another pause."""

_pause = {"began": 0.0, "ended": -GAP, "told": False}
_silence = {"wanted": False}


def aside(job, *arguments, says=""):
    """Return what ``job(*arguments)`` gives, called where no signal interrupts it, and with Numba's lock held.

    Parameters
    ----------
    job : function
        It sees the caller's context variables, `numpy.errstate` among them. What it raises is raised here. It finds
        the lock free of other compilations: what it reads and writes is whole.
    says : str
        What is written to a terminal if this, and what was compiled just before, takes long. Empty for nothing.
    """
    context, done = contextvars.copy_context(), _thread.allocate_lock()
    outcome: list[tuple[Any, BaseException | None]] = []
    done.acquire()

    def work():
        try:
            with global_compiler_lock:
                outcome.append((context.run(job, *arguments), None))
        except BaseException as error:
            outcome.append((None, error))
        finally:
            done.release()

    if _can_be_interrupted():
        _start(work)
        _wait(done, says)
    else:
        work()
    result, error = outcome.pop()
    if error is not None:
        try:
            raise error
        finally:
            del error  # its traceback holds this frame
    return result


def be_silent():
    """Say nothing from now on about what takes long: whoever calls this shows it in another way."""
    _silence["wanted"] = True


def _can_be_interrupted():
    """Whether a signal handler may run in this thread, and it can wait for another one.

    It cannot if that one would need what this one holds: the lock, or a module that is being imported, which is where
    the rule may come from. When the interpreter ends no thread can be started.
    """
    main = threading.main_thread()
    is_exposed = threading.current_thread() is main and main.is_alive()
    return is_exposed and not global_compiler_lock.is_locked() and not _is_importing()


def _is_importing():
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _start(work):
    """Start the thread.

    Not by `threading.Thread`: if a signal cuts its start in two, the new thread may wait for a lock that nobody has.
    """
    before = threading.stack_size(STACK)
    try:
        _thread.start_new_thread(work, ())
    finally:
        threading.stack_size(before)


@atexit.register
def _finish():
    """Wait for what is being compiled: the end of the interpreter must not meet it."""
    with global_compiler_lock:
        pass


def _wait(done, says):
    now = time.monotonic()
    if says and now - _pause["ended"] > GAP:
        _pause.update(began=now, told=False)
    while not done.acquire(timeout=TICK):
        if says and not _pause["told"] and time.monotonic() - _pause["began"] > PATIENCE:
            _pause["told"] = True
            _tell(says)
    if says:
        _pause["ended"] = time.monotonic()


def _tell(line):
    if _silence["wanted"] or not _is_terminal(sys.stderr):
        return
    with contextlib.suppress(OSError):  # a terminal that has gone
        print(line, file=sys.stderr, flush=True)


def _is_terminal(stream):
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False
