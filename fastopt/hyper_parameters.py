"""What the user sets: signatures, checks, learning rate, configs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from .formats import check_options, said
from .parameters import check_count, check_flag, check_number, check_pattern
from .schedules import LearningRateSchedule
from .schedules import deserialize as deserialize_schedule
from .schedules import serialize as serialize_schedule
from .signatures import COMMON, FORMAT, Range, Rate, bind, kinds_of, refuse_unknown


def without_axes(value: Any) -> Any:
    """A constant tensor or array without axes, of any library, as the number it holds; anything else as it is."""
    if getattr(value, "shape", None) != ():
        return value
    return value.item() if hasattr(value, "item") else float(value)


def takes_step(rate: Callable[..., Any]) -> bool:
    """Whether a function that is a learning rate takes the step, as schedules do; else it takes no argument.

    Raises
    ------
    TypeError
        If it can be called neither way.
    """
    try:
        signature = inspect.signature(rate)
    except ValueError:  # a built-in function that does not say
        return False
    for arguments in ((), (0,)):
        with suppress(TypeError):
            signature.bind(*arguments)
            return bool(arguments)
    raise TypeError(
        f"learning_rate is a function of {signature}: expected one of no argument, or of one, the step; "
        "fix the others with functools.partial"
    )


def checked_exclusion(excluded: Any) -> dict[str, list[str]]:
    """Check what a config says of exclusions from weight decay."""
    name = "exclude_from_weight_decay"
    if not isinstance(excluded, Mapping) or excluded.keys() - {"paths", "names"}:
        raise ValueError(f'{name} must be a dict of the lists "paths" and "names", got {excluded!r}')
    for values in excluded.values():
        if not isinstance(values, (list, tuple)):
            raise TypeError(f"{name} must hold lists, got {values!r}")
    for pattern in excluded.get("names", ()):
        check_pattern(name, pattern)
    return {key: list(excluded.get(key, ())) for key in ("paths", "names")}


class HyperParameters:
    """The part of an optimizer that needs no parameters. Each argument of ``__init__`` is an attribute."""

    _calls: int
    """Gradients taken so far, micro-steps included: what a schedule counts."""

    def _check(self) -> None:
        """Refuse hyper-parameters that make no sense: those outside the ranges in the annotations."""
        own: Any = type(self)
        for name, kind in kinds_of(own).items():
            if name not in self._own or (kind.optional and getattr(self, name) is None):
                continue
            if kind.type is bool:
                check_flag(name, getattr(self, name))
            elif kind.bounds is not None:
                self._check_range(name, kind.type, kind.bounds)

    def _check_range(self, name: str, kind: Any, bounds: Range) -> None:
        """Refuse a number outside its range; what a callable returns is checked at each call."""
        value = getattr(self, name)
        self._bounds[name] = bounds
        if kind is int:
            check_count(name, value, int(bounds.low))
        elif kind is float:
            check_number(name, value, bounds.low, bounds.high, below=bounds.below)
        elif not callable(value):
            setattr(self, name, self._checked(name, value))

    def _bind(self, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """All hyper-parameters, by name, from the arguments of ``__init__``."""
        refuse_unknown(type(self).__name__, signature, kwargs)
        return bind(self, signature, args, kwargs)

    def _configure(self, arguments: dict[str, Any]) -> None:
        arguments = {key: value if key in FORMAT else without_axes(value) for key, value in arguments.items()}
        self._own = [key for key in arguments if key not in COMMON and key not in FORMAT]
        self._learning_rate: Rate = 0.0
        self._rate_takes_step = False
        self._bounds: dict[str, Range | tuple[float, float, bool]] = {}  # of coefficients
        self._asked: dict[str, float] = {}  # what callable coefficients have said for the present step
        self.weight_decay: float | None = arguments["weight_decay"]
        self.clipnorm: float | None = arguments["clipnorm"]
        self.clipvalue: float | None = arguments["clipvalue"]
        self.global_clipnorm: float | None = arguments["global_clipnorm"]
        self.use_ema: bool = arguments["use_ema"]
        self.ema_momentum: float = arguments["ema_momentum"]
        self.ema_overwrite_frequency: int | None = arguments["ema_overwrite_frequency"]
        self.loss_scale_factor: float | None = arguments["loss_scale_factor"]
        self.gradient_accumulation_steps: int | None = arguments["gradient_accumulation_steps"]
        self.name: str = arguments["name"] or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()
        self.nonfinite: str = arguments["nonfinite"]
        slot_dtype = arguments.get("slot_dtype")
        self.slot_dtype: str | Mapping[str, str] | None = (
            dict(slot_dtype) if isinstance(slot_dtype, Mapping) else slot_dtype
        )
        self.master_weights: str | None = arguments.get("master_weights")
        self.compensation: str | None = arguments.get("compensation")
        self.stochastic_rounding: bool = arguments.get("stochastic_rounding", False)
        self.seed: int = arguments.get("seed", 0)
        for key in self._own:
            setattr(self, key, arguments[key])
        self._check_common()
        self._check()
        self.learning_rate = arguments["learning_rate"]
        self._excluded: dict[str, list[str]] = {"paths": [], "names": []}
        self._reset()

    def _reset(self) -> None:
        """Set what changes while training to its start."""

    def _check_common(self) -> None:
        clips = [key for key in ("clipnorm", "clipvalue", "global_clipnorm") if getattr(self, key) is not None]
        self._check_clips(clips)
        for key in (*clips, *(("weight_decay",) if self.weight_decay is not None else ())):
            check_number(key, getattr(self, key))
        if self.weight_decay is not None:
            check_number("weight_decay", self.weight_decay, low=0.0)
        check_flag("use_ema", self.use_ema)
        if self.use_ema:
            check_number("ema_momentum", self.ema_momentum, 0.0, 1.0)
            if self.ema_overwrite_frequency is not None:
                check_count("ema_overwrite_frequency", self.ema_overwrite_frequency, 1)
        if self.loss_scale_factor is not None:
            check_number("loss_scale_factor", self.loss_scale_factor)
            if self.loss_scale_factor <= 0:
                raise ValueError(f"loss_scale_factor must be positive, got {self.loss_scale_factor}")
        if self.gradient_accumulation_steps:
            check_count("gradient_accumulation_steps", self.gradient_accumulation_steps, 2)
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a str, got {type(self.name).__name__}")
        if self.nonfinite not in ("propagate", "skip", "raise"):
            raise ValueError(f'nonfinite must be "propagate", "skip" or "raise", got {self.nonfinite!r}')
        check_options(self)

    def _check_clips(self, clips: list[str]) -> None:
        """Refuse ways to clip that exclude each other."""
        if len(clips) > 1:
            raise ValueError(f"{' and '.join(clips)} are both set: choose one way to clip")

    def _value(self, name: str) -> float:
        """A coefficient's value now; a callable is asked once per step."""
        value = getattr(self, name)
        if type(value) is float:
            return value
        if not callable(value):
            return self._checked(name, value)
        if name not in self._asked:
            self._asked[name] = self._checked(name, without_axes(value()))
        return self._asked[name]

    def _checked(self, name: str, value: Any) -> float:
        low, high, below = self._bounds[name]
        check_number(name, value, low, high, below=below)
        return float(value)

    @property
    def learning_rate(self) -> float:
        """The rate that the next step uses. Settable to what the constructor takes, unless a function of the step
        rules it: then to another function only.

        A number; a function without arguments, asked once per step; or a function of the step, asked with the number of
        gradients taken so far, from 0, as Keras asks its schedules: those of `fastopt.schedules`, of Keras or optax,
        or your own.
        """
        return self._rate()

    @learning_rate.setter
    def learning_rate(self, value: Rate) -> None:
        value = without_axes(value)
        if self._rate_takes_step and not callable(value):
            raise TypeError(
                "the learning rate follows a schedule and cannot be set to a number: "
                "build the optimizer with a float, or set another schedule"
            )
        if not callable(value):
            check_number("learning_rate", value)
            return self._set_rate(float(value), False)
        if isinstance(value, type):
            raise TypeError(f"learning_rate is the class {value.__name__}: pass an instance")
        self._set_rate(value, takes_step(value))

    def _set_rate(self, rate: Rate, of_step: bool) -> None:
        """Take over a rate that has been checked; if that fails, the old one is in force."""
        before = self._learning_rate, self._rate_takes_step
        self._learning_rate, self._rate_takes_step = rate, of_step
        try:
            self._rate_was_set()
        except BaseException:
            self._learning_rate, self._rate_takes_step = before
            self._rate_was_set()
            raise

    def _rate_was_set(self) -> None:
        """Note that the learning rate is another one now."""

    def _rate(self) -> float:
        rate = self._learning_rate
        if type(rate) is float:
            return rate
        value = without_axes(rate(self._calls) if self._rate_takes_step else rate())  # type: ignore[operator,call-arg]
        check_number(f"the value of learning_rate ({type(rate).__name__})", value)
        return float(value)

    def _rate_of_step(self) -> float:
        """`_rate`; a user's function is asked once per step. One of the step may be asked for each anew."""
        if type(self._learning_rate) is float or self._rate_takes_step:
            return self._rate()
        if "learning_rate" not in self._asked:
            self._asked["learning_rate"] = self._rate()
        return self._asked["learning_rate"]

    def scale_loss(self, loss: Any) -> Any:
        """The loss times ``loss_scale_factor``: what to take gradients of, so that the step can unscale them."""
        return loss if self.loss_scale_factor is None else loss * self.loss_scale_factor

    def get_config(self) -> dict[str, Any]:
        """All hyper-parameters, JSON-able; a schedule as its own config.

        Raises
        ------
        TypeError
            If the learning rate or a coefficient is a function: JSON cannot hold it.
        """
        config = {key: getattr(self, key) for key in (*COMMON[1:], *self._own)}
        config |= said(self)
        rate = self._learning_rate
        config["learning_rate"] = serialize_schedule(rate) if isinstance(rate, LearningRateSchedule) else rate
        for key, value in config.items():
            if callable(value):
                raise TypeError(f"{key} is a function, which a config cannot hold: use a number or a schedule")
            value = value.item() if isinstance(value, np.generic) else value
            config[key] = list(value) if isinstance(value, list) else value
        if any(self._excluded.values()):
            config["exclude_from_weight_decay"] = {key: list(value) for key, value in self._excluded.items()}
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Any:
        """The optimizer that `get_config` describes, not built."""
        arguments = dict(config)
        excluded = arguments.pop("exclude_from_weight_decay", None)
        if isinstance(arguments.get("learning_rate"), Mapping):
            arguments["learning_rate"] = deserialize_schedule(arguments["learning_rate"])
        optimizer = cls(**arguments)
        if excluded:
            optimizer._excluded = checked_exclusion(excluded)
        return optimizer

    def __repr__(self) -> str:
        shown = {"learning_rate": self._learning_rate} | {key: getattr(self, key) for key in self._own}
        defaults = inspect.signature(type(self).__init__).parameters
        shown |= {
            key: getattr(self, key)
            for key in COMMON[1:]
            if key != "name" and getattr(self, key) != defaults[key].default
        }
        shown |= said(self)
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in shown.items())})"
