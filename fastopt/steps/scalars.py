"""What a step does beside its gradients: one object tells it to steps on every device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..kernels.clipping import Clipping
from ..kernels.layout import ACCUMULATED
from ..plan import Plan
from .counts import Call, Counts


class Scaling(NamedTuple):
    """A loss scale that a GPU adapts by itself."""

    scale: float
    growth: int  # steps since it last changed
    growth_steps: int  # steps after which it doubles
    least: float
    greatest: float


class Decision(NamedTuple):
    """What the next step is."""

    update: int  # number of the update that it is, or leads to, from 1
    call: int  # its own number, from 1
    closing: bool  # whether it updates the parameters; otherwise it accumulates gradients
    window: int  # gradients that an update takes
    way: int  # to clip by the norm of the gradients, 0 for none
    limit: float
    options: int  # of the launch


class StepScalars(ABC):
    """Decides what a step is, and fills the plans' rows of scalars.

    Parameters
    ----------
    plans : list of Plan
    counts : Counts
    """

    def __init__(self, plans: list[Plan], counts: Counts) -> None:
        self.plans, self.counts = plans, counts
        self._keeps_average, self._accumulates = self.averages(1) != 0, self.window() > 1

    @abstractmethod
    def window(self) -> int:
        """How many gradients an update takes."""

    @abstractmethod
    def averages(self, update: int) -> int:
        """Options of a launch by which averages follow an update; 0 if none are kept."""

    @abstractmethod
    def clipping(self) -> tuple[int, float]:
        """The way to clip by a norm, of `kernels.clipping`, 0 for none; and the limit."""

    @abstractmethod
    def write(self, unscale: float, decision: Decision, ask: bool = True) -> None:
        """Fill the rows of scalars for a step.

        Parameters
        ----------
        unscale : float
            Factor on every gradient.
        decision : Decision
        ask : bool
            Whether users' functions are asked anew; otherwise they are taken to say what they said last.
        """

    @abstractmethod
    def counters(self) -> dict[str, Any]:
        """All that moves from step to step."""

    @abstractmethod
    def set_counters(self, counters: dict[str, Any]) -> None:
        """Go on from what `counters` gave."""

    def advancing(self, update: int) -> list[Call]:
        """What notes, beside the counters, that an update has been done."""
        return []

    def recording(self) -> list[Call]:
        """What else a step on the host that is not left out says of itself."""
        return []

    def decide(self) -> Decision:
        """What the next step is.

        Raises
        ------
        RuntimeError
            If averages or accumulation have been switched on since the optimizer was built.
        """
        updates, calls = self.counts.numbers
        update, call, window = updates + 1, calls + 1, self.window()
        averages = self.averages(update)
        if (averages and not self._keeps_average) or (window > 1 and not self._accumulates):
            raise RuntimeError("use_ema and gradient_accumulation_steps cannot be switched on after build()")
        if call % window:
            return Decision(update, call, False, window, 0, 0.0, 0)
        return Decision(update, call, True, window, *self.clipping(), averages | (ACCUMULATED if window > 1 else 0))


class RepeatableScalars(StepScalars):
    """Those of an optimizer whose steps may be like the last one."""

    @property
    @abstractmethod
    def keeps(self) -> bool:
        """Whether rows are the same for every update, as long as hyper-parameters are."""

    @property
    @abstractmethod
    def running(self) -> Any:
        """Number that every update changes, an array.array of one float64; or None."""

    @abstractmethod
    def values(self) -> tuple[Any, ...]:
        """What scalars depend on beside counters, to be compared with what it was."""

    @abstractmethod
    def are_settled(self, values: tuple[Any, ...]) -> bool:
        """Whether scalars depend on nothing but these values, and these stay what they are while they are equal."""

    @abstractmethod
    def overwrites(self) -> bool:
        """Whether averages replace the parameters now and then."""

    @abstractmethod
    def by_norm(self) -> Clipping | None:
        """How steps go by the norm of the gradients; None if they do not."""

    @abstractmethod
    def settings_class(self, plan: Plan) -> Any:
        """What a plan's row follows from, with the number of the update; None if it is not one row, or does not."""

    @abstractmethod
    def settings(self, plan: Plan) -> tuple[float, ...]:
        """That, as of the last step."""

    @abstractmethod
    def refill(self, update: int) -> None:
        """Fill the rows as for the last step, but for another update."""


def take_gradients(plans: Sequence[Plan]) -> None:
    """Point the plans' works at the gradients that have been read."""
    for plan in plans:
        plan.take_gradients()
