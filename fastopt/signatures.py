"""Signatures of optimizers: an ``__init__`` without a body, ranges in its annotations, and what all have in common."""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Annotated, Any, NamedTuple, TypedDict, TypeVar, Union, get_args, get_origin, get_type_hints

from .schedules import LearningRateSchedule

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
    slot_dtype: str | Mapping[str, str] | None = None, master_weights: str | None = None,
    compensation: str | None = None, stochastic_rounding: bool = False, seed: int = 0,
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
    slot_dtype : {"float32", "bfloat16", "float16", "8bit"} or dict of slot name to one of these, optional
        How state is kept, see `fastopt.formats`; by keyword, as all that follow. None: in float32, float64 for
        parameters of float64.
    master_weights : {"float32", "split"}, optional
        What is kept beside parameters of 16 bits, so that steps do not lose what these cannot hold: a float32, or, for
        bfloat16, the other half of one.
    compensation : {"kahan"}, optional
        Keep what the rounding of a parameter of 16 bits took away, in 16 bits, and add it at the next step.
    stochastic_rounding : bool
        Round parameters of 16 bits up or down at random, so that what is expected of them is exact.
    seed : int >= 0
        Of all rounding at random: the same seed, the same bits.
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
    slot_dtype: str | Mapping[str, str] | None
    master_weights: str | None
    compensation: str | None
    stochastic_rounding: bool
    seed: int


class Common(CommonButDecay, total=False):
    """Arguments that every optimizer takes, for type checkers; `common_arguments` says what they mean."""

    weight_decay: float | None


FORMAT = "slot_dtype", "master_weights", "compensation", "stochastic_rounding", "seed"
"""Arguments that say how parameters and state are kept: they matter when an optimizer is built."""

COMMON = (
    "learning_rate",
    *(name for name in list(inspect.signature(common_arguments).parameters)[1:] if name not in FORMAT),
)
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
    def configure(self: Any, *args: Any, **kwargs: Any) -> None:
        self._configure(self._bind(signature, args, kwargs))

    configure.__signature__ = signature  # type: ignore[attr-defined]
    _MADE.add(configure)
    return configure  # type: ignore[return-value]


_MADE: set[Any] = set()
"""What `hyper_parameters` has made: a user's own ``__init__`` is left alone, whatever its decorators say."""


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
    if found is None or vars(kind).get("__init__") not in _MADE:
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
def kinds_of(optimizer: type) -> dict[str, Kind]:
    """Return what the annotations say of each argument, in all signatures that a class has or inherits."""
    found: dict[str, Kind] = {}
    for each in reversed(optimizer.__mro__):
        init: Any = vars(each).get("__init__")
        if init in _MADE:
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


def refuse_unknown(name: str, signature: inspect.Signature, kwargs: Mapping[str, Any]) -> None:
    """Refuse keyword arguments that a class lacks, and say what they may have been meant for.

    Raises
    ------
    TypeError
        If there is one.
    """
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
    """Say what an unknown argument may have been meant for: ``elsewhere`` has the valid name of what others call so."""
    meant = elsewhere.get(key, "")
    if set(meant.split(" and ")) <= set(valid):
        return f"it is called {meant}"
    return f"the valid ones are {', '.join(valid)}"
