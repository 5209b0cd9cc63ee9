"""Dynamic loss scaling around any optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from . import state
from .counts import Call
from .hyper_parameters import without_axes
from .memory import Memory
from .optimizer import Optimizer
from .parameters import Array, check_count, check_number
from .scalars import Scaling
from .signatures import Rate
from .state import checked_counter
from .steps.gpu import Captured, GpuSteps

_LEAST, _GREATEST = 2.0**-126, 2.0**126


def _scale(name: str, value: Any) -> float:
    """A scale; refuses what is no finite number above zero."""
    value = without_axes(value)
    check_number(name, value)
    if value <= 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return float(value)


def _bound(name: str, value: Any) -> float | None:
    return None if value is None else _scale(name, value)


def _growth_steps(name: str, value: Any) -> int:
    check_count(name, value, 1)
    return int(checked_counter(name, value, 0))


def _steps(name: str, value: Any) -> int:
    value = without_axes(value)
    check_count(name, value, 0)
    return int(checked_counter(name, value, 0))


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "initial_scale": _scale, "dynamic_scale": _scale, "minimum_scale": _bound, "maximum_scale": _bound,
    "dynamic_growth_steps": _growth_steps, "step_counter": _steps,
}  # fmt: skip
"""What may be set, and what it must be."""


class LossScaleOptimizer(Optimizer):
    """Gradients of a scaled loss, unscaled in the inner optimizer's own pass; a step with a NaN or Inf is left out.

    The scale halves when a gradient is not finite and doubles after ``dynamic_growth_steps`` finite steps in a row. The
    check is one read of the gradients, shared with a clipping norm.

    Parameters
    ----------
    inner_optimizer : Optimizer
        Without a ``loss_scale_factor`` of its own. Everything but the scale is the inner one's.
    initial_scale : float > 0
    dynamic_growth_steps : int >= 1
    name : str, optional
    minimum_scale, maximum_scale : float, optional
        Bounds of the scale; None: only what float32 can hold (Keras 3 has no bound, and may reach 0 and infinity).

    State: that of the inner optimizer, and the counters ``dynamic_scale`` and ``step_counter``.

    Source: Micikevicius et al. 2017, https://arxiv.org/abs/1710.03740; Keras's `LossScaleOptimizer`.

    Raises
    ------
    TypeError, ValueError
        If the inner optimizer is none, scales losses itself, or a number is out of range.
    """

    def __init__(
        self,
        inner_optimizer: Optimizer,
        initial_scale: float = 2.0**15,
        dynamic_growth_steps: int = 2000,
        name: str | None = None,
        *,
        minimum_scale: float | None = None,
        maximum_scale: float | None = None,
    ) -> None:
        if not isinstance(inner_optimizer, Optimizer):
            raise TypeError(f"inner_optimizer must be an Optimizer, got {type(inner_optimizer).__name__}")
        if isinstance(inner_optimizer, LossScaleOptimizer) or inner_optimizer.loss_scale_factor is not None:
            raise ValueError("the inner optimizer scales losses itself: scale in one place only")
        self.inner_optimizer = inner_optimizer
        self.initial_scale = initial_scale
        self.dynamic_growth_steps = dynamic_growth_steps
        self.minimum_scale, self.maximum_scale = minimum_scale, maximum_scale
        low, high = minimum_scale or 0.0, maximum_scale or float("inf")
        if not low <= initial_scale <= high:
            raise ValueError(
                f"initial_scale {initial_scale} is not between minimum_scale {low} and maximum_scale {high}"
            )
        self.name = name or "loss_scale_optimizer"
        self._dynamic_scale = self.initial_scale
        self._step_counter = 0

    def __getattr__(self, name: str) -> Any:
        """Hyper-parameters such as ``use_ema`` are the inner optimizer's."""
        if name.startswith("_") or name == "inner_optimizer":
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.inner_optimizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set what is the inner optimizer's there; refuse what is no scale or count as in the constructor."""
        if name in _CHECKS:
            value = _CHECKS[name](name, value)
            self._check_bounds(name, value)
        inner = self.__dict__.get("inner_optimizer")
        own = inner is None or name in self.__dict__ or hasattr(type(self), name)
        if own or name.startswith("_") or not hasattr(inner, name):
            super().__setattr__(name, value)
        else:
            setattr(inner, name, value)

    def _check_bounds(self, name: str, value: Any) -> None:
        bounds = {**self.__dict__, name: value}
        low, high = bounds.get("minimum_scale"), bounds.get("maximum_scale")
        if name == "dynamic_scale" and not (low or 0.0) <= value <= (high or math.inf):
            raise ValueError(f"dynamic_scale {value} is not between minimum_scale {low} and maximum_scale {high}")
        if low is not None and high is not None and low > high:
            raise ValueError(f"minimum_scale {low} is above maximum_scale {high}")

    def build(self, params: Any, overrides: Mapping[str, Mapping[str, Any]] | None = None, copies: Any = None) -> None:
        """See `Optimizer.build`."""
        with self.inner_optimizer._unchanged_by_failure():
            self.inner_optimizer.build(params, overrides, copies)
            for plan in self.inner_optimizer._plans:
                plan.engine.prepare(norms=True, clip_each=False, accumulate=False)

    @property
    def dynamic_scale(self) -> float:
        """The present scale. Settable. On a GPU, reading it waits."""
        return self._scaling().scale

    @dynamic_scale.setter
    def dynamic_scale(self, value: float) -> None:
        self._set_scaling(value, self.step_counter)

    @property
    def step_counter(self) -> int:
        """Finite steps since the scale last changed. Settable. On a GPU, reading it waits."""
        return self._scaling().growth

    @step_counter.setter
    def step_counter(self, value: int) -> None:
        self._set_scaling(self.dynamic_scale, value)

    def _scaling(self) -> Scaling:
        gpu = self._gpu_that_scales()
        if gpu is not None:
            self._dynamic_scale, self._step_counter = gpu.scaling()
        return self._known_scaling()

    def _known_scaling(self) -> Scaling:
        """The scale as far as the host knows."""
        least, greatest = self.minimum_scale or _LEAST, self.maximum_scale or _GREATEST
        return Scaling(self._dynamic_scale, self._step_counter, self.dynamic_growth_steps, least, greatest)

    def _set_scaling(self, scale: float, counter: int) -> None:
        self._dynamic_scale, self._step_counter = scale, counter
        gpu = self._gpu_that_scales()
        if gpu is not None:
            gpu.set_scaling(self._known_scaling())

    def _gpu_that_scales(self) -> GpuSteps | None:
        gpu = self.inner_optimizer._gpu
        return gpu if gpu is not None and gpu.scales else None

    def scale_loss(self, loss: Any) -> Any:
        """The loss times the present scale: what to take gradients of. With a torch or CuPy loss nothing waits."""
        gpu = self._gpu_that_scales()
        return loss * self._dynamic_scale if gpu is None else gpu.times_scale(loss)

    def _apply(
        self,
        grads: Any,
        params: Any,
        zero_grads: bool,
        unscale: float | None = None,
        nonfinite: str | None = None,
        scaling: Scaling | None = None,
        ends: Sequence[Call] = (),
        learns: bool = False,
    ) -> None:
        inner = self.inner_optimizer
        known = self._known_scaling()
        if inner._gpu is None:
            ends = (partial(vars(self).update, self._scaling_after_growth(known)), *ends)
        inner._apply(grads, params, zero_grads, 1.0 / known.scale, "skip", known, ends)
        if inner._gpu is None and inner.last_step_skipped:
            vars(self).update(_step_counter=0, _dynamic_scale=max(known.scale * 0.5, known.least))

    def _scaling_after_growth(self, known: Scaling) -> dict[str, float]:
        """Counter and scale after a step whose gradients were finite, by attribute."""
        if known.growth == known.growth_steps - 1:
            return {"_step_counter": 0, "_dynamic_scale": min(known.scale * 2.0, known.greatest)}
        return {"_step_counter": known.growth + 1, "_dynamic_scale": known.scale}

    def _prepare(self, steps: int, nonfinite: str | None = None, scaling: Scaling | None = None) -> None:
        self.inner_optimizer._prepare(steps, "skip", self._known_scaling())

    def _capturing_steps(self) -> GpuSteps:
        return self.inner_optimizer._capturing_steps()

    def _replay(self, captured: Captured, nonfinite: str | None = None, scaling: Scaling | None = None) -> None:
        self.inner_optimizer._replay(captured, "skip", self._known_scaling())

    @property
    def learning_rate(self) -> float:
        """Return the inner optimizer's."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Rate) -> None:
        self.inner_optimizer.learning_rate = value

    @property
    def iterations(self) -> int:
        """Return the inner optimizer's count: steps that were left out do not count. Settable."""
        return self.inner_optimizer.iterations

    @iterations.setter
    def iterations(self, count: int) -> None:
        self.inner_optimizer.iterations = count

    @property
    def built(self) -> bool:
        """Whether the parameters are known."""
        return self.inner_optimizer.built

    @property
    def last_step_skipped(self) -> bool:
        """Whether the last step met a gradient that is not finite."""
        return self.inner_optimizer.last_step_skipped

    @property
    def last_grad_norm(self) -> float | None:
        """Return the norm of the unscaled gradients, if the inner optimizer clips by a norm."""
        return self.inner_optimizer.last_grad_norm

    @property
    def slots(self) -> dict[str, list[Array | None]]:
        """Return the inner optimizer's."""
        return self.inner_optimizer.slots

    def exclude_from_weight_decay(
        self, var_list: Iterable[Any] | None = None, var_names: Iterable[str] | None = None
    ) -> None:
        """See `Optimizer.exclude_from_weight_decay`."""
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """See `Optimizer.evaluation_weights`."""
        with self.inner_optimizer.evaluation_weights():
            yield

    def leave_evaluation(self) -> None:
        """See `Optimizer.leave_evaluation`."""
        self.inner_optimizer.leave_evaluation()

    def finalize_variable_values(self, var_list: Any = None) -> None:
        """See `Optimizer.finalize_variable_values`."""
        self.inner_optimizer.finalize_variable_values(var_list)

    def state_dict(self) -> dict[str, Any]:
        """See `Optimizer.state_dict`."""
        own = {"dynamic_scale": self.dynamic_scale, "step_counter": self.step_counter}
        return {**self.inner_optimizer.state_dict(), **own}

    def memory(self, params: Any = None, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> Memory:
        """See `Optimizer.memory`."""
        return self.inner_optimizer.memory(params, overrides)

    def load_state_dict(self, d: Mapping[str, Any], strict: bool = True, convert: bool = False) -> None:
        """See `Optimizer.load_state_dict`."""
        with self.inner_optimizer._one_at_a_time():
            state.write(self.inner_optimizer, self._taking_over(d, strict, convert))

    def _taking_over(self, d: Mapping[str, Any], strict: bool, convert: bool) -> list[Callable[[], Any]]:
        own = {key: d[key] for key in ("dynamic_scale", "step_counter") if key in d}
        if strict and len(own) < 2:
            raise ValueError("the state does not fit: missing dynamic_scale or step_counter")
        checked = {key: checked_counter(key, value, getattr(self, key)) for key, value in own.items()}
        if checked.get("dynamic_scale", 1.0) <= 0:
            raise ValueError(f"state dynamic_scale: must be positive, got {checked['dynamic_scale']}")
        rest = {key: value for key, value in d.items() if key not in own}
        scale = checked.get("dynamic_scale", self.dynamic_scale)
        counter = int(checked.get("step_counter", self.step_counter))
        return [
            *self.inner_optimizer._taking_over(rest, strict, convert),
            partial(self._set_scaling, scale, counter),
        ]

    def _not_arrays(self) -> dict[str, Any]:
        own = {"dynamic_scale": self.dynamic_scale, "step_counter": self.step_counter}
        return {**self.inner_optimizer._not_arrays(), **own}

    def get_config(self) -> dict[str, Any]:
        """All hyper-parameters, JSON-able, the inner optimizer's under ``inner_optimizer``."""
        from .registry import serialize

        keys = ("initial_scale", "dynamic_growth_steps", "name", "minimum_scale", "maximum_scale")
        return {"inner_optimizer": serialize(self.inner_optimizer), **{key: getattr(self, key) for key in keys}}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LossScaleOptimizer:
        """The optimizer that `get_config` describes, not built."""
        from .registry import get

        return cls(**{**config, "inner_optimizer": get(config["inner_optimizer"])})

    def __repr__(self) -> str:
        keys = ("initial_scale", "dynamic_growth_steps", "minimum_scale", "maximum_scale")
        shown = "".join(f", {key}={getattr(self, key)!r}" for key in keys)
        return f"LossScaleOptimizer({self.inner_optimizer!r}{shown})"

    def __getstate__(self) -> dict[str, Any]:
        self._scaling()
        return self.__dict__

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__.update(kept)
