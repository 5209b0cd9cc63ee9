"""What fastopt uses of Keras that Keras does not document: all of it, each with the reason why.

Keras documents how an optimizer is used, and of its inside `update_step` alone: no way to have a pass in the place of
all updates, nor to learn in which variables the state is. Without the hooks there is no fused pass, and importing
`fastopt.keras` says so in one sentence; for whatever else is missing, Keras's own update runs, and a warning says why.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import keras

KNOWN = "3.15"
"""Versions of Keras that all of this was seen to work with; pyproject.toml says so too."""


def _without(what: str) -> str:
    return f"Keras {keras.__version__} has no {what}, as Keras {KNOWN} has, which fastopt.keras is known to work with"


# -- where Keras asks --------------------------------------------------------------------------------------------------

for _name in ("_backend_apply_gradients", "_get_current_learning_rate"):
    if not hasattr(keras.optimizers.Optimizer, _name):
        raise ImportError(f"{_without(f'keras.optimizers.Optimizer.{_name}')}: install that")

try:
    # A scope can be entered by its public name, `keras.StatelessScope`, and nothing public says whether one was.
    from keras.src.backend.common.stateless_scope import in_stateless_scope as in_stateless_scope
except ImportError as _error:
    raise ImportError(f"{_without('in_stateless_scope')}: install that") from _error


class Hooked:
    """Base of a mixin before a Keras optimizer class: what Keras calls there, under names of fastopt's own.

    Keras's public `apply` also counts and checks, which is to stay: these are the innermost methods that leave it.
    """

    def current_rate(self) -> Any:
        """The learning rate of the next step, as Keras takes it."""
        raise NotImplementedError

    def take_step(self, grads: Any, variables: Any) -> None:
        """All that a step does between Keras's checks and its count."""
        raise NotImplementedError

    def _get_current_learning_rate(self) -> Any:
        return self.current_rate()

    def _backend_apply_gradients(self, grads: Any, trainable_variables: Any) -> None:
        self.take_step(grads, trainable_variables)

    def _rate_of_keras(self) -> Any:
        """Return what Keras's own class gives as `current_rate`."""
        return super()._get_current_learning_rate()  # type: ignore[misc]

    def _step_of_keras(self, grads: Any, variables: Any) -> None:
        """Do what Keras's own class does in `take_step`."""
        super()._backend_apply_gradients(grads, variables)  # type: ignore[misc]

    @classmethod
    def _behind(cls) -> tuple[Any, ...]:
        """Return what mixins after this one would hide."""
        behind: Any = super()
        return behind._backend_apply_gradients, behind.learning_rate


BEHIND = ("_backend_apply_gradients", "learning_rate")
"""Names of what `Hooked._behind` gives."""

REPLACED = (
    # what BaseOptimizer._backend_apply_gradients calls, and what that calls
    "_get_variable_index", "_var_key", "_clip_gradients", "_clip_by_norm", "_apply_weight_decay", "_use_weight_decay",
    "learning_rate", "iterations", "_backend_update_step", "update_step", "assign", "assign_add", "assign_sub",
    "_backend_increment_gradient_accumulators", "_backend_reset_gradient_accumulators",
    "_update_model_variables_moving_average", "_overwrite_model_variables_with_average_value",
    # what the update_step of Adafactor, and of Muon, calls
    "_rms",
    "_should_use_adamw", "_adamw_update_step", "_muon_update_step", "zeropower_via_newtonschulz5",
    "transpose_last_axis", "lr_adjust",
)  # fmt: skip
"""Methods and properties of Keras's optimizers in whose place the fused pass works: it calls none of them."""

WRITERS = ("assign", "assign_add", "assign_sub", "_direct_assign")
"""Methods of Keras's variables that write to them: the last is what the others call."""

# -- what an optimizer holds -------------------------------------------------------------------------------------------

HELD = (
    "_trainable_variables", "_model_variables_moving_average", "_accumulated_gradients",
    "_exclude_from_weight_decay_cache",
)  # fmt: skip
"""What Keras makes anew when an optimizer is built, or weights are excluded from decay, again."""

