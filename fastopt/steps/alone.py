"""One step of an optimizer at a time."""

from __future__ import annotations

from ..kernels.locks import Lock


def alone(lock: Lock, is_stepping: bool = False) -> Lock:
    """The lock of an optimizer's steps, to be held during one, or while something is done that must not be within one.

    It is not waited for: a step that begins within a step, in a callable learning rate or a signal's handler, would
    wait for itself.

    Parameters
    ----------
    lock : Lock
    is_stepping : bool
        Whether a step is under way that does not hold it.

    Raises
    ------
    RuntimeError
        If a step is under way.
    """
    refuse_while(is_stepping or lock.locked())
    return lock


def refuse_while(is_stepping: bool) -> None:
    """Raise the RuntimeError of `alone` if a step is under way."""
    if is_stepping:
        raise RuntimeError(
            "a step of this optimizer is under way, in another thread or around this call (a callable learning rate, a "
            "signal handler, a __del__): let it end first; threads that train need an optimizer each"
        )
