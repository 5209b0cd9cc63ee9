"""What no signal may cut in two."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


def uninterrupted(job: Callable[[], Any]) -> None:
    """Call a function, and return when it has come to its end, whatever signals' handlers raise meanwhile.

    Python runs handlers in the main thread alone: there the function is called in another one, and what a handler
    raises, as Ctrl-C does, is raised afterwards. What the function raises is raised here.
    """
    errors: list[BaseException] = []

    def work() -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    if threading.current_thread() is threading.main_thread():
        _wait_for(threading.Thread(target=work, name="fastopt, uninterrupted"))
    else:
        work()
    if errors:
        raise errors.pop()


def _wait_for(thread: threading.Thread) -> None:
    raised: BaseException | None = None
    thread.start()
    while thread.is_alive():
        try:
            thread.join()
        except BaseException as error:
            raised = error
    if raised is not None:
        raise raised
