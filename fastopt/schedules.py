"""Learning rates that follow the step: Keras 3's six schedules, by name and signature.

A schedule maps a step number (0 at the first update) to a learning rate. Pass one as ``learning_rate`` of any
optimizer, or call it yourself.

All rates are computed in float64 and returned as a Python ``float``; Keras computes in float32, so the two agree to
about 1e-6 relative (less where a cosine cancels) and drift apart beyond step 2**24, which float32 cannot count.

Every class raises TypeError for an argument or step that is not a real number, and ValueError for one that is NaN,
infinite or out of its range; a step is >= 0. Beyond Keras's checks that refuses, when the schedule is made, what could
only give NaN, a complex number or a division by zero later. ``name`` is kept in the config and means nothing else.

Source: https://keras.io/api/optimizers/learning_rate_schedules/
"""

import bisect
import copy
import inspect
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

__all__ = [
    "CosineDecay",
    "CosineDecayRestarts",
    "ExponentialDecay",
    "InverseTimeDecay",
    "LearningRateSchedule",
    "PiecewiseConstantDecay",
    "PolynomialDecay",
    "deserialize",
    "get",
    "serialize",
]


class LearningRateSchedule:
    """Base class: override ``__call__``, and ``get_config`` where the attributes are not called as the arguments are.

    Two schedules are equal when they are of one class and their configs are equal.

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
        """The constructor's arguments by name, as values that JSON can hold.

        This base version reads the attributes of the same names, and raises NotImplementedError if one is missing.
        """
        names = list(inspect.signature(type(self)).parameters)
        if missing := [name for name in names if not hasattr(self, name)]:
            raise NotImplementedError(f"{type(self).__name__} must override get_config(): it has no {missing[0]!r}")
        return {name: copy.copy(getattr(self, name)) for name in names}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "LearningRateSchedule":
        """The schedule that ``get_config`` described."""
        return cls(**config)

    def _described(self) -> dict[str, Any] | None:
        try:
            return self.get_config()
        except NotImplementedError:
            return None

    def __repr__(self) -> str:
        config = self._described()
        if config is None:
            return object.__repr__(self)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in config.items())})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LearningRateSchedule) or type(self) is not type(other):
            return NotImplemented
        config = self._described()
        return self is other or (config is not None and _hashable(config) == _hashable(other._described()))

    def __hash__(self) -> int:
        config = self._described()
        return object.__hash__(self) if config is None else hash((type(self), _hashable(config)))


class ExponentialDecay(LearningRateSchedule):
    """Multiplies the rate by ``decay_rate`` every ``decay_steps`` steps.

    ``learning_rate = initial_learning_rate * decay_rate ** (step / decay_steps)``

    Parameters
    ----------
    initial_learning_rate : float
    decay_steps : float
        Steps per multiplication, > 0.
    decay_rate : float
        Factor, >= 0 (Keras takes a negative one and gives NaN between multiples of ``decay_steps``).
    staircase : bool
        Round ``step / decay_steps`` down, so that the rate falls in jumps.

    Raises
    ------
    OverflowError
        ``decay_rate > 1`` has grown the rate past float64.

    Examples
    --------
    >>> schedule = ExponentialDecay(0.1, decay_steps=10, decay_rate=0.5, staircase=True)
    >>> [schedule(step) for step in (0, 9, 10, 20)]
    [0.1, 0.1, 0.05, 0.025]
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: float,
        decay_rate: float,
        staircase: bool = False,
        name: str | None = "ExponentialDecay",
    ) -> None:
        self.initial_learning_rate = _finite("initial_learning_rate", initial_learning_rate)
        self.decay_steps = _positive("decay_steps", decay_steps)
        self.decay_rate = _at_least(0, "decay_rate", decay_rate)
        self.staircase = _flag("staircase", staircase)
        self.name = _label(name)

    def __call__(self, step: float) -> float:
        return self.initial_learning_rate * self.decay_rate ** _periods(step, self.decay_steps, self.staircase)


