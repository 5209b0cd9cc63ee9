"""A fastopt optimizer at work on the memory of tensors: a torch optimizer's parameters on one device."""

from __future__ import annotations

import math
import sys
import weakref
from array import array as integers
from collections.abc import Sequence
from functools import partial
from operator import setitem
from typing import Any

import torch

from .._torch import found_inf_of, without_modes
from ..counts import Call
from ..device import HOST, place_of
from ..device.strides import is_dense, memory_order, overlaps_itself
from ..gradients import ABSENT, BaseGradients
from ..kernels.layout import Control
from ..kernels.registry import RULES, Slot
from ..optimizer import Optimizer
from ..parameters import Parameter, check_disjoint
from ..plan import AVERAGE_SLOT, Plan, allocate
from ..steps.gpu import GpuSteps
from ..steps.host import HostSteps
from . import reading
from .cohorts import Cohort, Member
from .counters import Counters
from .distributed import agreement_of, kind_of
from .formats import COUNTER, TensorFormats, check_formats, formats_of, names_beside
from .gradients import TensorGradients, present_of
from .memory import HALVES, as_array, check_parameter, is_distributed, local
from .options import Chosen
from .rows import DeviceScalars, Row, Rows
from .rule import Owner
from .sparse import check_kind
from .state_arrays import StateArrays
from .verdict import Verdict, is_on_gpu, may_leave_out


