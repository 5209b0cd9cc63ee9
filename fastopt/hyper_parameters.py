"""What the user sets: signatures, checks, learning rate, configs."""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import UnionType
from typing import Annotated, Any, NamedTuple, TypedDict, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from .parameters import check_count, check_flag, check_number, check_pattern
from .schedules import LearningRateSchedule
from .schedules import deserialize as deserialize_schedule
from .schedules import serialize as serialize_schedule

Rate = float | LearningRateSchedule | Callable[[], float] | Callable[[int], float]
Coefficient = float | Callable[[], float]


class Range(NamedTuple):
    """Bounds of a hyper-parameter, in the annotation of a signature: ``Annotated[float, Range(0.0)]``."""

    low: float = -math.inf
    high: float = math.inf
    below: bool = False  # whether it must be less than the upper bound


Fraction = Annotated[Coefficient, Range(0.0, 1.0, below=True)]
"""A share in [0, 1), or a function of nothing that gives one."""

Share = Annotated[Coefficient, Range(0.0, 1.0)]
"""A share in [0, 1]."""

NotNegative = Annotated[Coefficient, Range(0.0)]
"""A number of at least 0, or a function of nothing that gives one."""

Number = Annotated[float, Range()]
"""A finite number."""

_ELSEWHERE = {
    "lr": "learning_rate",
    "betas": "beta_1 and beta_2",
    "beta1": "beta_1",
    "beta2": "beta_2",
    "b1": "beta_1",
    "b2": "beta_2",
    "eps": "epsilon",
    "alpha": "rho",
    "wd": "weight_decay",
    "clip_norm": "global_clipnorm",
    "max_norm": "global_clipnorm",
    "max_grad_norm": "global_clipnorm",
    "clip_value": "clipvalue",
    "ema": "use_ema and ema_momentum",
}
"""What torch, optax and others call a hyper-parameter → what it is called here."""

_Init = TypeVar("_Init", bound=Callable[..., None])


def common_arguments(
    self: Any, weight_decay: float | None = None, clipnorm: float | None = None, clipvalue: float | None = None,
    global_clipnorm: float | None = None, use_ema: bool = False, ema_momentum: float = 0.99,
    ema_overwrite_frequency: int | None = None, loss_scale_factor: float | None = None,
    gradient_accumulation_steps: int | None = None, name: str | None = None, *, nonfinite: str = "propagate",
) -> None:  # fmt: skip
    """Show the end of every optimizer's signature; `Common` says the same to type checkers.

    Parameters
    ----------
    weight_decay : float >= 0, optional
        Decoupled decay: before the step a parameter loses ``weight_decay * learning_rate`` of itself.
    clipnorm : float, optional
        Limit of the norm of each parameter's gradient. At most one of the three ways to clip.
    clipvalue : float, optional
        Limit of the size of each element of the gradients.
    global_clipnorm : float, optional
        Limit of the norm over all gradients together.
    use_ema : bool
        Whether to keep an exponential moving average of the parameters.
    ema_momentum : float in [0, 1]
        Share of itself that the average keeps at a step.
    ema_overwrite_frequency : int >= 1, optional
        After every so many updates the average replaces the parameters; None: only when asked to.
    loss_scale_factor : float > 0, optional
        Gradients are divided by it: they are those of a loss multiplied by it, see `scale_loss`.
    gradient_accumulation_steps : int >= 2, optional
        Make one update, from the mean gradient, of so many calls of ``apply``.
    name : str, optional
        Of the optimizer; default: the class's name in snake case.
    nonfinite : {"propagate", "skip", "raise"}
        What a NaN or infinite gradient does: spread, have the step skipped, or raise FloatingPointError. By keyword.
    """


class CommonButDecay(TypedDict, total=False):
    """Those that follow where a class has put the weight decay further to the front."""

    clipnorm: float | None
    clipvalue: float | None
    global_clipnorm: float | None
    use_ema: bool
    ema_momentum: float
    ema_overwrite_frequency: int | None
    loss_scale_factor: float | None
    gradient_accumulation_steps: int | None
    name: str | None
    nonfinite: str


class Common(CommonButDecay, total=False):
    """Arguments that every optimizer takes, for type checkers; `common_arguments` says what they mean."""

    weight_decay: float | None


COMMON = ("learning_rate", *list(inspect.signature(common_arguments).parameters)[1:])
"""Hyper-parameters that every optimizer has."""

_COMMON_ENTRIES: dict[str, str] = dict(
    re.findall(r"^(\w+)( : .*\n(?:    .*(?:\n|$))+)", inspect.cleandoc(common_arguments.__doc__ or ""), re.M)
)
"""Name → what the docstring says of it."""


def hyper_parameters(init: _Init) -> _Init:
    """Make an ``__init__`` from its signature alone: arguments become attributes, ranges in annotations are checked.

    ``**common: Unpack[Common]`` at its end stands for all arguments of `common_arguments` that are not there before.
    """
    signature = with_common(inspect.signature(init))

    @functools.wraps(init)
    def configure(self: HyperParameters, *args: Any, **kwargs: Any) -> None:
        self._configure(self._bind(signature, args, kwargs))

    configure.__signature__ = signature  # type: ignore[attr-defined]
    return configure  # type: ignore[return-value]