class PiecewiseConstantDecay(LearningRateSchedule):
    """One constant rate per interval of steps.

    ``values[i]`` holds for ``boundaries[i - 1] < step <= boundaries[i]``: a boundary still belongs to the interval
    before it. The first value has no lower bound, the last no upper one.

    Parameters
    ----------
    boundaries : sequence of float
        Steps, strictly increasing (Keras does not check this). An empty one gives a constant; Keras fails at the first
        call.
    values : sequence of float
        Learning rates, one more than boundaries.

    Raises
    ------
    ValueError
        The lengths do not match, or the boundaries are not increasing.

    Examples
    --------
    >>> schedule = PiecewiseConstantDecay([100, 110], [1.0, 0.5, 0.1])
    >>> [schedule(step) for step in (0, 100, 101, 111)]
    [1.0, 1.0, 0.5, 0.1]
    """

    def __init__(
        self, boundaries: Sequence[float], values: Sequence[float], name: str | None = "PiecewiseConstant"
    ) -> None:
        self.boundaries = _numbers("boundaries", boundaries)
        self.values = _numbers("values", values)
        self.name = _label(name)
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                f"values must have one element more than boundaries, got {len(self.values)} values "
                f"and {len(self.boundaries)} boundaries"
            )
        for earlier, later in itertools.pairwise(self.boundaries):
            if earlier >= later:
                raise ValueError(f"boundaries must be strictly increasing, got {earlier} before {later}")

    def __call__(self, step: float) -> float:
        return float(self.values[bisect.bisect_left(self.boundaries, _step(step))])


class PolynomialDecay(LearningRateSchedule):
    """Falls from one rate to another along a power of the remaining time.

    ``learning_rate = (initial_learning_rate - end_learning_rate) * (1 - s / d) ** power + end_learning_rate`` with
    ``s = min(step, decay_steps)`` and ``d = decay_steps``. With ``cycle`` the step is not capped and ``d`` is the first
    positive multiple of ``decay_steps`` that is not below the step.

    Parameters
    ----------
    initial_learning_rate : float
    decay_steps : float
        Steps until ``end_learning_rate``, > 0.
    end_learning_rate : float
    power : float
        >= 0; 1 is a straight line (Keras takes a negative power and ends at infinity).
    cycle : bool
        Start over, towards the next multiple, instead of staying at ``end_learning_rate``.

    Examples
    --------
    >>> schedule = PolynomialDecay(1.0, decay_steps=4, end_learning_rate=0.0, power=2.0)
    >>> [schedule(step) for step in (0, 2, 4, 9)]
    [1.0, 0.25, 0.0, 0.0]
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: float,
        end_learning_rate: float = 0.0001,
        power: float = 1.0,
        cycle: bool = False,
        name: str | None = "PolynomialDecay",
    ) -> None:
        self.initial_learning_rate = _finite("initial_learning_rate", initial_learning_rate)
        self.decay_steps = _positive("decay_steps", decay_steps)
        self.end_learning_rate = _finite("end_learning_rate", end_learning_rate)
        self.power = _at_least(0, "power", power)
        self.cycle = _flag("cycle", cycle)
        self.name = _label(name)

    def __call__(self, step: float) -> float:
        periods = _step(step) / self.decay_steps
        done = periods / max(1, math.ceil(periods)) if self.cycle else min(periods, 1.0)
        distance = self.initial_learning_rate - self.end_learning_rate
        return distance * (1.0 - done) ** self.power + self.end_learning_rate


class InverseTimeDecay(LearningRateSchedule):
    """Divides the rate by a number that grows linearly with the step.

    ``learning_rate = initial_learning_rate / (1 + decay_rate * step / decay_steps)``

    Parameters
    ----------
    initial_learning_rate : float
    decay_steps : float
        Steps in which the divisor grows by ``decay_rate``, > 0.
    decay_rate : float
        >= 0 (Keras takes a negative one, whose rate has a pole and then changes sign).
    staircase : bool
        Round ``step / decay_steps`` down, so that the rate falls in jumps.

    Examples
    --------
    >>> schedule = InverseTimeDecay(0.1, decay_steps=10, decay_rate=1.0)
    >>> [schedule(step) for step in (0, 10, 30)]
    [0.1, 0.05, 0.025]
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: float,
        decay_rate: float,
        staircase: bool = False,
        name: str | None = "InverseTimeDecay",
    ) -> None:
        self.initial_learning_rate = _finite("initial_learning_rate", initial_learning_rate)
        self.decay_steps = _positive("decay_steps", decay_steps)
        self.decay_rate = _at_least(0, "decay_rate", decay_rate)
        self.staircase = _flag("staircase", staircase)
        self.name = _label(name)

    def __call__(self, step: float) -> float:
        periods = _periods(step, self.decay_steps, self.staircase)
        return self.initial_learning_rate / (1.0 + self.decay_rate * periods)


