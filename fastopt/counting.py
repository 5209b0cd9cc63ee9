"""How many steps an optimizer has taken, and how the last one went."""

from __future__ import annotations

from array import array as numbers
from typing import Any


class Counting:
    """The part of an optimizer that counts. Steps on a GPU are counted when somebody asks."""

    _gpu: Any
    _learning_rate: Any

    def _start_counting(self) -> None:
        """Nothing has been done."""
        self._counted = numbers("q", [0, 0])  # updates, and steps of any kind; where compiled code finds them too
        self._last_grad_norm: float | None = None
        self._last_step_skipped = False

    def _counters(self) -> dict[str, str]:
        """State that is no array: name → attribute."""
        rate = {"learning_rate": "_learning_rate"} if type(self._learning_rate) is float else {}
        return {"iterations": "_iterations", "micro_steps": "_calls", **rate}

    @property
    def _iterations(self) -> int:
        return self._counted[0]

    @_iterations.setter
    def _iterations(self, count: int) -> None:
        self._counted[0] = count

    @property
    def _calls(self) -> int:
        return self._counted[1]

    @_calls.setter
    def _calls(self, count: int) -> None:
        self._counted[1] = count

    @property
    def iterations(self) -> int:
        """Updates done so far; micro-steps of an accumulation do not count. On a GPU, reading it waits."""
        self._confirm()
        return self._iterations

    @property
    def last_grad_norm(self) -> float | None:
        """Norm of the last step's gradients before clipping, if it was needed. On a GPU, reading it waits."""
        self._confirm()
        return self._last_grad_norm

    @property
    def last_step_skipped(self) -> bool:
        """Whether the last step met a gradient that is not finite, and was left out. On a GPU, reading it waits."""
        self._confirm()
        return self._last_step_skipped

    def _confirm(self) -> None:
        """Have the counters of all steps so far; those on a GPU are waited for."""
        if self._gpu is not None:
            self._gpu.confirm()
