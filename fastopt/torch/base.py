"""What all optimizers of `fastopt.torch` have in common: torch's interface over the fused step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from .._torch import Scaled, found_inf_of, scale_of
from ..counts import Call
from ..kernels.cpu.launch import one_call
from ..kernels.locks import Lock
from ..signatures import hint
from ..steps.alone import alone
from .averages import Averages
from .backward import BackwardSteps
from .building import Built, build, local_gradient, own
from .cohorts import path_of
from .distributed import add_up_parts, goes_on_without_gradients, is_found_anywhere
from .formats import check_formats, keep_dtypes
from .memory import HALVES, check_parameter, device_of, few_threads, local
from .names import ELSEWHERE
from .options import NAMES, Chosen, Options, options_of
from .rule import Rule
from .verdict import is_on_gpu
from .versions import Zeroed, note_writing


class Fused(Options, Averages, Scaled):
    """Placed before a `torch.optim.Optimizer` class: its step becomes one pass over memory.

    Everything else is torch's: arguments and their checks, ``param_groups``, hooks, ``state`` and its names. Subclasses
    have a `Rule`, which says how torch's hyper-parameters become scalars. ``foreach``, ``fused`` and ``capturable`` say
    how torch would compute: they are accepted, kept in ``param_groups``, and without effect here, but for one: with
    ``fused=True`` a ``GradScaler`` hands its scale over on CUDA.

    Parameters
    ----------
    clip_norm : float, optional
        Limit of the norm over all gradients, before the step; as `torch.nn.utils.clip_grad_norm_`, but the gradients
        stay as they are. ``inf`` only measures, for `last_grad_norm`.
    clip_value : float, optional
        Limit of each element of the gradients, after ``clip_norm``.
    ema : float in [0, 1), optional
        Keep an exponential moving average of the parameters with this momentum, ``state[p]["ema"]``. It begins with the
        parameters after the first step that it is on for.
    nonfinite : {"propagate", "skip", "raise"}
        What a NaN or infinite gradient does. A skipped step changes nothing. On CUDA, ``"raise"`` waits for the GPU.
    fused_zero_grad : bool
        Zero the gradients in the same pass; sparse ones are dropped. `zero_grad` then leaves those alone that still are
        zero. It trusts the tensors' version counters: what writes to a gradient behind autograd's back
        (``p.grad.data``, NumPy) is not seen.
    flat : bool
        Move the ``data`` of all parameters that are trained into one tensor per device and dtype, see
        `flat_parameters`. Each has a storage of its own there, so that it is saved alone. What is thawed or added later
        has all packed anew.
    fused_backward : bool
        Update each parameter as soon as its gradient is there, and free that: each ``backward`` is a step, so gradients
        cannot be accumulated over several, nor scaled by a ``GradScaler``. ``step`` only ends the step.
    sparse : {None, "lazy"}
        What a sparse gradient does, as of ``nn.Embedding(sparse=True)``, where rows without one would change, too: by
        momentum, Adam's moments, weight decay. None refuses it; "lazy" leaves those rows alone, and their moments, as
        `SparseAdam` does. Where they would stay as they are in any case, it is not asked for.
    slot_dtype : {None, "float32", "bfloat16", "float16", "8bit"}, or dict of state name to one of these
        How state is kept, on a CPU. None, and what a dict does not name: as torch does, in the parameter's dtype,
        rounded to the nearest number. The dtypes of 16 bits are rounded at random; in 8 bits each block of 256 elements
        has a scale, ``exp_avg_scale`` of ``exp_avg``, and parameters of less than 4096 elements keep their state in
        float32.
    master_weights : {None, "float32", "split"}
        What is kept beside parameters of bfloat16 and float16, so that steps do not lose what these cannot hold: a
        float32, ``state[p]["master"]``; or, for bfloat16, the other half of one, ``state[p]["remainder"]``.
    compensation : {None, "kahan"}
        Keep what the rounding of such a parameter took away, in ``state[p]["compensation"]``, and add it at the next
        step.
    stochastic_rounding : bool
        Round such parameters up or down at random, so that what is expected of them is exact.
    seed : int
        Of all rounding at random. How often has been rounded is ``param_groups[0]["rounding_step"]``.

    Memory that has been stepped (parameters and state on a CPU) cannot be resized any more, as by
    ``p.untyped_storage().resize_(0)``: the kernels keep its address.
    """

    rule: Rule
    """How hyper-parameters become scalars; set by subclasses."""

    defaults: dict[str, Any]
    param_groups: list[dict[str, Any]]
    state: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show the signature that the class has: torch's, then the keywords of `Fused`."""
        super().__init_subclass__(**kwargs)
        init = next(vars(kind)["__init__"] for kind in cls.__mro__ if kind is not Fused and "__init__" in vars(kind))
        own = [p for p in inspect.signature(init).parameters.values() if p.kind is not p.VAR_KEYWORD]
        common = [p for p in inspect.signature(Fused.__init__).parameters.values() if p.name in NAMES]
        cls.__signature__ = inspect.Signature([*own[1:], *common])  # type: ignore[attr-defined]

    # -- torch's interface ------------------------------------------------------------------------------------------

    def __init__(
        self, params: Any, *args: Any, clip_norm: float | None = None, clip_value: float | None = None,
        ema: float | None = None, nonfinite: str = "propagate", fused_zero_grad: bool = False, flat: bool = False,
        fused_backward: bool = False, sparse: str | None = None,
        slot_dtype: str | Mapping[str, str | None] | None = None,
        master_weights: str | None = None, compensation: str | None = None, stochastic_rounding: bool = False,
        seed: int = 0, **kwargs: Any,
    ) -> None:  # fmt: skip
        self.clip_norm, self.clip_value, self.ema, self.nonfinite = clip_norm, clip_value, ema, nonfinite
        self.fused_zero_grad, self.flat, self.fused_backward = fused_zero_grad, flat, fused_backward
        self.sparse, self.slot_dtype, self.master_weights = sparse, slot_dtype, master_weights
        self.compensation, self.stochastic_rounding, self.seed = compensation, stochastic_rounding, seed
        self._begin()
        self._refuse_unknown(inspect.signature(super().__init__).parameters, kwargs)
        with few_threads():
            super().__init__(params, *args, **kwargs)  # type: ignore[call-arg]
        if self.defaults.get("differentiable"):
            raise ValueError(
                f"differentiable=True: fastopt.torch.{type(self).__name__} updates in place, where autograd cannot "
                f"follow: use torch.optim.{type(self).__name__}"
            )
        self._unscales_itself = False  # torch's constructors may have set it, for fused=True

    def _refuse_unknown(self, known: Mapping[str, inspect.Parameter], kwargs: Mapping[str, Any]) -> None:
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
            return
        own = list(inspect.signature(type(self)).parameters)[1:]
        for key in kwargs.keys() - known.keys():
            raise TypeError(f"fastopt.torch.{type(self).__name__} has no argument {key!r}: {hint(key, ELSEWHERE, own)}")

    def _begin(self) -> None:
        """Set what follows from parameters and state to nothing."""
        self._built: Built | None = None
        self._zeroed = Zeroed()
        self._ran: list[tuple[Any, list[int] | None]] = []  # the optimizers of the last step
        self.buffers: dict[Any, torch.Tensor] = getattr(self, "buffers", {})
        self._last_step_skipped = False
        self._stepping = vars(self).get("_stepping") or Lock()
        self._backward: BackwardSteps
        if "_backward" in self.__dict__:
            self._backward.forget()
        else:
            self._backward = BackwardSteps(self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer.add_param_group`. Frozen parameters may be of any kind.

        Raises
        ------
        TypeError, ValueError
            If a parameter cannot be updated in place, or is in the group twice: torch warns, and would step it twice.
        RuntimeError
            In the middle of a step.
        """
        alone(self._stepping)
        super().add_param_group(param_group)  # type: ignore[misc]
        group, number = self.param_groups[-1], len(self.param_groups) - 1
        places: dict[Any, int] = {}
        try:
            for k, tensor in enumerate(group["params"]):
                path = path_of(group, number, k)
                if places.setdefault(tensor, k) != k:
                    raise ValueError(f"{path} is parameter {places[tensor]}, too: pass a shared parameter once")
                if tensor.requires_grad and (device_of(tensor).type == "cpu" or not self.rule.needs_cpu):
                    check_parameter(path, tensor)
                    check_formats(self, group, path, tensor)
        except (TypeError, ValueError):
            del self.param_groups[-1]
            raise
        if self.fused_backward:
            self._backward.await_gradients()

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
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.fused_backward:
            self._backward.finish()
            one_call(self._ends())()
            return loss
        found_inf = found_inf_of(self)
        asked = found_inf is not None and not self._is_for_gpu(found_inf)
        self._last_step_skipped = asked and is_found_anywhere(self, bool(found_inf))
        if not self._last_step_skipped:
            with alone(self._stepping):
                scale = scale_of(self)
                if scale is None:
                    self._step()
                else:
                    self._step_unscaled(scale)
        return loss

    def _is_for_gpu(self, found_inf: Any) -> bool:
        """Whether what a scaler has found is left to the GPU that all parameters are on."""
        params = [p for group in self.param_groups for p in group["params"]]
        return is_on_gpu(found_inf) and all(device_of(p) == found_inf.device for p in params)

    def _step_unscaled(self, scale: Any) -> None:
        """Step with gradients divided by ``grad_scale``, and leave them divided, as torch's fused optimizers do.

        They stay divided if the step is refused. Those of 16 bits are divided after it: quotients may be too small for
        these.
        """
        grads = [local(p.grad) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if any(grad.dtype in HALVES for grad in grads):
            self._step(1.0 / float(scale))
            self._divide(grads, float(scale))
        else:
            self._divide(grads, scale.reshape(()) if is_on_gpu(scale) else float(scale))
            self._step()

    @few_threads()
    def _divide(self, grads: list[torch.Tensor], divisor: Any) -> None:
        for grad in grads:
            grad.div_(divisor)

    @torch.compiler.disable
    def _step(self, unscale: float = 1.0) -> None:
        params = [p for group in self.param_groups for p in group["params"]]
        built = self._built
        if built is None or built.is_divided:
            add_up_parts(params)
        grads = [p.grad for p in params]
        if built is None or not (built.is_current(self, params, grads) and built.prepare_step(grads)):
            built = build(self, params, grads, {} if built is None else built.cohorts)
            built.prepare_step(grads)
        built.check_options(self)
        if self._run(built.optimizers, grads, unscale):
            self._built = built.after_step(self, params)
        if self.fused_zero_grad:
            self._zeroed.note([grad for grad in grads if grad is not None and not grad.is_sparse])

    def _run(self, optimizers: list[tuple[Any, list[int] | None]], grads: list[Any], unscale: float) -> bool:
        """Run all optimizers; whether none has left the step out. ``unscale`` is a factor on the gradients."""
        ran: list[bool] = []
        stepped: list[torch.Tensor] = []
        ends, self._ran = self._ends(), optimizers
        if self.fused_zero_grad:
            ends = [*ends, *self._dropping_sparse_gradients()]
        try:
            for optimizer, numbers in optimizers:
                given = own(grads, numbers)
                if optimizer.distributed:
                    given = list(map(local_gradient, optimizer.members, given))
                is_last = optimizer is optimizers[-1][0]
                ran.append(optimizer.run(given, self.fused_zero_grad, ends if is_last else (), unscale))
                stepped += optimizer.stepped if ran[-1] else []
        finally:
            # Autograd must refuse a backward pass through values that it had saved, as after any update in place.
            note_writing(stepped)
        if not optimizers:
            ran.append(goes_on_without_gradients(self))
            one_call(ends if ran[-1] else ())()
        self._last_step_skipped = not all(ran)
        return all(ran)

    def _dropping_sparse_gradients(self) -> list[Call]:
        """Return C functions that let go of sparse gradients, which are not zeroed: the next one lies elsewhere."""
        params = [p for group in self.param_groups for p in group["params"]]
        return [partial(setattr, p, "grad", None) for p in params if p.grad is not None and p.grad.is_sparse]

    def _check_ready(self) -> None:
        """Refuse to step where the optimizer is not in the state for it."""
        self._refuse_to_step_while_evaluating()

    def _ends(self) -> list[Call]:
        """Return C functions to be called with the kernels: what a step changes beside parameters and their state."""
        return []

    def zero_grad(self, set_to_none: bool = True) -> None:
        """See `torch.optim.Optimizer.zero_grad`; gradients that ``fused_zero_grad`` left at zero stay as they are."""
        if self.fused_zero_grad:
            grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
            if self._zeroed.are(grads):
                return
        super().zero_grad(set_to_none)  # type: ignore[misc]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer.load_state_dict`; what is kept in a dtype of its own stays in it."""
        saved: list[Any] = []
        reads = self.register_load_state_dict_pre_hook(lambda _, given: saved.append(given))  # type: ignore[attr-defined]
        keeps = self.register_load_state_dict_post_hook(lambda own: keep_dtypes(own, saved[-1]), prepend=True)  # type: ignore[attr-defined]
        with reads, keeps:
            super().load_state_dict(state_dict)  # type: ignore[misc]

    def __getstate__(self) -> dict[str, Any]:
        kept: Any = super().__getstate__()
        return {**kept, **options_of(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_stepping" in vars(self):
            alone(self._stepping)
        self._begin()
        super().__setstate__(state)  # type: ignore[misc]
        self.chosen = Chosen(**options_of(self))  # torch sets attributes behind their backs
        own = self.defaults.keys() - {"differentiable"}  # torch adds that, whether a class has it or not
        for group in self.param_groups:
            for name in own - group.keys():
                group[name] = self.defaults[name]
        if self.fused_backward:
            self._backward.await_gradients()

    # -- what is told of steps --------------------------------------------------------------------------------------

    @property
    def last_grad_norm(self) -> float | None:
        """Norm of the last step's gradients before clipping, if it was needed. On a GPU, reading it waits."""
        return self._ran[0][0].last_grad_norm if len(self._ran) == 1 else None

    @property
    def last_step_skipped(self) -> bool:
        """Whether the last step was left out: a gradient was not finite. On a GPU, reading it may wait."""
        return self._last_step_skipped or any(each.is_undecided and each.last_step_skipped for each, _ in self._ran)

    @property
    def flat_parameters(self) -> list[torch.Tensor]:
        """Return the tensors that hold the parameters' elements with ``flat=True``, one per device and dtype.

        Those of the last step: where parameters come in or move, the next step makes new ones.
        """
        return list(self.buffers.values())
