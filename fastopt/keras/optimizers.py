"""Keras's optimizers with fastopt's fused step, registered as ``fastopt>Adam`` and so on.

Each is a subclass of Keras's class of the same name: arguments, config, variables and their order are Keras's, so a
saved state moves freely between the two. See `fastopt.keras.fused.Fused` for what is different.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import keras

from .. import optimizers
from ..schedules import base as schedules
from ..signatures import FORMAT, common_arguments
from ._keras import COUNTERS, SLOTS
from .fused import Fused


def _fused(name: str) -> Any:
    """The Keras class of a name with the fused step."""
    original = getattr(keras.optimizers, name)
    members = {
        "__module__": __name__,
        "__init__": _with_formats(original.__init__),
        "__doc__": f"`keras.optimizers.{name}` with the fused step of `fastopt.{name}`.",
        "_core_class": getattr(optimizers, name),
        "_slot_attributes": SLOTS[name],
        "_counter_attributes": COUNTERS.get(name, {}),
    }
    kind = type(name, (Fused, original), members)
    return keras.saving.register_keras_serializable("fastopt", name)(kind)


def _with_formats(init: Any) -> Any:
    """An ``__init__`` with the arguments that say how parameters and state are kept, too, by keyword."""

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        Fused.__init__(self, *args, **kwargs)

    own, common = inspect.signature(init), inspect.signature(common_arguments).parameters
    *others, rest = own.parameters.values()
    __init__.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[*others, *(common[key] for key in FORMAT), rest]
    )
    return __init__


SGD = _fused("SGD")
RMSprop = _fused("RMSprop")
Adagrad = _fused("Adagrad")
Adadelta = _fused("Adadelta")
Adam = _fused("Adam")
AdamW = _fused("AdamW")
Adamax = _fused("Adamax")
Nadam = _fused("Nadam")
Lion = _fused("Lion")
Ftrl = _fused("Ftrl")
Lamb = _fused("Lamb")
Adafactor = _fused("Adafactor")
Muon = _fused("Muon")
ScheduleFreeAdamW = _fused("ScheduleFreeAdamW")

for _schedule in schedules.KNOWN.values():  # so that a saved model finds the schedule of its optimizer
    keras.saving.register_keras_serializable("fastopt")(_schedule)
