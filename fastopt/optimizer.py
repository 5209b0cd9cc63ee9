"""The base of all optimizers: building, stepping, state. It names no algorithm."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from . import state
from .averages import LEAVE_FIRST, Averages
from .counts import Call
from .decay import Decay
from .declared import Declared
from .device import HOST, Place, is_array
from .flat import FlatBuffer, flatten, is_container, is_plain, match, rebuild
from .formats import Formats, fill_copy
from .gradients import ABSENT, BaseGradients, gradients_of
from .kernels.clipping import ALL, EACH
from .kernels.cpu.launch import one_call
from .kernels.locks import Lock
from .parameters import Array, Parameter, collect
from .plan import Group, Plan, Storage, allocate
from .prepared import Prepared
from .saved import Saved
from .scalars import Scalars, Scaling
from .slots import Slots
from .stand_ins import StandIn, StandIns
from .steps.alone import alone, refuse_while
from .steps.gpu import GpuSteps
from .steps.host import HostSteps
from .steps.repeated import RepeatedSteps


class Optimizer(Averages, Decay, Prepared, Saved, Slots, StandIns, Declared):
    """Base class: building, stepping, state. What subclasses say is in `declared.Declared`."""

    _structure: Any = None  # what `build` was given
    _gpu: GpuSteps | None = None
    _repeated: RepeatedSteps | None = None

    def __init__(self) -> None:
        raise TypeError(
            f"{type(self).__name__} is abstract: use a class of fastopt.optimizers, or fastopt.register_rule"
        )

    def _reset(self) -> None:
        """Set what changes while training to its start."""
        self._start_counting()
        self._start_running()
        self._excluded_arrays: list[Any] = []
        self._built = self._evaluating = False
        self._training = []
        self._gpu = None
        self._repeated = None
        self._stepping = Lock()

    def _state_is_set(self) -> None:
        """Go on from counters and slots that were set from outside."""
        if self._gpu is not None:
            self._gpu.rebase()

    def _rate_was_set(self) -> None:
        if self._gpu is not None:
            self._gpu.renew_prepared()

    def _unscale(self) -> float:
        return 1.0 if self.loss_scale_factor is None else 1.0 / self.loss_scale_factor

    @property
    def built(self) -> bool:
        """Whether the parameters are known."""
        return self._built

    # -- building ---------------------------------------------------------------------------------------------------

    def build(self, params: Any, overrides: Mapping[str, Mapping[str, Any]] | None = None, copies: Any = None) -> None:
        """Take charge of parameters: allocate the state and compile, or load, the kernels.

        Parameters
        ----------
        params : list, tuple, mapping, namedtuple, dataclass, nested ones of arrays, or FlatBuffer
            float32, float64, bfloat16 or float16, see `fastopt.formats`; writeable, dense in any axis order, not
            overlapping. They are updated where they lie.
            NumPy arrays; or arrays on one GPU: torch CUDA tensors, CuPy's, Numba's, or any with
            ``__cuda_array_interface__`` or DLPack. A step refuses NumPy arrays that have been made read-only since.
        overrides : dict, optional
            Regular expression, searched in each parameter's path (its keys, fields and indices joined with "/") →
            ``{"learning_rate_multiplier": float, "weight_decay": float or None, "trainable": bool}``; and ``"dtype":
            "bfloat16"``, of arrays of uint16 that hold such, and ``"slot_dtype"``, as of the optimizer.
        copies : as ``params``, optional
            Arrays of bfloat16 or float16 in the places of parameters of float32, of their shapes and axis order, for
            all or for some of them. They are written at once, and in the same pass as the parameters at each step,
            rounded to the nearest number: what a device computes with whose optimizer runs on the host. What else
            changes a parameter does not reach its copy before the next step. Steps write them as long as the
            optimizer lives, also if they have been made read-only since.

        Raises
        ------
        TypeError, ValueError
            If an array cannot be updated in place, not all are in one place, or an override makes no sense. Nothing is
            built then.
        RuntimeError
            If the optimizer is built already, or the GPU cannot be reached.
        """
        if self._built:
            raise RuntimeError("the optimizer is built already: make a new one for other parameters")
        if not is_container(params) and not is_array(params):
            raise TypeError(
                "params must be a list, tuple, dict, namedtuple, dataclass, FlatBuffer or array, "
                f"got {type(params).__name__}"
            )
        parameters = collect(params, overrides, copies)
        with self._unchanged_by_failure():
            # A container of our own: whatever happens to the user's, this is what was built.
            self._structure = rebuild(params, lambda leaf: leaf)
            self._overrides = (
                None if overrides is None else {key: dict(settings) for key, settings in overrides.items()}
            )
            self._copies = None if copies is None else rebuild(copies, lambda leaf: leaf)
            self._take_charge(parameters, allocate)
        for parameter in parameters:
            fill_copy(parameter)

    @contextmanager
    def _unchanged_by_failure(self, unless_stepped: bool = False) -> Iterator[None]:
        """If what happens inside is cut short, the optimizer is as it was; or, once a step has been done, as it is."""
        before, counts = dict(self.__dict__), self._counts
        numbers, told = counts.numbers[:], {"has_norm": counts.has_norm, "skipped": counts.skipped}
        try:
            yield
        except BaseException:
            if not (unless_stepped and self._calls > numbers[1]):
                restore = [self.__dict__.clear, partial(self.__dict__.update, before)]
                one_call([*restore, counts.counting(*numbers), partial(vars(counts).update, told)])()
            raise

    def _take_charge(self, parameters: list[Parameter], storage: Storage) -> None:
        """Build for parameters that have been checked; ``storage`` says where their state lives."""
        self._storage = storage
        self._place: Place = parameters[0].place if parameters else HOST
        self._parameters = [self._stood_in_for(p) if p.trainable else p for p in parameters]
        self._stand_ins = [StandIn(p) for p in self._parameters if p.origin is not None]
        self._read_stand_ins()
        paths = self._excluded["paths"] + self._paths_of(self._excluded_arrays)
        self._excluded, self._excluded_arrays = {**self._excluded, "paths": paths}, []
        # NumPy refuses to resize an array that is weakly referenced: the kernels rely on its address.
        self._pinned = [weakref.ref(owner) for p in self._parameters for owner in _owners(p.given)]
        self._index = {id(parameter.given): k for k, parameter in enumerate(self._parameters)}
        self._find_formats()
        self._plan()
        self._built = True

    def _plan(self, keep: dict[str, Array] | None = None) -> None:
        plans = self._make_plans()
        memory = [parameter.array for parameter in self._parameters]
        memory += [parameter.copy for parameter in self._parameters if parameter.copy is not None]
        memory += [parameter.origin for parameter in self._parameters if parameter.origin is not None]
        memory += [array for plan in plans for array in plan.memory]
        buffer = self._structure if isinstance(self._structure, FlatBuffer) else None
        gradients: Any = self._gradients_class()(self._parameters, buffer, memory)
        scalars = self._scalars_of(plans)
        on_gpu = self._place.on_gpu and plans
        gpu = GpuSteps(plans, gradients, scalars, self._gpu) if on_gpu else None
        self._steps: HostSteps | GpuSteps = gpu or HostSteps(plans, gradients, scalars)
        can_repeat = plans and not on_gpu and not self._stand_ins
        self._repeated = RepeatedSteps(plans, gradients, scalars, self._stepping) if can_repeat else None
        for plan in plans:
            plan.engine.prepare(
                norms=bool(self.global_clipnorm) or self.nonfinite != "propagate",
                clip_each=bool(self.clipnorm),
                accumulate=bool(self.gradient_accumulation_steps),
            )
        self._plans, self._gradients, self._gpu = plans, gradients, gpu
        if keep is not None:
            state.restore(self, keep)

    def _scalars_of(self, plans: list[Plan]) -> Scalars:
        """Return what tells steps all but gradients."""
        return Scalars(self, plans)

    def _gradients_class(self) -> type[BaseGradients]:
        """Return what reads the gradients."""
        return gradients_of(self._place)

    def _make_plans(self) -> list[Plan]:
        members: dict[tuple[Any, ...], list[int]] = {}
        for k, parameter in enumerate(self._parameters):
            if parameter.trainable:
                members.setdefault((self._branch(parameter), parameter.dtype, self._kept_as[k]), []).append(k)
        extra, plans = self._extra_slots(), []
        for (branch, _, kept), indices in members.items():
            chosen = [self._parameters[k] for k in indices]
            groups = [Group(p.multiplier, self._decay_of(p)) for p in chosen]
            scalars = type(self._scalars(branch, 1.0, 1))
            slots = self._slots_of(scalars)
            formats = self._formats(dict(kept), indices) if kept else None
            plans.append(Plan(branch, indices, chosen, groups, scalars, slots, extra, self._storage, formats))
        return plans

    def _formats(self, kept: dict[str, str], indices: list[int]) -> Formats:
        """Return how numbers of the parameters with these indices are kept."""
        begins = self._storage is allocate
        return Formats(kept, indices, self._counts.numbers, self._kept_seed, begins)

    def _require_built(self, what: str) -> None:
        if not self._built:
            raise RuntimeError(f"{what}: the optimizer is not built; call build(params) first")

    # -- stepping ---------------------------------------------------------------------------------------------------

    def apply(self, grads: Any, params: Any = None, zero_grads: bool = False) -> None:
        """One step: unscale, accumulate, clip, decay, update, average; in place.

        Parameters
        ----------
        grads : list, tuple, mapping, nested, FlatBuffer, or one flat array
            A gradient per parameter, float32, float64, bfloat16 or float16, of any strides, read where it lies; None
            leaves a parameter alone. Those in a plain list or tuple are in the parameters' order; all others go by key,
            field and index.
            For NumPy parameters NumPy arrays, or arrays in host memory of libraries with DLPack, such as JAX and torch.
        params : list of ndarray, optional
            On first use: what to build with. Later: which of the parameters built the gradients belong to.
        zero_grads : bool
            Zero the gradients in the same pass.

        Raises
        ------
        TypeError, ValueError, RuntimeError, FloatingPointError
            If something does not fit, or a gradient is not finite and ``nonfinite="raise"``. Then nothing has changed.
        """
        repeated = self._repeated
        if repeated is None or params is not None or zero_grads:
            self._apply(grads, params, zero_grads)
        elif not repeated.step(grads):
            self._apply(grads, None, False, learns=True)

    def _apply_with(self, grads: Any, ends: Sequence[Call]) -> None:
        """`apply`, with C functions that are called together with the kernels, after them."""
        if self._repeated is None or not self._repeated.step(grads, ends):
            self._apply(grads, None, False, ends=ends, learns=self._repeated is not None)

    def apply_gradients(self, pairs: Iterable[tuple[Any, Array]]) -> None:
        """One step from ``(gradient, parameter)`` pairs."""
        listed = list(pairs)
        if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in listed):
            raise TypeError("apply_gradients expects pairs (gradient, parameter), as zip(grads, params) makes them")
        self._apply([grad for grad, _ in listed], [param for _, param in listed], False)

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
        """A step of any kind. ``learns``: whether the next ones may be like it."""
        with self._one_at_a_time():
            self._refuse_while_evaluating()
            repeated = self._repeated
            if repeated is not None:
                repeated.forget()  # now compiled code begins no step; another thread's may have begun before
                refuse_while(repeated.is_running)
            if self._built:
                self._apply_alone(grads, params, zero_grads, unscale, nonfinite, scaling, ends)
            else:
                self._first_step(grads, params, zero_grads, unscale, nonfinite, scaling, ends)
            if learns and repeated is not None:
                repeated.learn()

    def _one_at_a_time(self) -> Lock:
        """See `alone`."""
        return alone(self._stepping) if self._repeated is None else self._repeated.alone()

    def _refuse_while_evaluating(self) -> None:
        if self._evaluating:
            raise RuntimeError(f"a step inside evaluation_weights(): {LEAVE_FIRST}")

    def _apply_alone(self, grads: Any, params: Any, *options: Any) -> None:
        if params is not None:
            grads = self._align(grads, params)
        try:
            self._read_and_step(grads, *options)
        finally:
            self._gradients.release()

    def _read_and_step(
        self,
        grads: Any,
        zero_grads: bool,
        unscale: float | None,
        nonfinite: str | None,
        scaling: Scaling | None,
        ends: Sequence[Call] = (),
    ) -> None:
        options = self._gradients.read(grads, zero_grads)
        if not self._plans:
            for each in (*self._gradients.zeroing(), *ends):
                each()
            return
        if self._stand_ins:
            with self._steps.in_order():
                self._read_stand_ins()
        if unscale is None:
            unscale = self._unscale()
        nonfinite = nonfinite or self.nonfinite
        if isinstance(self._steps, GpuSteps):
            self._steps.step(unscale, nonfinite, options, scaling)
            if self._stand_ins or (zero_grads and (self._gradients.zeroes or self._counts.skipped)):
                with self._steps.in_order(gradients=True):
                    self._end_step(grads, zero_grads)
            return
        if self._stand_ins or zero_grads:
            back = [stand_in.writing() for stand_in in self._stand_ins]
            ends = [*back, *self._gradients.zeroing(), *ends]
        self._steps.step(unscale, nonfinite, options, ends)
        if zero_grads and self._counts.skipped:
            self._gradients.zero_all(grads)

    def _end_step(self, grads: Any, zero_grads: bool) -> None:
        """Do what no kernel does on a GPU: copy stand-ins back, and zero other gradients."""
        self._write_back()
        if zero_grads and self._counts.skipped:
            self._gradients.zero_all(grads)
        elif zero_grads:
            self._gradients.zero()

    def _first_step(self, grads: Any, params: Any, *options: Any) -> None:
        """Build and step; if the step is refused, the optimizer is as it was."""
        if params is None:
            raise RuntimeError("the optimizer is not built: call build(params), or pass params with the gradients")
        if not flatten(params)[0] and not flatten(grads)[0]:
            return
        with self._unchanged_by_failure(unless_stepped=True):
            self.build(params)
            self._apply_alone(grads, None, *options)

    def _align(self, grads: Any, params: Any) -> Any:
        """Gradients for all parameters built, from gradients for ``params``, which may be some of them."""
        paths, arrays = flatten(params)
        is_whole = len(arrays) == len(self._parameters) and all(map(_is_array_of, arrays, self._parameters))
        if is_whole and (is_plain(grads) or paths == [parameter.path for parameter in self._parameters]):
            return grads
        leaves = match(paths, grads)
        aligned: list[Any] = [ABSENT] * len(self._parameters)
        for grad, array in zip(leaves, arrays, strict=True):
            k = self._index.get(id(array))
            if k is None:
                raise ValueError("a parameter that the optimizer was not built with: make a new optimizer for it")
            if aligned[k] is not ABSENT:
                raise ValueError(f"parameter {self._parameters[k].path} is given twice")
            aligned[k] = grad
        return aligned

    def _clipping(self) -> tuple[int, float]:
        """The way to clip by a norm, of `fastopt.kernels.clipping`, 0 for none; and the limit."""
        if self.clipnorm:
            return (EACH, float(self.clipnorm)) if self.clipnorm > 0 else (ALL, 0.0)
        return (ALL, float(self.global_clipnorm)) if self.global_clipnorm else (0, 0.0)


def _owners(array: Array) -> Iterator[Array]:
    """The array and those whose memory it is a view of."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        yield owner
        owner = owner.base


def _is_array_of(array: Any, parameter: Parameter) -> bool:
    return array is parameter.given
