"""Keras optimizers around fastopt classes for which Keras has no class of its own."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import keras

from ..formats import said
from ..hyper_parameters import takes_step
from ..optimizer import Optimizer
from ..parameters import check_count
from ..signatures import COMMON
from ._keras import count_of, rate_of
from .fused import KEPT_BY_KERAS, Fused

_Kind = TypeVar("_Kind", bound=type[Optimizer])

_SHARED = (
    "weight_decay", "use_ema", "ema_momentum", "ema_overwrite_frequency", "loss_scale_factor",
    "gradient_accumulation_steps",
)  # fmt: skip
"""Hyper-parameters that Keras must know of, too: its variables depend on them, or it uses them itself."""


class Adapter(Fused, keras.optimizers.Optimizer):
    """Base of what `adapt` makes: arguments, their attributes and config are the fastopt class's, the rest is Keras's.

    Variables, in order: iteration, learning rate (unless scheduled), moving averages, accumulators and what is kept
    beside variables of 16 bits, where these are wanted, the slots grouped by name, and what the rule keeps as numbers.
    """

    _own_slots: dict[str, list[Any]]
    _own_counters: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        rate, args, kwargs = _without_schedule(self._core_class, args, kwargs)
        prototype = self._core_class(*args, **kwargs)
        if prototype.nonfinite == "skip":
            raise ValueError('nonfinite="skip": Keras would count the step; use keras.optimizers.LossScaleOptimizer')
        shared = {name: getattr(prototype, name) for name in _SHARED} | said(prototype)
        super().__init__(
            learning_rate=prototype.learning_rate if rate is None else rate, name=kwargs.get("name"), **shared
        )
        self._prototype = prototype
        for name in self._followed:
            setattr(self, name, vars(prototype)[name])
        # Not as attributes, of which Keras would track what is in these, beside the variables that it knows already.
        self.__dict__.update(_own_slots={}, _own_counters={})

    @property
    def _followed(self) -> list[str]:
        prototype = self._prototype
        release = [name for name in ("initial_decay",) if name in vars(prototype)]
        return [name for name in (*COMMON, *prototype._own, *release) if name not in KEPT_BY_KERAS]

    def _make_core(self) -> Optimizer:
        core = copy.deepcopy(self._prototype)
        core.loss_scale_factor = None  # Keras unscales
        self._formats.tell(core)
        return core

    def _slot_variables(self) -> dict[str, list[Any]]:
        return self._own_slots

    def _core_counters(self) -> dict[str, Any]:
        return self._own_counters

    @property
    def lr(self) -> Any:
        """The learning rate, by its old name; settable where the release's was, and by ``lr.set_value(0.1)``."""
        return _with_old_methods(self.learning_rate)

    @lr.setter
    def lr(self, value: Any) -> None:
        if getattr(getattr(self._core_class, "lr", None), "fset", None) is None:
            raise AttributeError(f"lr of {type(self).__name__} is read-only: set learning_rate")
        self.learning_rate = value

    @property
    def iterations(self) -> Any:
        """Updates done so far; settable, without an accumulation also by ``iterations.set_value(0)``."""
        return _with_old_methods(super().iterations)

    @iterations.setter
    def iterations(self, count: int) -> None:
        check_count("iterations", count, 0)
        count_of(self).assign(count * (self.gradient_accumulation_steps or 1))

    def build(self, variables: Any) -> None:
        """Create the variables that hold the state."""
        if self.built:
            return
        super().build(variables)
        prototype = self._prototype
        for name, slot in prototype._slots_of(type(prototype._scalars("", 1.0, 1))).items():
            start = keras.initializers.Constant(slot.start)
            self._own_slots[name] = self.add_optimizer_variables(variables, name, start)
            if slot.copies_parameter:
                for copied, variable in zip(self._own_slots[name], variables, strict=True):
                    copied.assign(variable)
        for name, attribute in prototype._counters().items():
            if name not in ("iterations", "micro_steps", "learning_rate"):
                start = keras.initializers.Constant(getattr(prototype, attribute))
                self._own_counters[attribute] = self.add_variable((), start, "float64", name=name)

    def get_config(self) -> dict[str, Any]:
        """The config of the fastopt class, with the hyper-parameters as they are now."""
        for name in (*self._followed, "loss_scale_factor"):
            setattr(self._prototype, name, getattr(self, name))
        rate = rate_of(self)
        if isinstance(rate, keras.Variable):
            self._prototype.learning_rate = float(rate.value)
            return self._prototype.get_config()
        return {**self._prototype.get_config(), "learning_rate": keras.saving.serialize_keras_object(rate)}

    def _explain(self, reason: str) -> None:
        raise RuntimeError(
            f"{type(self).__name__} has no update but the fused one, for float32, float64, bfloat16 and float16 "
            f"variables in CPU memory of the torch and NumPy backends: {reason}"
        )


def _with_old_methods(variable: Any) -> Any:
    """A Keras variable that can also be read and set as those of Keras 1 and 2 on Theano could."""
    if isinstance(variable, keras.Variable):
        variable.get_value, variable.set_value = variable.numpy, variable.assign
    return variable


def _without_schedule(kind: type[Optimizer], args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Split off what Keras is to have as the learning rate, if it is no number, from the arguments."""
    try:
        bound = inspect.signature(kind).bind(*args, **kwargs)
    except TypeError:
        return None, args, kwargs  # the class says it better
    rate = bound.arguments.get("learning_rate")
    if not callable(rate):
        return None, args, kwargs
    takes_step(rate)  # or raises
    del bound.arguments["learning_rate"]
    return rate, (), dict(bound.arguments)


def adapt(kind: _Kind, package: str, module: str) -> Any:
    """A registered Keras optimizer class, ``package>Name``, around a fastopt optimizer class.

    Parameters
    ----------
    kind : Optimizer class
        Of one rule, with slots in the parameters' shape: one of `fastopt.register_rule`, or of `fastopt.compat`.
    package, module : str
        Under what Keras registers it, and the module that holds it (``__name__`` there): what saved models look for.

    Raises
    ------
    TypeError
        If the class has several rules, or wraps another optimizer.
    """
    has_rule = kind._scalars is not Optimizer._scalars or kind._settings_class is not Optimizer._settings_class
    if kind._branch is not Optimizer._branch or not has_rule:
        raise TypeError(f"{kind.__name__} is not of one rule: use the class of that name in fastopt.keras")

    @functools.wraps(kind.__init__)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        Adapter.__init__(self, *args, **kwargs)

    members = {"__module__": module, "__doc__": kind.__doc__, "_core_class": kind, "__init__": __init__}
    return keras.saving.register_keras_serializable(package, kind.__name__)(type(kind.__name__, (Adapter,), members))


def getter(legacy_get: Callable[[Any], Any], *kinds: Any) -> Callable[[Any], Any]:
    """An old release's ``get``, that gives the Keras optimizers which `adapt` made of its classes."""
    adapters = {kind._core_class: kind for kind in kinds}

    def get(identifier: Any) -> Any:
        """An optimizer from what the release took for one; the errors are its own."""
        if isinstance(identifier, keras.optimizers.Optimizer):
            return identifier
        found = legacy_get(identifier)
        kind = adapters.get(type(found))
        return found if kind is None else kind.from_config(found.get_config())

    return get
