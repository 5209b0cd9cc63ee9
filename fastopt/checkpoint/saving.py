"""A checkpoint being written, here or in the background."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from typing import Any


class Saving:
    """What `Optimizer.save` returns. The interpreter's end waits for it."""

    _thread: threading.Thread | None = None
    _error: BaseException | None = None
    _is_told = True

    def __init__(self, path: str) -> None:
        self._path = path

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
        if self._error is not None:
            self._is_told = True
            raise self._error
        return True

    def _begin(self, write: Callable[[], Any]) -> None:
        """Call a function in a thread of its own."""

        def work() -> None:
            try:
                write()
            except BaseException as error:
                self._error, self._is_told = error, False
            finally:
                if _in_background.get(self._path) is self:
                    del _in_background[self._path]

        self._thread = threading.Thread(target=work, name=f"fastopt, saving {self._path}")
        _in_background[self._path] = self
        try:
            self._thread.start()
        except BaseException:
            del _in_background[self._path]
            raise

    def __del__(self) -> None:
        if not self._is_told:
            warnings.warn(f"a checkpoint was not written, and nobody asked: {self._error!r}", RuntimeWarning, 2)


_in_background: dict[str, Saving] = {}
"""What is being written, by path."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_background.clear)  # the threads are the parent's


def wait_for_others(path: str) -> None:
    """Return when nothing is being written to a path in the background; how that went is told to who began it."""
    other = _in_background.get(path)
    if other is not None and other._thread is not None:
        other._thread.join()
