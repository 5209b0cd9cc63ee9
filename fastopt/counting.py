"""How many steps an optimizer has taken, and how the last one went."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from .counts import Counts
from .hyper_parameters import without_axes
from .parameters import check_count
from .state import checked_counter


class Counting:
    """The part of an optimizer that counts. Steps on a GPU are counted when somebody asks."""

    _gpu: Any
    _learning_rate: Any
    _one_at_a_time: Callable[[], AbstractContextManager[Any]]
    _state_is_set: Callable[[], None]
    _unchanged_by_failure: Callable[[], AbstractContextManager[None]]
    gradient_accumulation_steps: int | None

    def _start_counting(self) -> None:
        """Set all counts to zero."""
        self._counts = Counts()

    def _counters(self) -> dict[str, str]:
        """State that is no array: name → attribute."""
        rate = {"learning_rate": "_learning_rate"} if type(self._learning_rate) is float else {}
        return {"iterations": "_iterations", "micro_steps": "_calls", **rate}

    @property
    def _iterations(self) -> int:
        return self._counts.numbers[0]

    @_iterations.setter
    def _iterations(self, count: int) -> None:
        self._counts.numbers[0] = count

    @property
    def _calls(self) -> int:
        return self._counts.numbers[1]

    @_calls.setter
    def _calls(self, count: int) -> None:
        self._counts.numbers[1] = count

    @property
    def iterations(self) -> int:
        """Updates done so far; micro-steps of an accumulation do not count. On a GPU, reading it waits.

        Settable to an int from 0 on: bias corrections, schedules and averages go on from there, at the beginning of a
        window of accumulation. Slots stay as they are, and so does what an optimizer keeps as a number of its own, such
        as Nadam's product of momenta: as in Keras, when it is assigned to there.
        """
        self._confirm()
        return self._iterations

    @iterations.setter
    def iterations(self, count: int) -> None:
        count = without_axes(count)
        check_count("iterations", count, 0)
        micro_steps = checked_counter("iterations", count, 0) * (self.gradient_accumulation_steps or 1)
        self._confirm()
        with self._one_at_a_time(), self._unchanged_by_failure():
            self._counts.counting(int(count), int(checked_counter("iterations", micro_steps, 0)))()
            self._state_is_set()

    @property
    def last_grad_norm(self) -> float | None:
        """Norm of the last step's gradients before clipping, if it was needed. On a GPU, reading it waits."""
        self._confirm()
        return self._counts.norm

    @property
    def last_step_skipped(self) -> bool:
        """Whether the last step met a gradient that is not finite, and was left out. On a GPU, reading it waits."""
        self._confirm()
        return self._counts.skipped

    def _confirm(self) -> None:
        """Have the counters of all steps so far; those on a GPU are waited for."""
        if self._gpu is not None:
            self._gpu.confirm()
