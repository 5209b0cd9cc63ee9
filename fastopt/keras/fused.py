"""The mixin that gives a Keras optimizer fastopt's fused step."""

from __future__ import annotations

import inspect
import operator
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import keras

from ..hyper_parameters import takes_step, without_axes
from ..optimizer import Optimizer
from ..signatures import FORMAT
from . import memory
from ._keras import BEHIND, REPLACED, Hooked, count_of, in_stateless_scope, is_overwritten, rate_of, value_of
from .attachment import Attachment, Unsupported
from .counting import forget
from .formats import FormatOptions, Told, outline

KEPT_BY_KERAS = ("learning_rate", "name", "loss_scale_factor", "nonfinite", *FORMAT)
"""Hyper-parameters that stay with Keras: it names, schedules and unscales by itself."""


def _is_of_step(rate: Any) -> bool:
    """Whether a learning rate is a function of the step and none of Keras's schedules: Keras would call it without."""
    is_keras = isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
    return callable(rate) and not is_keras and takes_step(rate)


def _no_memory() -> str:
    return f"the {keras.backend.backend()} backend's variables are not memory to write to"


class Fused(Hooked):
    """Placed before a Keras optimizer class: clipping, decay, update and average become one pass over Keras's memory.

    Keras keeps everything else: its variables, their order and names, configs, saving, counters, schedules, checks of
    gradients, constraints. Where no kernel can work on a variable's memory (another backend, a GPU, a stateless
    scope), and where a subclass, a mixin or the instance has its own version of anything in `REPLACED`, Keras's own
    update runs, after one warning that says why.

    Beside Keras's arguments there are ``slot_dtype``, ``master_weights``, ``compensation``, ``stochastic_rounding`` and
    ``seed``, by keyword, for the fused pass only: see `fastopt.keras.formats`.

    Results are Keras's, but for rounding. What differs on purpose:

    - variables of 16 bits are stepped in float32, where Keras computes in 16 bits;

    - with gradient accumulation the moving average follows, and overwrites, on real updates only, not on every call;
    - hyper-parameters out of range are a ValueError at the first step, and gradients must have their variable's shape;
    - coefficients such as ``beta_1`` may be callables, as Keras documents, and the learning rate one of
      `fastopt.schedules`, or any function of the step, such as optax's;
    - Adafactor does not keep up Keras's ``velocity`` of factored variables, which nothing reads;
    - ScheduleFreeAdamW is right on the torch backend, where Keras 3.15 reads a moment that it has overwritten.
    """

    _core_class: ClassVar[type[Optimizer]]
    _slot_attributes: ClassVar[dict[str, str]] = {}
    """fastopt's slot → attribute of the Keras class with a variable per parameter."""
    _counter_attributes: ClassVar[dict[str, str]] = {}
    """Attribute of the core → attribute of the Keras class with a scalar variable."""
    _memory: ClassVar[Any] = memory.of_backend()

    _attachment: Attachment | None = None
    _warned = False
    _formats = FormatOptions()
    _beside: dict[str, list[Any]]
    """What is kept beside variables of 16 bits: its name → a variable per parameter, None where there is none."""

    _replaced: ClassVar[tuple[str, ...]]
    """`REPLACED`, as far as fastopt's class has it."""
    _look_up: ClassVar[Callable[[Any], tuple[Any, ...]]]
    _original: ClassVar[tuple[Any, ...]]
    """What was there under these names when fastopt's class was made."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "_core_class" in vars(cls):
            cls._replaced = tuple(name for name in REPLACED if hasattr(cls, name))
            cls._look_up = operator.attrgetter(*cls._replaced)
            cls._original = cls._versions()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        said = {name: kwargs.pop(name) for name in FORMAT if name in kwargs}
        super().__init__(*args, **kwargs)
        self._formats = FormatOptions(**said, use_ema=bool(self.use_ema))  # type: ignore[attr-defined]
        if self._formats.needed and self._memory is None:
            self._explain(_no_memory())
        self.__dict__.update(_beside={})  # not as an attribute, of which Keras would track what is in it

    # -- how parameters and state are kept ---------------------------------------------------------------------------

    slot_dtype, master_weights, compensation, stochastic_rounding, seed = (Told() for _ in FORMAT)

    def build(self, variables: Any) -> None:
        """Create the variables that hold the state; what is kept beside those of 16 bits comes last."""
        if self.built:  # type: ignore[attr-defined]
            return
        needed = bool(self._formats.needed)
        kept = {k: variable for k, variable in enumerate(variables) if needed and not is_overwritten(self, variable)}
        if kept:
            core = self._make_core()
            for variable in kept.values():
                self._formats.settings_of(core, outline(variable))
        super().build(variables)  # type: ignore[misc]
        for k, variable in kept.items():
            for name, dtype in self._formats.beside(outline(variable)).items():
                row = self._beside.setdefault(name, [None] * len(variables))
                row[k] = self._add_like(variable, dtype, name)

    def add_variable_from_reference(
        self, reference_variable: Any, name: str | None = None, initializer: Any = "zeros"
    ) -> Any:
        """Create a variable of state like a variable, as Keras does, in the dtype that its slot is to have."""
        own = reference_variable.dtype
        dtype = own if self._memory is None else self._formats.dtype_of(name, own)
        if dtype != own and name is not None:
            return self._add_like(reference_variable, dtype, name, initializer)
        return super().add_variable_from_reference(reference_variable, name, initializer)  # type: ignore[misc]

    def _add_like(self, variable: Any, dtype: str, name: str, initializer: Any = "zeros") -> Any:
        called = f"{variable.path.replace('/', '_')}_{name}"
        return self.add_variable(variable.shape, initializer, dtype, name=called)  # type: ignore[attr-defined]

    def get_config(self) -> dict[str, Any]:
        """Keras's config, and how parameters and state are kept, where that is not as by default."""
        return super().get_config() | self._formats.said  # type: ignore[misc]

    # -- whether the fused pass is what the user asked for -----------------------------------------------------------

    @classmethod
    def _versions(cls) -> tuple[Any, ...]:
        """Return what the class has now of what the pass replaces; last, what mixins after `Fused` would hide."""
        return (*cls._look_up(cls), *cls._behind())

    def _is_overridden(self) -> bool:
        """Whether the class, or the instance, has anything of its own that the pass would not call: asked each step."""
        return self._versions() != self._original or not vars(self).keys().isdisjoint(self._replaced)

    def _overridden(self) -> list[str]:
        """The names of what `_is_overridden` found."""
        names = (*self._replaced, *BEHIND)
        versions = zip(names, self._versions(), self._original, strict=True)
        of_class = [name for name, now, then in versions if now is not then]
        return of_class + [name for name in self._replaced if name in vars(self)]

    # -- what the attachment asks ------------------------------------------------------------------------------------

    @property
    def _followed(self) -> list[str]:
        """Hyper-parameters that the core takes over anew for every step."""
        return [name for name in inspect.signature(self._core_class).parameters if name not in KEPT_BY_KERAS]

    def _make_core(self) -> Optimizer:
        core = self._core_class(**{name: getattr(self, name) for name in self._followed})
        self._formats.tell(core)
        return core

    def _slot_variables(self) -> dict[str, list[Any]]:
        return {slot: getattr(self, attribute, []) for slot, attribute in self._slot_attributes.items()}

    def _core_counters(self) -> dict[str, Any]:
        return {counter: getattr(self, attribute) for counter, attribute in self._counter_attributes.items()}

    # -- what Keras calls --------------------------------------------------------------------------------------------

    @property
    def learning_rate(self) -> Any:
        """The rate of the next step; settable, unless a schedule rules it."""
        return super().learning_rate  # type: ignore[misc]

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        rate = rate_of(self)
        if _is_of_step(rate) and not callable(value):
            raise TypeError(
                f"the learning rate follows {type(rate).__name__} and cannot be set to a number: make the optimizer "
                "with a float, or set another schedule"
            )
        super(Fused, type(self)).learning_rate.__set__(self, value)  # type: ignore[misc]

    def current_rate(self) -> Any:
        """See `Hooked.current_rate`."""
        rate = rate_of(self)
        if not _is_of_step(rate):
            return self._rate_of_keras()
        if self._memory is None:
            raise TypeError(
                f"{type(rate).__name__} is computed in Python, which the {keras.backend.backend()} backend does not "
                "run at each step: use one of keras.optimizers.schedules"
            )
        return without_axes(rate(self._memory.number(value_of(count_of(self)))))

    def take_step(self, grads: Any, variables: Any) -> None:
        """See `Hooked.take_step`."""
        attachment = self._attach()
        if attachment is None:
            forget(count_of(self))
            return self._step_of_keras(grads, variables)
        attachment.step(grads, variables)

    @memory.untraced
    def _attach(self) -> Attachment | None:
        """The core on Keras's memory; None where Keras's own update must run."""
        attachment = self._attachment
        if attachment is None or self._is_overridden() or not attachment.is_current() or in_stateless_scope():
            self._attachment = None
            try:
                self._attachment = self._new_attachment()
            except Unsupported as reason:
                self._explain(str(reason))
        return self._attachment

    def _new_attachment(self) -> Attachment:
        if self._memory is None:
            raise Unsupported(_no_memory())
        if in_stateless_scope():
            raise Unsupported("a stateless scope holds values, not variables")
        if self._is_overridden():
            names = ", ".join(self._overridden())
            raise Unsupported(f"a subclass, a mixin or the optimizer itself has {names} of its own")
        return Attachment(self, self._memory)

    def _explain(self, reason: str) -> None:
        """Say once why the fused pass does not run; refuse where no other does what was asked for."""
        if self._formats.needed:
            raise RuntimeError(
                f"{type(self).__name__}: {self._formats.needed[0]} is for the fused update only: {reason}"
            )
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{type(self).__name__}: Keras's own update runs instead of the fused one: {reason}", stacklevel=8
            )