EXCLUSIONS = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")
"""What `exclude_from_weight_decay` sets, and Keras's configs leave out."""

_MOMENTS = {"momentum": "_momentums", "velocity": "_velocities"}
_AMSGRAD = {**_MOMENTS, "velocity_hat": "_velocity_hats"}

SLOTS = {
    "SGD": {"momentum": "momentums"},
    "RMSprop": {**_MOMENTS, "average_gradient": "_average_gradients"},
    "Adagrad": {"accumulator": "_accumulators"},
    "Adadelta": {"accumulated_grad": "_accumulated_grads", "accumulated_delta_var": "_accumulated_delta_vars"},
    "Adam": _AMSGRAD,
    "AdamW": _AMSGRAD,
    "Adamax": {"momentum": "_m", "norm": "_u"},
    "Nadam": _MOMENTS,
    "Lion": {"momentum": "_momentums"},
    "Ftrl": {"accumulator": "_accumulators", "linear": "_linears"},
    "Lamb": _MOMENTS,
    "Adafactor": {"row": "_r", "column": "_c", "velocity": "_v"},
    "Muon": {"momentum": "momentums", "velocity": "adam_velocities"},
    "ScheduleFreeAdamW": _MOMENTS,
}
"""Class → fastopt's slot → attribute with a variable per parameter: `variables` has them in one list, unnamed."""

COUNTERS = {"Nadam": {"_running_number": "_u_product"}}
"""Class → attribute of fastopt's core → attribute with a scalar variable."""


def obstacle(optimizer: Any, counters: dict[str, str]) -> str:
    """Why the state of a built optimizer cannot be found; empty if it can."""
    needed = (
        "_trainable_variables", "_iterations", "_learning_rate", "_use_weight_decay",
        "_overwrite_variable_with_gradient", *counters.values(),
    )  # fmt: skip
    missing = [f"{type(optimizer).__name__}.{name}" for name in needed if not hasattr(optimizer, name)]
    if not (missing or all(hasattr(variable, "_value") for variable in optimizer._trainable_variables)):
        missing = ["Variable._value"]
    return _without(", ".join(missing)) if missing else ""


def trained_by(optimizer: Any) -> Any:
    """The variables that an optimizer was built for: `variables` is its own state."""
    return optimizer._trainable_variables


def averages_of(optimizer: Any) -> Any:
    """The moving averages of what it trains, if it keeps any."""
    return getattr(optimizer, "_model_variables_moving_average", ())


def accumulators_of(optimizer: Any) -> Any:
    """The sums of gradients of what it trains, if it keeps any."""
    return getattr(optimizer, "_accumulated_gradients", ())


def count_of(optimizer: Any) -> Any:
    """The variable that counts calls: the public `iterations` is divided where gradients are accumulated."""
    return optimizer._iterations


def rate_of(optimizer: Any) -> Any:
    """The learning rate's variable, schedule or function: the public `learning_rate` is a number of now."""
    return optimizer._learning_rate


def rate_now(optimizer: Any) -> Any:
    """The learning rate of the next step, as Keras asks for it, and whoever overrides that."""
    return optimizer._get_current_learning_rate()


def decays(optimizer: Any, variable: Any) -> bool:
    """Whether a variable decays: `exclude_from_weight_decay` can be called, and not asked."""
    return optimizer._use_weight_decay(variable)


def is_overwritten(optimizer: Any, variable: Any) -> bool:
    """Whether a variable's gradient is its next value. A variable says so in public; this is what Keras goes by."""
    return optimizer._overwrite_variable_with_gradient(variable)


# -- what a variable holds ---------------------------------------------------------------------------------------------

value_of: Callable[[Any], Any] = operator.attrgetter("_value")
"""The array or tensor itself: the public `value` looks for scopes each time, and may cast."""


def set_value(variable: Any, value: Any) -> None:
    """Have a variable of the NumPy backend hold another array: `assign` may copy into the one it has."""
    variable._value = value


def setting_value(variable: Any, value: Any) -> Callable[[], Any]:
    """The same to be called later, as a C function, which no signal interrupts."""
    return partial(operator.setitem, vars(variable), "_value", value)
