"""What an optimizer says of itself: its rule, what the rule's scalars follow from, its slots."""

from __future__ import annotations

from array import array as numbers
from collections.abc import Callable
from functools import partial
from operator import setitem
from typing import Any

from .counting import Counting
from .hyper_parameters import HyperParameters
from .kernels.registry import RULES, RUNNING, Slot, running_after, scalars_of, take_rates
from .parameters import Parameter
from .signatures import document_common


class Declared(HyperParameters, Counting):
    """The part of an optimizer that its class decides.

    A subclass has a signature (under `signatures.hyper_parameters`) and a ``_settings_class``, or overrides
    ``_scalars``.
    """

    @property
    def _settings_class(self) -> Any:
        """The class of `kernels.registry.scalars_for`, or of scalars, whose fields are hyper-parameters by their names.

        A subclass may have it as an attribute.
        """
        return None

    def _branch(self, parameter: Parameter) -> str:
        """Which of several rules a parameter is under."""
        return ""

    def _needs_c_order(self, parameter: Parameter) -> bool:
        """Whether the rule cannot work on the parameter as it lies in memory."""
        return False

    def _scalars(self, branch: str, learning_rate: float, t: int) -> tuple[float, ...]:
        """Return the rule's scalars, a NamedTuple, for update number ``t`` (from 1), from hyper-parameters alone."""
        return scalars_of(self._settings(branch, learning_rate), t)

    def _settings(self, branch: str, learning_rate: float) -> tuple[float, ...]:
        """Return the settings from which the rule's scalars follow; ``learning_rate`` may be an array of several."""
        kind = self._settings_class
        running = () if self._running is None else (self._running[0],)
        names = kind._fields[1 : len(kind._fields) - len(running)]
        return kind(learning_rate, *map(self._value_of_field, names), *running)

    def _value_of_field(self, name: str) -> float:
        own = name.removeprefix("one_minus_")
        return self._value(name) if own == name else 1.0 - self._value(own)

    _running: Any = None
    """The last of the settings, if it is a number that every update changes, as an array that compiled code knows."""

    def _counters(self) -> dict[str, str]:
        running = {} if self._running is None else {self._settings_class._fields[-1]: "_running_number"}
        return {**super()._counters(), **running}

    @property
    def _running_number(self) -> float:
        return self._running[0]

    @_running_number.setter
    def _running_number(self, number: float) -> None:
        self._running[0] = number

    def _takes_rates(self, branch: str) -> bool:
        """Whether scalars may be worked out for an array of learning rates: those of fastopt's own classes only."""
        kind = type(self)
        own = kind._scalars is Declared._scalars and kind._settings.__module__.startswith(f"{__package__}.")
        return own and take_rates(type(self._settings(branch, 1.0)))

    def _follows_settings(self) -> bool:
        """Whether scalars follow from `_settings_class` and the update's number: a subclass may have others."""
        kind = type(self)
        generic = kind._scalars is Declared._scalars and kind._settings is Declared._settings
        return generic and self._settings_class is not None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Explain the arguments that all optimizers take, too."""
        super().__init_subclass__(**kwargs)
        document_common(cls)

    def _slots_of(self, scalars: type) -> dict[str, Slot]:
        """Return the state of the rule that belongs to a class of scalars."""
        return {
            name: slot._replace(start=getattr(self, slot.starts_as)) if slot.starts_as else slot
            for name, slot in RULES[scalars].slots.items()
        }

    def _advancing(self, t: int) -> list[Callable[[], None]]:
        """C functions that note, beside the counters, that update number ``t`` has been done."""
        if self._running is None:
            return []
        return [partial(setitem, self._running, 0, running_after(self._settings("", 1.0), t))]

    def _start_running(self) -> None:
        """Set the number that runs to its start, if the rule has one."""
        if self._settings_class in RUNNING:
            self._running = numbers("d", self._settings_class._field_defaults.values())