class CosineDecay(LearningRateSchedule):
    """Half a cosine wave down from the peak rate, after an optional linear warm-up.

    Warm-up, for ``step < warmup_steps``:
    ``learning_rate = initial_learning_rate + (warmup_target - initial_learning_rate) * step / warmup_steps``.
    After it, with ``s = min(step - warmup_steps, decay_steps)`` and ``peak = warmup_target``:
    ``learning_rate = peak * ((1 - alpha) * (1 + cos(pi * s / decay_steps)) / 2 + alpha)``.
    Without a ``warmup_target`` there is no warm-up, whatever ``warmup_steps`` says, and
    ``peak = initial_learning_rate``.

    Parameters
    ----------
    initial_learning_rate : float
    decay_steps : float
        Length of the cosine part in steps, > 0. The warm-up comes on top of it.
    alpha : float
        Final rate as a fraction of the peak.
    warmup_target : float or None
        Peak rate.
    warmup_steps : float
        Length of the warm-up in steps, >= 0.

    Notes
    -----
    Sources: Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983 (eq. 5, without restarts); warm-up: Goyal et
    al. 2017, https://arxiv.org/abs/1706.02677 (section 2.2).

    Examples
    --------
    >>> schedule = CosineDecay(0.0, decay_steps=10, warmup_target=0.5, warmup_steps=4)
    >>> [round(schedule(step), 6) for step in (0, 2, 4, 9, 14, 99)]
    [0.0, 0.25, 0.5, 0.25, 0.0, 0.0]
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: float,
        alpha: float = 0.0,
        name: str | None = "CosineDecay",
        warmup_target: float | None = None,
        warmup_steps: float = 0,
    ) -> None:
        self.initial_learning_rate = _finite("initial_learning_rate", initial_learning_rate)
        self.decay_steps = _positive("decay_steps", decay_steps)
        self.alpha = _finite("alpha", alpha)
        self.name = _label(name)
        self.warmup_target = None if warmup_target is None else _finite("warmup_target", warmup_target)
        self.warmup_steps = _at_least(0, "warmup_steps", warmup_steps)

    def __call__(self, step: float) -> float:
        step = _step(step)
        if self.warmup_target is None:
            return self._cosine(self.initial_learning_rate, step)
        if step < self.warmup_steps:
            rise = self.warmup_target - self.initial_learning_rate
            return self.initial_learning_rate + rise * (step / self.warmup_steps)
        return self._cosine(self.warmup_target, step - self.warmup_steps)

    def _cosine(self, peak: float, step: float) -> float:
        return peak * _cosine_factor(min(step / self.decay_steps, 1.0), self.alpha)


class CosineDecayRestarts(LearningRateSchedule):
    """Cosine decay that starts over, each time over a longer period (SGDR).

    Period ``i`` lasts ``first_decay_steps * t_mul**i`` steps. With ``r`` the part of it that is done, in [0, 1):
    ``learning_rate = initial_learning_rate * ((1 - alpha) * m_mul**i * (1 + cos(pi * r)) / 2 + alpha)``.

    Parameters
    ----------
    initial_learning_rate : float
    first_decay_steps : float
        Length of the first period in steps, > 0.
    t_mul : float
        Each period's length over the one before, >= 1 (with Keras a smaller one gives NaN once the periods have shrunk
        to nothing).
    m_mul : float
        Each period's peak over the one before, >= 0.
    alpha : float
        Lowest rate as a fraction of ``initial_learning_rate``; ``m_mul`` does not scale it.

    Raises
    ------
    OverflowError
        ``m_mul > 1`` has grown the rate past float64.

    Notes
    -----
    A restart falls on its exact step. Keras rounds a quotient of logarithms and, for some ``t_mul``, gives the lowest
    rate there and restarts one step late.

    Source: Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983 (eq. 5).

    Examples
    --------
    >>> schedule = CosineDecayRestarts(0.1, first_decay_steps=10, t_mul=2.0, m_mul=0.5)
    >>> [round(schedule(step), 6) for step in (0, 5, 10, 20, 30)]
    [0.1, 0.05, 0.05, 0.025, 0.025]
    """

    def __init__(
        self,
        initial_learning_rate: float,
        first_decay_steps: float,
        t_mul: float = 2.0,
        m_mul: float = 1.0,
        alpha: float = 0.0,
        name: str | None = "SGDRDecay",
    ) -> None:
        self.initial_learning_rate = _finite("initial_learning_rate", initial_learning_rate)
        self.first_decay_steps = _positive("first_decay_steps", first_decay_steps)
        self.t_mul = _at_least(1, "t_mul", t_mul)
        self.m_mul = _at_least(0, "m_mul", m_mul)
        self.alpha = _finite("alpha", alpha)
        self.name = _label(name)

    def __call__(self, step: float) -> float:
        period, done = self._position(_step(step) / self.first_decay_steps)
        return self.initial_learning_rate * _cosine_factor(done, self.alpha, self.m_mul**period)

    def _position(self, elapsed: float) -> tuple[int, float]:
        """Number of the running period and the part of it that is done; ``elapsed`` counts in first periods."""
        if self.t_mul == 1:
            period = math.floor(elapsed)
            done = elapsed - period
        else:
            growth = self.t_mul - 1.0
            period = math.floor(math.log1p(elapsed * growth) / math.log(self.t_mul))
            length = self.t_mul**period
            done = (elapsed - (length - 1.0) / growth) / length
        # The logarithm may have been rounded to either side of a restart.
        if done > 1.0 - 1e-12:
            return period + 1, 0.0
        return period, max(done, 0.0)


_SCHEDULES = {
    schedule.__name__: schedule
    for schedule in (
        ExponentialDecay,
        PiecewiseConstantDecay,
        PolynomialDecay,
        InverseTimeDecay,
        CosineDecay,
        CosineDecayRestarts,
    )
}


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
    >>> get("cosinedecay")(0.1, decay_steps=10)(5)
    0.05
    """
    known = {**_SCHEDULES, **(custom_objects or {})}
    by_lower_case = {key.lower(): schedule for key, schedule in known.items()}
    if not isinstance(name, str) or name.lower() not in by_lower_case:
        raise ValueError(f"unknown learning rate schedule {name!r}; known are {', '.join(sorted(known))}")
    return by_lower_case[name.lower()]


