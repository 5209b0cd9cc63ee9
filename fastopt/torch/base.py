"""What all optimizers of `fastopt.torch` have in common: torch's interface over the fused step."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from operator import is_, itemgetter
from typing import Any, ClassVar

import torch
from torch._compile import _disable_dynamo

from ..parameters import check_flag, check_number
from ..plan import Slot
from . import flat
from .engine import Cohort, Engine, Member
from .memory import check_parameter, is_distributed, local
from .rows import Restructured

Slots = tuple[tuple[str, Slot], ...]
"""Of a rule, in its order, under torch's names."""

_OPTIONS = ("clip_norm", "clip_value", "ema", "nonfinite", "fused_zero_grad", "flat", "fused_backward")


class Fused:
    """Placed before a `torch.optim.Optimizer` class: its step becomes one pass over memory.

    Everything else is torch's: arguments and their checks, ``param_groups``, hooks, ``state`` and its names. Subclasses
    say how torch's hyper-parameters become the scalars of a rule.

    Parameters
    ----------
    clip_norm : float, optional
        Limit of the norm over all gradients, before the step; as `torch.nn.utils.clip_grad_norm_`, but the gradients
        stay as they are.
    clip_value : float, optional
        Limit of each element of the gradients, after ``clip_norm``.
    ema : float in [0, 1), optional
        Keep an exponential moving average of the parameters with this momentum, ``state[p]["ema"]``. It begins with the
        parameters after the first step.
    nonfinite : {"propagate", "skip", "raise"}
        What a NaN or infinite gradient does. A skipped step changes nothing.
    fused_zero_grad : bool
        Zero the gradients in the same pass. `zero_grad` then leaves those alone that still are.
    flat : bool
        Move the parameters' ``data`` into one tensor per device and dtype, see `flat_parameters`.
    fused_backward : bool
        Update each parameter as soon as its gradient is there, and free that: ``backward`` steps, ``step`` does not.
    """

    _reads: ClassVar[tuple[str, ...]]
    """Hyper-parameters that a row of scalars depends on."""
    _counters: ClassVar[tuple[str, ...]] = ("step",)
    """State that is a number per parameter."""
    _needs_whole: ClassVar[bool] = False
    """Whether the rule looks at more than single elements."""

    param_groups: list[dict[str, Any]]
    state: Any

    # -- what a subclass says ---------------------------------------------------------------------------------------

    def _slots(self, group: Mapping[str, Any]) -> Slots:
        """State arrays of the rule for a parameter group."""
        raise NotImplementedError

    def _row(self, group: Mapping[str, Any], t: int, cohort: Cohort, extra: Any) -> tuple[tuple[float, ...], float]:
        """The rule's scalars for update number ``t``, and the share of itself that the parameter loses before."""
        raise NotImplementedError

    def _extra(self, tensor: torch.Tensor) -> Hashable:
        """What the scalars depend on beside hyper-parameters and counts."""
        return None

    def _needs_c_order(self, axes: tuple[int, ...]) -> bool:
        """Whether the rule cannot work on a parameter whose axes lie so in memory."""
        return False

    def _start(self, name: str, group: Mapping[str, Any]) -> float:
        """What a counter starts as."""
        return 0.0

    def _count_of(self, state: Mapping[str, Any]) -> int:
        """Updates that a parameter has had, as far as its scalars depend on them."""
        return int(state["step"]) if "step" in state else 0

    def _count(self, cohort: Cohort) -> None:
        """Note that a cohort has been updated."""
        cohort.count += 1

    def _check_ready(self) -> None:
        """Refuse to step where the optimizer is not in the state for it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show the signature that the class has: torch's, then the keywords of `Fused`."""
        super().__init_subclass__(**kwargs)
        init = next(vars(kind)["__init__"] for kind in cls.__mro__ if kind is not Fused and "__init__" in vars(kind))
        own = [p for p in inspect.signature(init).parameters.values() if p.kind is not p.VAR_KEYWORD]
        common = [p for p in inspect.signature(Fused.__init__).parameters.values() if p.name in _OPTIONS]
        cls.__signature__ = inspect.Signature([*own[1:], *common])  # type: ignore[attr-defined]

    # -- options ----------------------------------------------------------------------------------------------------

    def __init__(
        self, params: Any, *args: Any, clip_norm: float | None = None, clip_value: float | None = None,
        ema: float | None = None, nonfinite: str = "propagate", fused_zero_grad: bool = False, flat: bool = False,
        fused_backward: bool = False, **kwargs: Any,
    ) -> None:  # fmt: skip
        self.clip_norm, self.clip_value, self.ema, self.nonfinite = clip_norm, clip_value, ema, nonfinite
        self.fused_zero_grad, self.flat, self.fused_backward = fused_zero_grad, flat, fused_backward
        self._check_options()
        self._begin()
        super().__init__(params, *args, **kwargs)  # type: ignore[call-arg]
        if self.defaults.get("differentiable"):  # type: ignore[attr-defined]
            raise ValueError(
                f"differentiable=True: fastopt.torch.{type(self).__name__} updates in place, where autograd cannot "
                f"follow: use torch.optim.{type(self).__name__}"
            )
        self._step_supports_amp_scaling = True

    def _check_options(self) -> None:
        for name in ("clip_norm", "clip_value"):
            value = getattr(self, name)
            if value is not None:
                check_number(name, value, low=0.0)
                if value == 0:
                    raise ValueError(f"{name} must be positive, got 0")
        if self.ema is not None:
            check_number("ema", self.ema, 0.0, 1.0, below=True)
        if self.nonfinite not in ("propagate", "skip", "raise"):
            raise ValueError(f'nonfinite must be "propagate", "skip" or "raise", got {self.nonfinite!r}')
        for name in ("fused_zero_grad", "flat", "fused_backward"):
            check_flag(name, getattr(self, name))
        if self.fused_backward and self.fused_zero_grad:
            raise ValueError("fused_backward=True frees gradients: there are none for fused_zero_grad to zero")
        if self.fused_backward and (self.clip_norm is not None or self.nonfinite != "propagate"):
            raise ValueError(
                "fused_backward=True updates each parameter before the other gradients are known: clip_norm and "
                "nonfinite need all of them; clip_value does not"
            )

    def _begin(self) -> None:
        """Set what follows from parameters and state to nothing."""
        self._engines: list[tuple[Engine, list[int] | None]] = []
        self._singles: dict[int, Engine] = {}
        self._waiting: list[int] = []
        self._cohorts: dict[int, Cohort] = {}  # of each parameter, by its id
        self._known: list[Any] = []
        self._known_groups: list[Any] = []
        self._known_states: list[Any] = []
        self._distributed = False
        self._zeroed: list[tuple[torch.Tensor, int]] = []
        self._buffers: dict[Any, torch.Tensor] = getattr(self, "_buffers", {})
        self._last_step_skipped = False
        self._arrivals: dict[int, Any] = getattr(self, "_arrivals", {})
        self._hyper_parameters: Callable[[Any], Any] = itemgetter(*self._reads)

    # -- torch's interface ------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer.add_param_group`."""
        super().add_param_group(param_group)  # type: ignore[misc]
        number = len(self.param_groups) - 1
        try:
            for k, tensor in enumerate(self.param_groups[-1]["params"]):
                check_parameter(_path(self.param_groups[-1], number, k), tensor)
        except TypeError:
            del self.param_groups[-1]
            raise
        self._await_gradients()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; see `torch.optim.Optimizer.step`.

        Raises
        ------
        TypeError, ValueError, RuntimeError, FloatingPointError
            If a parameter or a gradient does not fit, or is not finite and ``nonfinite="raise"``. Then nothing has
            changed on its device.
        """
        self._check_ready()
        if self.fused_backward:
            return self._end_of_backward(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._last_step_skipped = bool(getattr(self, "found_inf", None) is not None and self.found_inf.item())  # type: ignore[attr-defined]
        if not self._last_step_skipped:
            scale = getattr(self, "grad_scale", None)
            self._step(1.0 if scale is None else 1.0 / scale.item())
        return loss

    @_disable_dynamo
    def _step(self, unscale: float) -> None:
        params = [p for group in self.param_groups for p in group["params"]]
        grads = [p.grad for p in params]
        if not self._is_current(params, grads):
            self._build(params, grads)
        done = True
        for number in range(len(self._engines)):
            try:
                done &= self._run(number, grads, unscale)
            except Restructured:
                self._build(params, grads)
                done &= self._run(number, grads, unscale)
        self._last_step_skipped = not done
        if done:
            self._end_step()
        if self.fused_zero_grad:
            self._zeroed = [(grad, grad._version) for grad in grads if grad is not None]

    def _run(self, number: int, grads: list[Any], unscale: float) -> bool:
        engine, indices = self._engines[number]
        own = _own(grads, indices)
        if self._distributed:
            own = list(map(_local_gradient, engine._members, own))
        done = engine.run(own, unscale, self.fused_zero_grad)
        # Autograd must refuse a backward pass through values that it had saved, as after any update in place.
        torch.autograd.graph.increment_version(engine._tensors)
        return done

    def _end_step(self) -> None:
        """What belongs to a step that is no parameter's."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """See `torch.optim.Optimizer.zero_grad`; gradients that ``fused_zero_grad`` left at zero stay as they are."""
        if self._zeroed and all(grad._version == version for grad, version in self._zeroed):
            zeroed = {id(grad) for grad, _ in self._zeroed}
            if all(id(p.grad) in zeroed for group in self.param_groups for p in group["params"] if p.grad is not None):
                return
        self._zeroed = []
        super().zero_grad(set_to_none)  # type: ignore[misc]

    def state_dict(self) -> dict[str, Any]:
        """See `torch.optim.Optimizer.state_dict`; ``torch.optim``'s class of the same name can load it."""
        found = super().state_dict()  # type: ignore[misc]
        for state in found["state"].values():
            # torch.optim counts in these tensors, one by one: theirs must not be shared.
            state.update({name: state[name].clone() for name in self._counters if name in state})
        return found

    def __getstate__(self) -> dict[str, Any]:
        kept: Any = super().__getstate__()
        return {**kept, **{name: getattr(self, name) for name in _OPTIONS}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._begin()
        super().__setstate__(state)  # type: ignore[misc]
        self._step_supports_amp_scaling = True
        self._await_gradients()

    # -- averages, and what is told of steps ------------------------------------------------------------------------

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Context in which the parameters hold their moving average; afterwards they are as before, bit for bit.

        Raises
        ------
        RuntimeError
            If there is none: ``ema=None``, or no step yet.
        """
        if self.ema is None:
            raise RuntimeError("there are no averaged weights: make the optimizer with ema=0.99, for example")
        with torch.no_grad(), ExitStack() as stack:
            if not self._engines:
                self._build(*self._present())
            if not self._engines:
                raise RuntimeError("there are no averaged weights before the first step")
            for engine, _ in self._engines:
                stack.enter_context(engine.evaluation_weights())
            yield

    def _present(self) -> tuple[list[Any], list[Any]]:
        params = [p for group in self.param_groups for p in group["params"]]
        return params, [p.grad for p in params]

    @property
    def last_grad_norm(self) -> float | None:
        """Norm of the last step's gradients before clipping, if it was needed. On a GPU, reading it waits."""
        norms = [engine.last_grad_norm for engine, _ in self._engines]
        return norms[0] if len(norms) == 1 else None

    @property
    def last_step_skipped(self) -> bool:
        """Whether the last step was left out: a gradient was not finite."""
        return self._last_step_skipped

    @property
    def flat_parameters(self) -> list[torch.Tensor]:
        """With ``flat=True``, the tensors that hold the parameters' elements, one per device and dtype."""
        return list(self._buffers.values())

    # -- building ---------------------------------------------------------------------------------------------------

    def _is_current(self, params: list[Any], grads: list[Any]) -> bool:
        """Whether the engines are those for the parameters that there are now."""
        return (
            bool(self._engines)
            and len(params) == len(self._known)
            and all(map(is_, params, self._known))
            and len(self.param_groups) == len(self._known_groups)
            and all(map(is_, self.param_groups, self._known_groups))
            and all(grads[k] is None for k in self._waiting)
            and len(self.state) == len(self._known_states)
            and all(map(is_, self.state.values(), self._known_states))
            and all(engine.is_current(_own(grads, indices)) for engine, indices in self._engines)
        )

    def _build(self, params: list[Any], grads: list[Any]) -> None:
        """Make engines, one per device, for all parameters that have state or a gradient."""
        self._engines = []
        self._known, self._known_groups = params, list(self.param_groups)
        self._distributed = any(map(is_distributed, params))
        self._check_distribution()
        joined = [bool(self.state.get(p)) or grad is not None for p, grad in zip(params, grads, strict=True)]
        self._waiting = [k for k, is_in in enumerate(joined) if not is_in]
        members = self._members(params, grads, joined)
        devices = dict.fromkeys(local(member.tensor).device for member in members.values())
        if len(devices) > 1 and (self.clip_norm is not None or self.nonfinite != "propagate"):
            raise ValueError(
                f"clip_norm and nonfinite look at all gradients together, and the parameters are on {list(devices)}: "
                "use an optimizer per device"
            )
        if self.flat:
            flat.pack([member.tensor for member in members.values()], self._buffers)
        for device in devices:
            own = [k for k, member in members.items() if local(member.tensor).device == device]
            engine = Engine(self, [members[k] for k in own])
            self._engines.append((engine, None if len(own) == len(params) else own))
        self._known_states = list(self.state.values())

    def _members(self, params: list[Any], grads: list[Any], joined: list[bool]) -> dict[int, Member]:
        """The parameters that are to be stepped, by their number, in cohorts."""
        places = [(g, k) for g, group in enumerate(self.param_groups) for k in range(len(group["params"]))]
        cohorts: dict[Any, Cohort] = {}
        members = {}
        for number, (tensor, grad, (g, k)) in enumerate(zip(params, grads, places, strict=True)):
            if joined[number]:
                group, state = self.param_groups[g], self.state[tensor]
                counts = tuple(float(state.get(name, self._start(name, group))) for name in self._counters)
                # Who has been apart stays apart: gradients that come and go in turns would else divide them again.
                before = self._cohorts.get(id(tensor))
                key = counts, before, self._count_of(state), grad is None, local(tensor).device, self._counted_apart(g)
                cohort = cohorts.get(key) or cohorts.setdefault(key, self._new_cohort(counts, self._count_of(state)))
                self.state[tensor] = state = _with_counters(state, cohort.tensors)
                members[number] = Member(_path(group, g, k), tensor, g, state, cohort)
        self._cohorts |= {id(member.tensor): member.cohort for member in members.values()}
        return members

    def _new_cohort(self, counts: tuple[float, ...], count: int) -> Cohort:
        dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
        tensors = {name: torch.tensor(value, dtype=dtype) for name, value in zip(self._counters, counts, strict=True)}
        return Cohort(tensors, count)

    def _counted_apart(self, group: int) -> Hashable:
        """What cohorts must have in common beside their counters."""
        return None

    def _structure_of(self, group: Mapping[str, Any]) -> Hashable:
        """What parameters must have in common to be under one rule: the class of the scalars, and slots."""
        sample = Cohort({name: torch.tensor(self._start(name, group)) for name in self._counters}, 0)
        scalars, _ = self._row(group, 1, sample, (1, 1))
        return type(scalars), self._slots(group)

    def _check_distribution(self) -> None:
        if self._distributed and self.flat:
            raise TypeError("flat=True cannot move distributed tensors (FSDP2, tensor parallel): leave it out")
        if self._distributed and (self._needs_whole or self.clip_norm is not None):
            what = type(self).__name__ if self._needs_whole else "clip_norm"
            raise TypeError(
                f"{what} needs whole parameters, and these are distributed tensors (FSDP2, tensor parallel), of which "
                "this process has a part: use an elementwise rule, and torch.nn.utils.clip_grad_norm_"
            )

    # -- fused backward ---------------------------------------------------------------------------------------------

    def _await_gradients(self) -> None:
        """With ``fused_backward``, have each parameter call back when its gradient is complete."""
        if not self.fused_backward:
            return
        myself = weakref.ref(self)

        def arrived(parameter: torch.Tensor) -> None:
            optimizer = myself()
            if optimizer is not None:
                optimizer._step_one(parameter)

        for group in self.param_groups:
            for p in group["params"]:
                if id(p) not in self._arrivals and p.requires_grad:
                    self._arrivals[id(p)] = p, p.register_post_accumulate_grad_hook(arrived)

    @_disable_dynamo
    @torch.no_grad()
    def _step_one(self, parameter: torch.Tensor) -> None:
        """Step a parameter whose gradient is complete, and free the gradient."""
        engine = self._singles.get(id(parameter))
        if engine is None or not engine.is_current([parameter.grad]):
            engine = self._single_engine(parameter)
        try:
            engine.run([parameter.grad], 1.0, False)
        except Restructured:
            self._single_engine(parameter).run([parameter.grad], 1.0, False)
        torch.autograd.graph.increment_version(parameter)
        parameter.grad = None

    def _single_engine(self, parameter: torch.Tensor) -> Engine:
        params, grads = self._present()
        self._distributed = any(map(is_distributed, params))
        self._check_distribution()
        members = self._members(params, grads, [p is parameter for p in params])
        if self.flat:
            flat.pack([p for p in params if p.requires_grad], self._buffers)
        engine = self._singles[id(parameter)] = Engine(self, list(members.values()))
        self._engines = [(single, None) for single in self._singles.values()]
        return engine

    def _end_of_backward(self, closure: Callable[[], Any] | None) -> Any:
        """The end of a step whose parameters were updated during ``backward``."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._end_step()
        return loss


def _own(grads: list[Any], indices: list[int] | None) -> list[Any]:
    """An engine's gradients out of all."""
    return grads if indices is None else [grads[k] for k in indices]


def _with_counters(state: dict[str, Any], counters: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The same dict, counters first, as torch.optim has them."""
    others = {name: value for name, value in state.items() if name not in counters}
    state.clear()
    state.update({**counters, **others})
    return state


def _path(group: Mapping[str, Any], number: int, k: int) -> str:
    name = f" ({group['param_names'][k]})" if "param_names" in group else ""
    return f"parameter {k} of group {number}{name}"


def _local_gradient(member: Member, grad: Any) -> torch.Tensor | None:
    """This process's part of a gradient."""
    if grad is None:
        return None
    parameter = member.tensor
    if is_distributed(parameter) != is_distributed(grad) or (
        is_distributed(grad) and tuple(grad.placements) != tuple(parameter.placements)
    ):
        raise ValueError(f"the gradient of {member.path} is not distributed as the parameter is: redistribute it")
    return local(grad)