class DeviceOptimizer(Optimizer):
    """One launch per rule and dtype for the parameters of one device, in all groups.

    Hyper-parameters, numbers and state are the torch optimizer's, its ``owner``: nothing of them is kept here. New
    state becomes the owner's with the step that uses it first.

    On a GPU the counts of cohorts are those after all steps, as if none of them had been left out, like an optimizer's
    other counters: see `steps.gpu`. The tensors that count are the GPU's to write to, then.

    Parameters
    ----------
    owner : Owner
        Referred to weakly: state must not live until the next garbage collection.
    members : list of Member
        On one device.

    Raises
    ------
    TypeError, ValueError
        If a parameter cannot be updated in place.

    Attributes
    ----------
    is_undecided : bool
        Whether the GPU alone knows if the last step was done.
    """

    def __init__(self, owner: Owner, members: list[Member]) -> None:
        self._owner: Any = _weak(owner)
        self.members = members
        self._by_path = {member.path: member for member in members}
        self._configure(
            {
                "learning_rate": 0.0, "weight_decay": None, "clipnorm": None, "clipvalue": _finite(owner.clip_value),
                "global_clipnorm": _finite(owner.clip_norm), "use_ema": owner.ema is not None,
                "ema_momentum": owner.ema if owner.ema is not None else 0.0, "ema_overwrite_frequency": None,
                "loss_scale_factor": None, "gradient_accumulation_steps": None, "name": None,
                "nonfinite": owner.nonfinite, "slot_dtype": owner.slot_dtype, "master_weights": owner.master_weights,
                "compensation": owner.compensation, "stochastic_rounding": owner.stochastic_rounding,
                "seed": owner.seed,
            }
        )  # fmt: skip
        self._tensors = tuple(member.tensor for member in members)
        self.distributed = any(map(is_distributed, self._tensors))
        self._whereabouts = self._find_whereabouts()
        self._counting = Counters(self._owner, members)
        self._chosen: Chosen | None = None
        self._present: list[int] | None = []
        self._active: list[Cohort] = []
        self._take_charge(self._collect(), allocate)
        self._agree_with_others()
        self._tables = [Rows(self._owner, plan) for plan in self._plans]
        self._unrecorded = list(members)
        self._may_leave_out = may_leave_out(self._owner)
        self._verdict: Verdict | None = None
        self.is_undecided = False
        self.has_recorded = False
        self._places = None
        if not self._place.on_gpu and not reading.obstacle() and all(map(reading.is_readable, self._tensors)):
            self._places = reading.reader(list(map(reading.expected_object, self._tensors)))

    def _check_clips(self, clips: list[str]) -> None:
        """Both kinds may be on: first the norm, then the value."""

    # -- building ---------------------------------------------------------------------------------------------------

    def _collect(self) -> list[Parameter]:
        owner, members = self._owner, self.members
        for member in members:
            check_parameter(member.path, member.tensor)
            check_formats(owner, owner.param_groups[member.group], member.path, member.tensor)
        on_gpu = members[0].tensor.device.type == "cuda"
        tensors = [local(member.tensor).detach() for member in members]
        place = place_of([member.path for member in members], tensors) if on_gpu else HOST
        arrays = [as_array(m.path, tensor, place) for m, tensor in zip(members, tensors, strict=True)]
        for member, array in zip(members, arrays, strict=True):
            if overlaps_itself(array):
                raise ValueError(
                    f"{member.path} overlaps itself in memory (shape {tuple(array.shape)}, strides in bytes "
                    f"{tuple(array.strides)}): what is one element there cannot be updated as several; pass a clone()"
                )
        dense = [k for k, array in enumerate(arrays) if is_dense(array)]
        names = [members[k].path.removeprefix("parameter ") for k in dense]
        check_disjoint(names, [arrays[k] for k in dense], place)
        return [
            Parameter(
                m.path, array, memory_order(array), True, 1.0, {}, None, place, tensor if on_gpu else None,
                HALVES.get(tensor.dtype, ""),
            )
            for m, array, tensor in zip(members, arrays, tensors, strict=True)
        ]  # fmt: skip

    def _is_stepped_in_float32(self, parameter: Parameter) -> bool:
        return False  # `check_formats` refuses what would have to be

    def _needs_c_order(self, parameter: Parameter) -> bool:
        return not is_dense(parameter.array) or self._owner.rule.needs_c_order(parameter.axes)

    def _scalars_of(self, plans: list[Plan]) -> DeviceScalars:
        return DeviceScalars(self, plans)

    def _gradients_class(self) -> type[BaseGradients]:
        return super()._gradients_class() if self._place.on_gpu else TensorGradients

    def _find_formats(self) -> None:
        """Choose nothing for good: options can be set between steps."""

    def _make_plans(self) -> list[Plan]:
        owner = self._owner
        numbers = {member.group for member in self.members}
        structures = {number: owner.rule.structure(owner.param_groups[number]) for number in numbers}
        members: dict[tuple[Any, ...], list[int]] = {}
        for k, (member, parameter) in enumerate(zip(self.members, self._parameters, strict=True)):
            structure = structures[member.group]
            kept = formats_of(self, parameter, _slots_of(*structure), owner.rule.names)
            members.setdefault((structure, parameter.dtype, kept, kind_of(member.tensor)), []).append(k)
        extra = {AVERAGE_SLOT: Slot(copies_parameter=True)} if self.use_ema else {}
        names = {**owner.rule.names, AVERAGE_SLOT: "ema"}
        self._rounded, self._is_noisy = integers("q", [0]), False
        plans = []
        for (structure, _, kept, _), indices in members.items():
            chosen = [self._parameters[k] for k in indices]
            rows: list[Any] = [self._row_of(self.members[k]) for k in indices]
            formats = self._formats(dict(kept), indices) if kept else None
            storage = StateArrays(names, self._by_path, self._place, formats)
            slots = _slots_of(*structure)
            plans.append(Plan("", indices, chosen, rows, structure[0], slots, extra, storage, formats))
            storage.forget_stale(plans[-1])
        return plans

    def _agree_with_others(self) -> None:
        """Have steps go by the gradients of all processes that have parts of the owner's parameters."""
        agreement = agreement_of(self._owner)
        if agreement is not None and isinstance(self._steps, HostSteps):
            kinds = [kind_of(self.members[plan.indices[0]].tensor) for plan in self._plans]
            self._steps.agree = partial(agreement.agree, kinds=kinds)

    def _formats(self, kept: dict[str, str], indices: list[int]) -> TensorFormats:
        """Return how numbers of these members are kept; noise is that of a parameter's number among all."""
        params = [p for group in self._owner.param_groups for p in group["params"]]
        places = {id(p): place for place, p in enumerate(params)}
        numbers = [places[id(self.members[k].tensor)] for k in indices]
        formats = TensorFormats(kept, numbers, self._rounded, self.seed)
        self._is_noisy = self._is_noisy or formats.is_noisy
        return formats

    def _row_of(self, member: Member) -> Row:
        return Row(member.group, member.cohort, self._owner.rule.extra(member.tensor))

    # -- the owner's state ------------------------------------------------------------------------------------------

    def _recording(self) -> list[Call]:
        """Return what tells others of a step, by counts and new state: C functions, to be called with it."""
        calls = list(self._counting.writes)
        if self._is_noisy:
            # The steps of a GPU have been counted when they are told of.
            after = self._rounded[0] + (not self._place.on_gpu)
            calls.append(partial(setitem, self._owner.param_groups[0], COUNTER, after))
        if self.use_ema or self._unrecorded:
            calls += [partial(setattr, cohort, "averages", self.use_ema) for cohort in self._active]
            calls += [call for member in self._unrecorded for call in self._recording_of(member)]
        return calls

    def _recording_of(self, member: Member) -> list[Call]:
        """Return what makes a parameter's state the owner's.

        Where it had no gradient, what it did not have before stays unsaid: torch has no such state either.
        """
        found = {**member.counters, **member.state}  # counters first, as torch.optim has them
        if not found:
            return []
        live, stepped = self._owner.state[member.tensor], member.cohort in self._active
        new = {name: v for name, v in found.items() if (stepped or name in live) and live.get(name) is not v}
        stale = names_beside(self._owner.rule.names.values()) & (live.keys() - found.keys())
        return [partial(live.update, new)] * bool(new) + [partial(live.pop, name, None) for name in stale]

    def _note_recorded(self) -> None:
        before = len(self._unrecorded)
        if before:
            self._unrecorded = [member for member in self._unrecorded if member.cohort not in self._active]
        self.has_recorded = len(self._unrecorded) < before

    # -- what may have changed --------------------------------------------------------------------------------------

    def _find_whereabouts(self) -> list[Any]:
        tensors = list(map(local, self._tensors))
        return [
            [tensor.data_ptr() for tensor in tensors],
            [tensor.stride() for tensor in tensors],
            [tensor.shape for tensor in tensors],
            [tensor.dtype for tensor in tensors],
        ]

    def is_current(self, grads: list[Any]) -> bool:
        """Whether parameters still are the memory that they were. Reads the gradients, if that is quick."""
        if self.use_ema != (self._owner.chosen.ema is not None) or not self._have_stayed():
            return False
        if self._place.on_gpu and may_leave_out(self._owner) and not self._may_leave_out:
            return False  # what counts is to be on the GPU
        if not (self._place.on_gpu or self.distributed):
            self._gradients.read_quickly(grads)
        return self._counting.read()

    def _have_stayed(self) -> bool:
        if self._places is not None:
            return self._places.read(self._tensors) == len(self._tensors)
        return self._find_whereabouts() == self._whereabouts

    # -- stepping ---------------------------------------------------------------------------------------------------

    def prepare_step(self, grads: Sequence[torch.Tensor | None]) -> bool:
        """Work out the scalars for a step; False if a new optimizer must do it. Nothing is written before `run`."""
        chosen = self._owner.chosen
        if chosen is not self._chosen:
            if self._chosen is not None and chosen.formats != self._chosen.formats:
                return False
            self._follow(chosen)
        if self.is_undecided and not self._stays_undecided():
            self._confirm()
        is_read = not self._place.on_gpu and self._gradients.is_read
        if not self._find_active(None if is_read else present_of(grads)) or not self._work_out():
            return False
        self._counting.prepare(self._active)
        return True

    def _work_out(self) -> bool:
        self._worked_out_for = self._counting.counts
        if self._is_noisy:
            self._rounded[0] = self._owner.param_groups[0].get(COUNTER, 0)
        return all(table.work_out(self._limit, self.ema_momentum) for table in self._tables)

    def write(self) -> None:
        """Fill the tables of scalars, for what the cohorts have counted."""
        if self._place.on_gpu and self._worked_out_for != self._counting.counts:
            self._work_out()
        for table in self._tables:
            table.write()

    def scale_gradients(self, factor: float) -> None:
        """Have the step multiply gradients by a factor, after `write`."""
        for plan in self._plans:
            plan.work.table[:, Control._fields.index("unscale")] *= factor

    # The counters of a step on a GPU, see `steps.gpu`: what cohorts have counted is among them.

    def _counters(self) -> dict[str, str]:
        return {**super()._counters(), "counts": "_counts_of_cohorts", "rounded": "rounded"}

    @property
    def rounded(self) -> int:
        """How often numbers have been rounded at random."""
        return self._rounded[0]

    @rounded.setter
    def rounded(self, count: int) -> None:
        self._rounded[0] = count

    @property
    def _counts_of_cohorts(self) -> Any:
        return self._counting.counts

    @_counts_of_cohorts.setter
    def _counts_of_cohorts(self, counts: Any) -> None:
        self._counting.counts = counts

    def _advancing(self, t: int) -> list[Call]:
        return [*super()._advancing(t), self._count_cohorts] if self._place.on_gpu else super()._advancing(t)

    def _count_cohorts(self) -> None:
        self._counting.prepare(self._active)
        self._counting.accept()
        self._rounded[0] += self._is_noisy

    def _follow(self, chosen: Chosen) -> None:
        """Take over what has been set."""
        self._chosen, self.nonfinite = chosen, chosen.nonfinite
        self.global_clipnorm, self.clipvalue = _finite(chosen.clip_norm), _finite(chosen.clip_value)
        self.ema_momentum = 0.0 if chosen.ema is None else chosen.ema
        self._limit = math.inf if chosen.clip_value is None else chosen.clip_value

    def run(
        self, grads: Sequence[torch.Tensor | None], zero: bool, ends: Sequence[Call] = (), unscale: float = 1.0
    ) -> bool:
        """One step, after `prepare_step`; whether it was done, not skipped.

        On a CPU signals find it whole or not begun. ``ends`` is what else belongs to it: C functions to be called after
        the kernels. ``unscale`` is a factor on all gradients, on a CPU.

        Raises
        ------
        TypeError, ValueError, FloatingPointError
            If a gradient does not fit, or is not finite and ``nonfinite="raise"``. Nothing has changed then.
        """
        given: Any = grads
        if self._owner.rule.needs_sparse or self._place.on_gpu or not self._gradients.is_read:
            for member, grad in zip(self.members, grads, strict=True):
                check_kind(self._owner, member, grad, self._place.on_gpu)
        nonfinite = self.nonfinite
        if self._gpu is not None:
            given = [ABSENT if grad is None else grad for grad in grads]
            nonfinite = self._listen(self._gpu)
        else:
            self._gradients.present = self._present
        try:
            # Under `torch.set_default_device` and other modes torch's functions, of which a step may call some, would
            # run Python code between the kernels and the counts.
            with without_modes():
                self._read_and_step(given, zero, unscale, nonfinite, None, ends)
                self.is_undecided = self._leaves_undecided(nonfinite, ends)
                if self._gpu is not None and self._verdict is not None and self.is_undecided:
                    self._count_on_gpu(self._verdict, self._gpu)
        finally:
            self._gradients.release()
        # On a GPU whether a step was skipped costs waiting for it: only asked where it has to be known.
        if nonfinite != "propagate" and not self.is_undecided and self.last_step_skipped:
            return False
        if self._gpu is None:
            self._counting.accept()
        elif not self.is_undecided:
            for each in (*self._recording(), *ends):
                each()
        self._counting.note_writing()
        self._note_recorded()
        return True

    def _listen(self, gpu: GpuSteps) -> str:
        """Have a scaler tell the GPU whether to leave the step out; what the step is to do, see `steps.gpu.Setting`."""
        found_inf, device = found_inf_of(self._owner), local(self._tensors[0]).device
        is_told = is_on_gpu(found_inf) and found_inf.device == device
        if self._may_leave_out and self._verdict is None:
            self._verdict = Verdict(gpu, device)
        gpu.tell = partial(self._verdict.leave_out_if, found_inf) if self._verdict and is_told else None
        return "told" if is_told and self.nonfinite == "propagate" else self.nonfinite

    def _leaves_undecided(self, nonfinite: str, ends: Sequence[Call]) -> bool:
        """Whether nobody but the GPU has to know if it has left the step out.

        The host must know where numbers of the owner's, such as how often has been rounded at random, or new state, are
        to be noted only if the step was done.
        """
        begins = self.use_ema and not all(cohort.averages for cohort in self._active)
        return (
            self._verdict is not None
            and nonfinite in ("skip", "told")
            and self._counting.are_steps_on(local(self._tensors[0]).device)
            and not (ends or begins or self._is_noisy or any(map(self._recording_of, self._unrecorded)))
        )

    def _stays_undecided(self) -> bool:
        """Whether the coming step counts from what the GPU knows, too."""
        return may_leave_out(self._owner) and self.nonfinite != "raise"

    def _count_on_gpu(self, verdict: Verdict, gpu: GpuSteps) -> None:
        with gpu.in_order():
            verdict.count(self._counting.far)

    def _find_active(self, present: list[int] | None) -> bool:
        """Find the cohorts that have gradients; False if that is some of a cohort."""
        if self._active and present == self._present:
            return True
        if self.is_undecided:
            self._confirm()  # what the GPU comes to late, it does with the gradients of now
        wanted = set(range(len(self.members)) if present is None else present)
        having = dict.fromkeys(self.members[k].cohort for k in sorted(wanted))
        if any(m.cohort in having and k not in wanted for k, m in enumerate(self.members)):
            return False
        self._present, self._active = present, list(having)
        return True

    @property
    def stepped(self) -> list[torch.Tensor]:
        """The parameters that had a gradient."""
        return list(self._tensors) if self._present is None else [self._tensors[k] for k in self._present]


def _slots_of(scalars: type, names: tuple[tuple[str, Slot], ...]) -> dict[str, Slot]:
    """The slots of a structure, as of `Rule.structure`, by the rule's own names."""
    return {own: slot for own, (_, slot) in zip(RULES[scalars].slots, names, strict=True)}


def _weak(owner: Any) -> Any:
    """A weak proxy of an object that may be one already."""
    return owner if isinstance(owner, weakref.ProxyTypes) else weakref.proxy(owner)


def _finite(limit: float | None) -> float | None:
    """A limit as the base class takes it: the greatest number for infinity."""
    return None if limit is None else min(limit, sys.float_info.max)