def serialize(schedule: LearningRateSchedule) -> dict[str, Any]:
    """A dict that JSON can hold and `deserialize` reads, with the keys that Keras uses.

    Examples
    --------
    >>> sorted(serialize(CosineDecay(0.1, 10)))
    ['class_name', 'config', 'module', 'registered_name']
    """
    if not isinstance(schedule, LearningRateSchedule):
        raise TypeError(f"schedule must be a LearningRateSchedule, got {schedule!r}")
    return {
        "module": type(schedule).__module__,
        "class_name": type(schedule).__name__,
        "config": schedule.get_config(),
        "registered_name": None,
    }


def deserialize(
    config: Mapping[str, Any], custom_objects: Mapping[str, type[LearningRateSchedule]] | None = None
) -> LearningRateSchedule:
    """The schedule that `serialize` described; a dict that Keras wrote for one of the six works too.

    Parameters
    ----------
    config : mapping
        ``{"class_name": str, "config": dict}``; other keys are ignored. Never changed.
    custom_objects : mapping of str to class, optional
        Classes of your own by name; they come before fastopt's.

    Raises
    ------
    ValueError
        No such class, a key is missing, or the arguments are refused by the class.

    Examples
    --------
    >>> deserialize(serialize(CosineDecay(0.1, 10))) == CosineDecay(0.1, 10)
    True
    """
    if not isinstance(config, Mapping) or not {"class_name", "config"} <= config.keys():
        raise ValueError(f"expected a dict with the keys class_name and config, got {config!r}")
    return get(config["class_name"], custom_objects).from_config(config["config"])


def _cosine_factor(done: float, alpha: float, peak: float = 1.0) -> float:
    """From ``(1 - alpha) * peak + alpha`` at ``done = 0`` down to ``alpha`` at ``done = 1``."""
    return (1.0 - alpha) * 0.5 * peak * (1.0 + math.cos(math.pi * done)) + alpha


def _periods(step: float, decay_steps: float, staircase: bool) -> float:
    periods = _step(step) / decay_steps
    return float(math.floor(periods)) if staircase else periods


def _step(step: float) -> float:
    return _at_least(0, "step", step)


def _number(name: str, value: object) -> float:
    """``value`` as a Python int or float: NumPy scalars would make configs that JSON cannot hold."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    return int(value) if isinstance(value, Integral) else float(value)


def _finite(name: str, value: object) -> float:
    number = _number(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def _positive(name: str, value: object) -> float:
    number = _finite(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be > 0, got {number}")
    return number


def _at_least(bound: int, name: str, value: object) -> float:
    number = _finite(name, value)
    if number < bound:
        raise ValueError(f"{name} must be >= {bound}, got {number}")
    return number


def _numbers(name: str, values: object) -> list[float]:
    if not isinstance(values, Iterable) or isinstance(values, str | bytes):
        raise TypeError(f"{name} must be a sequence of numbers, got {values!r}")
    return [_finite(f"{name}[{index}]", value) for index, value in enumerate(values)]


def _flag(name: str, value: object) -> bool:
    if value not in (True, False):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def _label(name: object) -> str | None:
    if name is None or isinstance(name, str):
        return name
    raise TypeError(f"name must be a string or None, got {name!r}")


def _hashable(config: object) -> object:
    if isinstance(config, Mapping):
        return frozenset((key, _hashable(value)) for key, value in config.items())
    if isinstance(config, list | tuple):
        return tuple(_hashable(item) for item in config)
    return config
