"""What no signal may cut in two."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from .kernels.cpu.launch import one_call


def uninterrupted(job: Callable[[], Any]) -> None:
    """Call a function, and return when it has come to its end, whatever signals' handlers raise meanwhile.

    Python runs handlers in the main thread alone: there the function is called in another one, and what a handler
    raises, as Ctrl-C does, is raised afterwards; or at once, if the function has not begun. What the function raises is
    raised here.
    """
    if threading.current_thread() is not threading.main_thread():
        job()
        return
    errors: list[BaseException] = []
    begun: list[bool] = []
    ended = threading.Event()

    def work() -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()

    # One call: a handler that raises finds the thread begun, and says so, or not begun.
    begin = one_call([partial(_thread.start_new_thread, work, ()), partial(begun.append, True)])
    raised: BaseException | None = None
    while not ended.is_set():
        try:
            if not begun:
                begin()
            ended.wait()
        except BaseException as error:
            raised = error
            if not begun:
                break
    for fault in (*errors, raised):
        if fault is not None:
            raise fault
