"""A fastopt optimizer at work on the memory of a Keras optimizer's variables."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Sequence
from typing import Any

import keras

from ..counts import Call
from ..gradients import ABSENT
from ..hyper_parameters import without_axes
from ..kernels.registry import Slot
from ..optimizer import Optimizer
from ..parameters import Array, Parameter, check_parameters, kept_as
from ..plan import ACCUMULATOR_SLOT, AVERAGE_SLOT
from . import _keras
from ._keras import count_of, value_of
from .counting import counting
from .formats import dtype_of
from .memory import NumpyMemory, TorchMemory, dtype_name, untraced, writes_its_own_way

Memory = NumpyMemory | TorchMemory


class Unsupported(Exception):
    """A variable that no kernel can update in place: the message says which and why."""


class Attachment:
    """A fastopt optimizer, the core, on the arrays behind Keras's variables, which are found anew when they move.

    Parameters
    ----------
    optimizer : keras.optimizers.Optimizer
        Built; with the attributes of `fused.Fused`.
    memory : NumpyMemory or TorchMemory
        Of Keras's backend.

    Raises
    ------
    Unsupported
        If a variable cannot be updated in place.
    TypeError
        If one is of 16 bits, and the rule keeps nothing so.
    """

    def __init__(self, optimizer: Any, memory: Memory) -> None:
        obstacle = _keras.obstacle(optimizer, optimizer._counter_attributes)
        if obstacle:
            raise Unsupported(obstacle)
        self._optimizer, self._memory = optimizer, memory
        self._held: list[tuple[Any, Any, Hashable]] = []
        self._variables = list(_keras.trained_by(optimizer))
        self._index = {id(variable): k for k, variable in enumerate(self._variables)}
        self.core: Optimizer = optimizer._make_core()
        self._followed = [name for name in optimizer._followed if hasattr(self.core, name)]
        self._counters = optimizer._core_counters()
        self._formats = optimizer._formats
        self._slots = {**optimizer._slot_variables(), **optimizer._beside} | {
            AVERAGE_SLOT: _keras.averages_of(optimizer),
            ACCUMULATOR_SLOT: _keras.accumulators_of(optimizer),
        }
        self._follow_hyper_parameters()
        parameters = [self._parameter(variable) for variable in self._variables]
        self._names = (*_keras.HELD, *optimizer._slot_attributes.values(), *optimizer._counter_attributes.values())
        self._attributes = self._attributes_now()
        self._check(parameters)
        self._place = {id(parameter.array): k for k, parameter in enumerate(parameters)}
        self.core._take_charge(parameters, self._storage)

    def _check(self, parameters: list[Parameter]) -> None:
        try:
            check_parameters(
                [p.path for p in parameters], [p.array for p in parameters], [p.kept_as for p in parameters]
            )
        except (TypeError, ValueError) as reason:
            raise Unsupported(str(reason)) from None

    def _parameter(self, variable: Any) -> Parameter:
        array = self._array(variable)
        trainable = not _keras.is_overwritten(self._optimizer, variable)
        settings = {} if _keras.decays(self._optimizer, variable) else {"weight_decay": 0.0}
        kind, axes = kept_as(value_of(variable)), tuple(range(array.ndim))
        parameter = Parameter(variable.path, array, axes, trainable, 1.0, settings, kept_as=kind)
        if trainable:
            settings |= self._formats.settings_of(self.core, parameter)
        return parameter

    def _storage(self, name: str, slot: Slot, parameters: list[Parameter]) -> tuple[list[Array | None], list[Array]]:
        """The arrays of Keras's own slot variables (see `plan.Storage`)."""
        variables = self._slots[name]
        if len(variables) != len(self._variables):
            raise Unsupported(f"the optimizer was built without {name}")
        arrays = [
            self._slot(variables[self._place[id(p.array)]], p, name, slot) if p.array.ndim in slot.axes else None
            for p in parameters
        ]
        return arrays, [array for array in arrays if array is not None]

    def _slot(self, variable: Any, parameter: Parameter, name: str, slot: Slot) -> Array:
        array, shape, own = self._array(variable), parameter.shape_of(slot), dtype_of(parameter)
        found = dtype_name(value_of(variable))
        expected = self._formats.beside(parameter).get(name) or self._formats.dtype_of(name, own)
        if array.shape != shape or found != expected:
            raise Unsupported(
                f"{variable.path} is {found} {array.shape} where {parameter.path}, "
                f"{own} {parameter.array.shape}, needs {expected} {shape}"
            )
        return array

    def _array(self, variable: Any) -> Array:
        value = self._memory.value(variable)
        obstacle = writes_its_own_way(variable) or self._memory.obstacle(value)
        if obstacle:
            raise Unsupported(f"{variable.path} {obstacle}")
        self._held.append((variable, value, self._memory.place(value)))
        return self._memory.array(value)

    def is_current(self) -> bool:
        """Whether all state still lies where it was found, and hyper-parameters still select the same rules."""
        self._follow_hyper_parameters()
        place = self._memory.place
        return (
            all(type(self.core._scalars(plan.branch, 1.0, 1)) is plan.scalars for plan in self.core._plans)
            and all(map(operator.is_, self._attributes_now(), self._attributes))
            and all(value_of(variable) is value and place(value) == where for variable, value, where in self._held)
        )

    def _attributes_now(self) -> list[Any]:
        return list(map(vars(self._optimizer).get, self._names))

    @untraced
    def step(self, grads: Sequence[Any], variables: Sequence[Any]) -> None:
        """Do what Keras does from clipping to averaging, for the variables that have a gradient."""
        read = self._memory.gradient
        aligned: list[Any] = [ABSENT] * len(self._variables)
        for grad, variable in zip(grads, variables, strict=True):
            k = self._index[id(variable)]
            if aligned[k] is not ABSENT:
                raise ValueError(f"{variable.path} is given twice: add its gradients up")
            aligned[k] = read(grad)
        self._follow_time()
        self._memory.written(value for _, value, _ in self._held)
        absent = [k for k, grad in enumerate(aligned) if grad is ABSENT]
        with self._memory.quiet():
            self.core._apply_with(aligned, self._ends(absent))

    def _ends(self, absent: list[int]) -> list[Call]:
        """Return what tells Keras's variables of a step, in the call that does it; ``absent`` have no gradient."""
        core = self.core
        steps, calls, t = core.gradient_accumulation_steps or 1, core._calls + 1, core._iterations + 1
        ends = counting(count_of(self._optimizer), self._memory, calls)
        if calls % steps == 0:
            ends += [self._memory.following(variable, core._running) for variable in self._counters.values()]
            if core.use_ema and absent:
                ends += self._averages_of(absent, t)
        return ends

    def _follow_hyper_parameters(self) -> None:
        """Take over what the user may have changed."""
        for name in self._followed:
            setattr(self.core, name, without_axes(getattr(self._optimizer, name)))

    def _follow_time(self) -> None:
        """Take over what Keras, its callbacks or a loaded state may have changed: rate and counters."""
        core, optimizer, number = self.core, self._optimizer, self._memory.number
        rate = _keras.rate_now(optimizer)
        core._learning_rate = float(number(value_of(rate) if isinstance(rate, keras.Variable) else rate))
        core._calls = int(number(value_of(count_of(optimizer))))
        core._iterations = core._calls // (core.gradient_accumulation_steps or 1)
        for attribute, variable in self._counters.items():
            setattr(core, attribute, number(value_of(variable)))

    def _averages_of(self, absent: list[int], t: int) -> list[Call]:
        """Keras's averages also follow the variables that had no gradient at update ``t``."""
        core, assigning = self.core, self._memory.assigning
        keep = core.ema_momentum if t > 1 else 0.0
        overwrites = core.ema_overwrite_frequency and t % core.ema_overwrite_frequency == 0
        averages, ends = self._slots[AVERAGE_SLOT], []
        for k in absent:
            variable, average = self._variables[k], averages[k]
            if average is not None:
                dtype = core._parameters[k].dtype.name  # what 16 bits would lose here is lost once, at the end
                value = keras.ops.cast(average, dtype) * keep + keras.ops.cast(variable, dtype) * (1.0 - keep)
                ends += [assigning(each, value) for each in (average, *((variable,) if overwrites else ()))]
        return ends