def with_common(signature: inspect.Signature) -> inspect.Signature:
    """Put the common arguments in the place of ``**common``."""
    own = list(signature.parameters.values())
    if not own or own[-1].name != "common":
        return signature
    names = {parameter.name for parameter in own}
    common = list(inspect.signature(common_arguments).parameters.values())[1:]
    return signature.replace(parameters=[*own[:-1], *(each for each in common if each.name not in names)])


def document_common(kind: Any) -> None:
    """Add to a class's docstring those arguments that its section of parameters leaves out, if it has one."""
    found = re.search(r"Parameters\n *-{10}\n(?:.*\S.*\n?)+", kind.__doc__ or "")
    if found is None or "__init__" not in vars(kind):
        return
    indent = re.match(" *", found[0].splitlines()[1])[0]  # type: ignore[index]
    said = set(re.findall(rf"^{indent}(\w[\w, ]*)(?: :|$)", found[0], re.M))
    said = {name for names in said for name in names.split(", ")}
    missing = [name for name in inspect.signature(kind).parameters if name in _COMMON_ENTRIES and name not in said]
    lines = "".join(f"{name}{_COMMON_ENTRIES[name]}" for name in missing).splitlines()
    entries = "".join(f"{indent}{line}\n" for line in lines)
    start, end = kind.__doc__[: found.end()], kind.__doc__[found.end() :]
    kind.__doc__ = f"{start.rstrip()}\n{entries}{end if end.strip() else indent}"


class Kind(NamedTuple):
    """What an annotation says of a hyper-parameter."""

    type: Any
    bounds: Range | None
    optional: bool  # whether it may be None


@functools.cache
def _kinds_of(optimizer: type) -> dict[str, Kind]:
    """What the annotations say of each argument, in all signatures that a class has or inherits."""
    found: dict[str, Kind] = {}
    for each in reversed(optimizer.__mro__):
        init: Any = vars(each).get("__init__")
        if hasattr(init, "__signature__"):  # that of a class of ours
            hints = get_type_hints(inspect.unwrap(init), include_extras=True)
            found.update((name, _kind_of(annotation)) for name, annotation in hints.items() if name != "return")
    return found


def _kind_of(annotation: Any) -> Kind:
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    plain = next(option for option in options if option is not type(None))
    ranged = get_origin(plain) is Annotated
    bounds = next((extra for extra in get_args(plain)[1:] if isinstance(extra, Range)), None) if ranged else None
    return Kind(get_args(plain)[0] if ranged else plain, bounds, type(None) in options)


def bind(optimizer: Any, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The value of each argument in a signature, the optimizer itself left out.

    Raises
    ------
    TypeError
        If the arguments do not fit; the message shows the signature.
    """
    try:
        bound = signature.bind(optimizer, *args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{type(optimizer).__name__}: {error}; the signature is {signature}") from None
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    del arguments[next(iter(arguments))]
    return arguments


def _refuse_unknown(name: str, signature: inspect.Signature, kwargs: Mapping[str, Any]) -> None:
    for key in kwargs:
        if key in signature.parameters:
            continue
        words = hint(key, _ELSEWHERE, list(signature.parameters)[1:])
        if key == "lr":
            words += "; fastopt.compat has the classes that took lr"
        elif key == "decay":
            words = "use a schedule such as InverseTimeDecay; fastopt.compat has the classes that took decay"
        raise TypeError(f"{name} has no argument {key!r}: {words}")


def hint(key: str, elsewhere: Mapping[str, str], valid: list[str]) -> str:
    """What an unknown argument may have been meant for: ``elsewhere`` gives the valid name of what others call so."""
    meant = elsewhere.get(key, "")
    if set(meant.split(" and ")) <= set(valid):
        return f"it is called {meant}"
    return f"the valid ones are {', '.join(valid)}"


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


def _checked_exclusion(excluded: Any) -> dict[str, list[str]]:
    """What a config says of exclusions from weight decay."""
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
        for name, kind in _kinds_of(own).items():
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
        _refuse_unknown(type(self).__name__, signature, kwargs)
        return bind(self, signature, args, kwargs)

    def _configure(self, arguments: dict[str, Any]) -> None:
        arguments = {key: without_axes(value) for key, value in arguments.items()}
        self._own = [key for key in arguments if key not in COMMON]
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
            optimizer._excluded = _checked_exclusion(excluded)
        return optimizer

    def __repr__(self) -> str:
        shown = {"learning_rate": self._learning_rate} | {key: getattr(self, key) for key in self._own}
        defaults = inspect.signature(type(self).__init__).parameters
        shown |= {
            key: getattr(self, key)
            for key in COMMON[1:]
            if key != "name" and getattr(self, key) != defaults[key].default
        }
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in shown.items())})"
