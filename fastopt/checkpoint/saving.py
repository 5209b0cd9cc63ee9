"""A checkpoint being written, here or in the background."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from typing import Any


class Saving:
    """What `Optimizer.save` returns. The interpreter's end waits for it.

    Parameters
    ----------
    path : str
    write : function, optional
        Called in a thread of its own; without, all is done.
    """

    _is_told = False

    def __init__(self, path: str, write: Callable[[], Any] | None = None) -> None:
        self._path = path
        self._errors: list[BaseException] = []
        self._thread = None if write is None else _begin(path, write, self._errors)

    def wait(self, timeout: float | None = None) -> None:
        """Return when the file is on the disk.

        Raises
        ------
        OSError, or what ``progress`` has raised
            If it could not be written: the old one is there.
        TimeoutError
            If so many seconds have passed before.
        """
        if self._thread is not None:
            self._thread.join(timeout)
        if not self.done():
            raise TimeoutError(f"{self._path}: the checkpoint is still being written after {timeout} s")

    def done(self) -> bool:
        """Whether the file is on the disk; raises what went wrong, as `wait` does."""
        if self._thread is not None and self._thread.is_alive():
            return False
        if self._errors:
            self._is_told = True
            raise self._errors[0]
        return True

    def __del__(self) -> None:
        if self._errors and not self._is_told:
            warnings.warn(f"a checkpoint was not written, and nobody asked: {self._errors[0]!r}", RuntimeWarning, 2)


_in_background: dict[str, threading.Thread] = {}
"""What is being written, by path."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_background.clear)  # the threads are the parent's


def _begin(path: str, write: Callable[[], Any], errors: list[BaseException]) -> threading.Thread:
    """Start a thread that calls a function, and keeps what it raises."""

    def work() -> None:
        try:
            write()
        except BaseException as error:
            errors.append(error)
        finally:
            if _in_background.get(path) is thread:
                del _in_background[path]

    thread = threading.Thread(target=work, name=f"fastopt, saving {path}")
    _in_background[path] = thread
    try:
        thread.start()
    except BaseException:
        _in_background.pop(path, None)
        raise
    return thread


def wait_for_others(path: str) -> None:
    """Return when nothing is being written to a path in the background; how that went is told to who began it."""
    thread = _in_background.get(path)
    if thread is not None:
        thread.join()
