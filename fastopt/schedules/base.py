"""What all schedules share: configs, equality, and finding a class by its name."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from .checks import finite


class LearningRateSchedule:
    """Base class: override ``__call__``, and ``get_config`` where the attributes are not called as the arguments are.

    Two schedules are equal when they are of one class and their arguments are equal.

    >>> class Halving(LearningRateSchedule):
    ...     def __init__(self, initial_learning_rate):
    ...         self.initial_learning_rate = initial_learning_rate
    ...
    ...     def __call__(self, step):
    ...         return self.initial_learning_rate * 0.5**step
    >>> Halving(0.1), Halving(0.1)(2)
    (Halving(initial_learning_rate=0.1), 0.025)
    """

    def __call__(self, step: float) -> float:
        """Learning rate at ``step``, the number of updates made so far."""
        raise NotImplementedError(f"{type(self).__name__} must override __call__(self, step)")

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments by name, as values that JSON can hold; schedules among them are serialized.

        This base version reads the attributes of the same names, and raises NotImplementedError if one is missing.
        """
        return {name: _serialized(value) for name, value in self._arguments().items()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LearningRateSchedule:
        """The schedule that ``get_config`` described."""
        return cls(**{name: _deserialized(value) for name, value in config.items()})

    def _arguments(self) -> dict[str, Any]:
        names = list(inspect.signature(type(self)).parameters)
        if missing := [name for name in names if not hasattr(self, name)]:
            raise NotImplementedError(f"{type(self).__name__} must override get_config(): it has no {missing[0]!r}")
        return {name: copy.copy(getattr(self, name)) for name in names}

    def _described(self) -> dict[str, Any] | None:
        says_itself = type(self).get_config is not LearningRateSchedule.get_config
        try:
            return self.get_config() if says_itself else self._arguments()
        except NotImplementedError:
            return None

    def __repr__(self) -> str:
        arguments = self._described()
        if arguments is None:
            return object.__repr__(self)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LearningRateSchedule) or type(self) is not type(other):
            return NotImplemented
        arguments = self._described()
        return self is other or (arguments is not None and _hashable(arguments) == _hashable(other._described()))

    def __hash__(self) -> int:
        arguments = self._described()
        return object.__hash__(self) if arguments is None else hash((type(self), _hashable(arguments)))


KNOWN: dict[str, type[LearningRateSchedule]] = {}
"""fastopt's own schedules by name; the package fills it."""

_custom: ContextVar[Mapping[str, type[LearningRateSchedule]]] = ContextVar("custom_objects", default=KNOWN)


def get(
    name: str, custom_objects: Mapping[str, type[LearningRateSchedule]] | None = None
) -> type[LearningRateSchedule]:
    """The schedule class called ``name``, in any letter case.

    Unlike an optimizer, no schedule can be made without arguments: hence the class, not an instance.

    Parameters
    ----------
    name : str
    custom_objects : mapping of str to class, optional
        Classes of your own by name; they come before fastopt's.

    Raises
    ------
    ValueError
        No schedule has this name; the message lists those that exist.

    Examples
    --------
    >>> from fastopt import schedules
    >>> schedules.get("cosinedecay")(0.1, decay_steps=10)(5)
    0.05
    """
    known = {**KNOWN, **_custom.get(), **(custom_objects or {})}
    by_lower_case = {key.lower(): schedule for key, schedule in known.items()}
    if not isinstance(name, str) or name.lower() not in by_lower_case:
        raise ValueError(f"unknown learning rate schedule {name!r}; known are {', '.join(sorted(known))}")
    return by_lower_case[name.lower()]


def serialize(schedule: LearningRateSchedule) -> dict[str, Any]:
    """A dict that JSON can hold and `deserialize` reads, with the keys that Keras uses.

    Examples
    --------
    >>> from fastopt import schedules
    >>> sorted(schedules.serialize(schedules.CosineDecay(0.1, 10)))
    ['class_name', 'config', 'module', 'registered_name']
    """
    if not isinstance(schedule, LearningRateSchedule):
        raise TypeError(f"schedule must be a LearningRateSchedule, got {schedule!r}")
    kind = type(schedule)
    return {
        "module": __package__ if KNOWN.get(kind.__name__) is kind else kind.__module__,
        "class_name": kind.__name__,
        "config": schedule.get_config(),
        "registered_name": None,
    }


def deserialize(
    config: Mapping[str, Any], custom_objects: Mapping[str, type[LearningRateSchedule]] | None = None
) -> LearningRateSchedule:
    """The schedule that `serialize` described; a dict that Keras wrote for one of its six works too.

    Parameters
    ----------
    config : mapping
        ``{"class_name": str, "config": dict}``; other keys are ignored. Never changed.
    custom_objects : mapping of str to class, optional
        Classes of your own by name, for nested schedules too; they come before fastopt's.

    Raises
    ------
    ValueError
        No such class, a key is missing, or the arguments are refused by the class.

    Examples
    --------
    >>> from fastopt.schedules import CosineDecay
    >>> deserialize(serialize(CosineDecay(0.1, 10))) == CosineDecay(0.1, 10)
    True
    """
    if not isinstance(config, Mapping) or not config.keys() >= _KEYS:
        raise ValueError(f"expected a dict with the keys class_name and config, got {config!r}")
    outer = _custom.set({**_custom.get(), **(custom_objects or {})})
    try:
        return get(config["class_name"]).from_config(config["config"])
    finally:
        _custom.reset(outer)


_KEYS = {"class_name", "config"}


def rate_or_schedule(name: str, value: object) -> float | LearningRateSchedule:
    """A check, as those of `checks`: a finite number, or a schedule."""
    if isinstance(value, LearningRateSchedule):
        return value
    try:
        return finite(name, value)
    except TypeError:
        raise TypeError(f"{name} must be a number or a schedule, got {value!r}") from None


def rate_at(rate: float | LearningRateSchedule, step: float) -> float:
    """A constant rate, or what the schedule gives for ``step``."""
    return float(rate(step) if isinstance(rate, LearningRateSchedule) else rate)


def _serialized(value: Any) -> Any:
    if isinstance(value, LearningRateSchedule):
        return serialize(value)
    return [_serialized(item) for item in value] if isinstance(value, list) else value


def _deserialized(value: Any) -> Any:
    if isinstance(value, Mapping) and value.keys() >= _KEYS:
        return deserialize(value)
    return [_deserialized(item) for item in value] if isinstance(value, list) else value


def _hashable(arguments: object) -> object:
    if isinstance(arguments, Mapping):
        return frozenset((key, _hashable(value)) for key, value in arguments.items())
    if isinstance(arguments, list | tuple):
        return tuple(_hashable(item) for item in arguments)
    return arguments
