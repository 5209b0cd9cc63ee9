"""What the optimizers of Keras 1.0 to 2.3 have in common, whatever the release."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from ..hyper_parameters import without_axes
from ..kernels.clipping import STEEP
from ..optimizer import Optimizer
from ..parameters import Array, check_number
from ..signatures import Rate, bind, common_arguments
from .backend import FloatVariable, IntVariable
from .weights import Entry, assign, entries, read

EPSILON = 1e-7
"""``keras.backend.epsilon()`` of every release."""

CLIPS = ("clipnorm", "clipvalue")

_MODERN = {
    name: parameter.default for name, parameter in inspect.signature(common_arguments).parameters.items()
    if name != "self"
}  # fmt: skip
_ANY = (-math.inf, math.inf, False)


class LegacyOptimizer(Optimizer):
    """An optimizer with the arguments, clipping, decay, config and weights list of an old release.

    - ``clipnorm`` limits one norm over all gradients (Keras 3: ``global_clipnorm``); ``clipvalue`` follows. Both may be
      given; a limit of zero or less is none; where the norm is NaN the gradients stay as they are.
    - ``decay``: update number t has the rate ``lr / (1 + decay * (t - 1))``, if ``decay`` was positive at construction.
    - A gradient of None is a ValueError.

    Everything else is as in `fastopt.Optimizer`: ``build``, ``apply``, ``state_dict``, one fused launch.
    """

    release: ClassVar[str]
    """The release that the class follows."""

    _flags: ClassVar[tuple[str, ...]] = ("nesterov", "amsgrad")
    _limits: ClassVar[Mapping[str, tuple[float, float, bool]]] = {
        "rho": (0.0, 1.0, False),
        "beta_2": (0.0, 1.0, True),
        "epsilon": (0.0, math.inf, False),
    }
    """Outside of these a rule divides by zero or takes the root of a negative number; the releases let it."""

    _keywords: ClassVar[Mapping[str, Any]] = {}
    """Keyword arguments that the signature does not show, with their defaults."""

    _optional: ClassVar[tuple[str, ...]] = CLIPS
    """Keyword arguments without a default."""

    _config_keys: ClassVar[tuple[str, ...]]
    """Keys of a config after the learning rate, in the order of the releases; not every release has all of them."""

    _rate_key: ClassVar[str] = "lr"
    _decays_always: ClassVar[bool] = False
    _epsilon_inside_root: ClassVar[bool] = False
    _weights_error: ClassVar[type[Exception]] = ValueError
    _length_message: ClassVar[str] = (
        "Length of the specified weight list ({given}) does not match the number of weights of the optimizer ({own})"
    )

    decay: float = 0.0

    # -- hyper-parameters -------------------------------------------------------------------------------------------

    def _bind(self, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        arguments = bind(self, signature, args, kwargs)
        arguments.pop("args", None)
        extra = self._keyword_arguments(arguments.pop("kwargs"))
        for key in CLIPS:
            if extra.get(key, 0.0) is None:
                raise TypeError(f"{key} must be a number, got None: leave it out for no limit")
        arguments |= {**self._keywords, **extra}
        if "lr" in arguments:
            arguments["learning_rate"] = arguments.pop("lr")
        return {**_MODERN, **arguments}

    def _keyword_arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """Those keyword arguments, out of the given ones, that mean something to the release."""
        for key in given:
            if key not in self._optional and key not in self._keywords:
                raise TypeError(f"Unexpected keyword argument passed to optimizer: {key}")
        return given

    def _check(self) -> None:
        for name in self._own:
            value = getattr(self, name)
            if name in self._flags:
                _check_switch(name, value)
            else:
                self._bounds[name] = self._limits.get(name, _ANY)
                setattr(self, name, self._checked(name, value))
        if "decay" in self._own and not self._decays_always:
            self.initial_decay = self.decay  # asked for by programs, and by nothing else in releases without it

    def _check_clips(self, clips: list[str]) -> None:
        """Refuse nothing: the releases clip by norm, then by value."""

    @property
    def learning_rate(self) -> float:
        """The rate before decay: what the releases call ``lr``. It has the methods of a `backend.Variable`."""
        return FloatVariable(self._learning_rate, self, "learning_rate")

    @learning_rate.setter
    def learning_rate(self, value: Rate) -> None:
        value = without_axes(value)
        check_number("learning_rate", value)
        self._set_rate(float(value), False)  # type: ignore[arg-type]

    @property
    def lr(self) -> float:
        """The learning rate before decay; settable, also by ``lr.set_value(0.1)``."""
        return self.learning_rate

    @lr.setter
    def lr(self, value: float) -> None:
        self.learning_rate = value

    @property
    def iterations(self) -> int:
        """See `Optimizer.iterations`; settable, also by ``iterations.set_value(0)``."""
        return IntVariable(super().iterations, self, "iterations")

    @iterations.setter
    def iterations(self, count: int) -> None:
        Optimizer.iterations.fset(self, count)  # type: ignore[attr-defined]

    def _rate(self) -> float:
        rate: float = self._learning_rate  # type: ignore[assignment]
        if not (self._decays_always or getattr(self, "initial_decay", 0.0) > 0):
            return rate
        divisor = 1.0 + self.decay * self._iterations
        if divisor == 0:
            raise ValueError(f"decay {self.decay} divides the learning rate by zero at iteration {self._iterations}")
        return rate * (1.0 / divisor)

    def get_config(self) -> dict[str, Any]:
        """The keys of the release, and no others; the clipping arguments if they were given."""
        clips = {key: getattr(self, key) for key in CLIPS if getattr(self, key) is not None}
        own = {key: getattr(self, key) for key in self._config_keys if key in self._own}
        return {**clips, self._rate_key: self._learning_rate, **own}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Any:
        """The optimizer that `get_config` describes, not built."""
        return cls(**config)

    def __repr__(self) -> str:
        shown = {key: value for key, value in self.get_config().items() if key != "name"}
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in shown.items())})"

    # -- stepping ---------------------------------------------------------------------------------------------------

    def _plan(self, keep: dict[str, Array] | None = None) -> None:
        super()._plan(keep)
        self._gradients.refuses_missing = True

    def _clipping(self) -> tuple[int, float]:
        return (STEEP, float(self.clipnorm)) if self.clipnorm else (0, 0.0)

    # -- weights ----------------------------------------------------------------------------------------------------

    def get_weights(self) -> list[Array]:
        """Copies of the state in the order of the release; empty before `build`, as before the first training step."""
        return read(self, self._entries())

    def set_weights(self, weights: Iterable[Any]) -> None:
        """Take over what `get_weights` returned. Counters that the release does not list stay as they are.

        Raises
        ------
        ValueError (Keras 1.0: Exception), TypeError
            If the number of arrays, a shape or a value does not fit. Then nothing has changed.
        """
        expected = self._entries()
        given = self._completed([np.asarray(array) for array in weights], len(expected))
        if len(given) != len(expected):
            raise self._weights_error(self._length_message.format(given=len(given), own=len(expected)))
        for entry, array in zip(expected, given, strict=True):
            if array.shape != entry.shape:
                raise self._weights_error(
                    f"Optimizer weight shape {entry.shape} not compatible with provided weight shape {array.shape}"
                )
        if expected:
            assign(self, expected, given)

    def _entries(self) -> list[Entry]:
        return entries(self, self.release) if self.built else []

    def _completed(self, weights: list[Array], count: int) -> list[Array]:
        """A list of ``count`` weights, from a shorter one of an earlier release."""
        return weights


def _check_switch(name: str, value: Any) -> None:
    """The releases asked for its truth only: ``Adam(0.001, 0.9, 0.999, 1e-8)`` of 2.3 switches AMSGrad on."""
    if not isinstance(value, (bool, int, float)):
        raise TypeError(f"{name} must be a bool, got {value!r}")
