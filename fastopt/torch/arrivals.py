"""Gradients that come in parts during one ``backward``: of weights that recomputed segments share."""

from __future__ import annotations

import inspect

from torch.utils.checkpoint import CheckpointFunction

_RECOMPUTING = CheckpointFunction.backward.__code__

IN_PARTS = (
    "fused_backward=True has updated a weight inside torch.utils.checkpoint(use_reentrant=True) with a part of its "
    "gradient, as it was not shared by several segments in the step before: use use_reentrant=False, which adds up the "
    "parts first"
)
UNENDED = (
    "fused_backward=True keeps the gradients of weights inside torch.utils.checkpoint(use_reentrant=True) for step(): "
    "call it after each backward, or use use_reentrant=False"
)


class Arrivals:
    """Which gradients are to wait for `end`.

    A segment under ``torch.utils.checkpoint(use_reentrant=True)`` has a ``backward`` of its own within the outer one,
    and what arrives there may be a part of the gradient: other segments may share the weight. Whether they do is seen
    in the first step that the weight takes part in. Everywhere else a gradient is complete when it arrives.
    """

    def __init__(self) -> None:
        self._parts: dict[int, int] = {}  # that have arrived in segments since the last `end`
        self._alone: set[int] = set()  # weights of which one part has arrived in a step
        self._seen: set[int] = set()  # weights outside of segments
        self._some_wait = False

    def waits(self, key: int) -> bool:
        """Note that a gradient has arrived; whether more of it may follow.

        Raises
        ------
        RuntimeError
            If a part of it has been taken for the whole; or if there was no `end` since the last ``backward``.
        """
        if not is_recomputing():
            if self._some_wait and key in self._seen:
                raise RuntimeError(UNENDED)
            self._seen.add(key)
            return False
        self._parts[key] = self._parts.get(key, 0) + 1
        if key not in self._alone:
            self._some_wait = True
            return True
        if self._parts[key] > 1:
            raise RuntimeError(IN_PARTS)
        return False

    def end(self) -> None:
        """Note that all gradients are complete."""
        for key, parts in self._parts.items():
            (self._alone.add if parts == 1 else self._alone.discard)(key)
        self._parts, self._seen, self._some_wait = {}, set(), False


def is_recomputing() -> bool:
    """Whether this is called during the ``backward`` of a segment."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is _RECOMPUTING:
            return True
        frame = frame.f_back
    return False
