"""Keras's optimizers with fastopt's fused step, registered as ``fastopt>Adam`` and so on.

Each is a subclass of Keras's class of the same name: arguments, config, variables and their order are Keras's, so a
saved state moves freely between the two. See `fastopt.keras.fused.Fused` for what is different.
"""

from __future__ import annotations

from typing import Any

import keras

from .. import optimizers
from ..schedules import base as schedules
from .fused import Fused


def _fused(name: str, slots: dict[str, str], counters: dict[str, str] | None = None) -> Any:
    """The Keras class of a name with the fused step.

    ``slots`` and ``counters`` say which attribute of Keras's class holds which slot and which number of fastopt's.
    """
    members = {
        "__module__": __name__,
        "__doc__": f"`keras.optimizers.{name}` with the fused step of `fastopt.{name}`.",
        "_engine_class": getattr(optimizers, name),
        "_slot_attributes": slots,
        "_counter_attributes": counters or {},
    }
    kind = type(name, (Fused, getattr(keras.optimizers, name)), members)
    return keras.saving.register_keras_serializable("fastopt", name)(kind)


_MOMENTS = {"momentum": "_momentums", "velocity": "_velocities"}
_AMSGRAD = {**_MOMENTS, "velocity_hat": "_velocity_hats"}
_DELTAS = {"accumulated_grad": "_accumulated_grads", "accumulated_delta_var": "_accumulated_delta_vars"}

SGD = _fused("SGD", {"momentum": "momentums"})
RMSprop = _fused("RMSprop", {**_MOMENTS, "average_gradient": "_average_gradients"})
Adagrad = _fused("Adagrad", {"accumulator": "_accumulators"})
Adadelta = _fused("Adadelta", _DELTAS)
Adam = _fused("Adam", _AMSGRAD)
AdamW = _fused("AdamW", _AMSGRAD)
Adamax = _fused("Adamax", {"momentum": "_m", "norm": "_u"})
Nadam = _fused("Nadam", _MOMENTS, {"_u_product": "_u_product"})
Lion = _fused("Lion", {"momentum": "_momentums"})
Ftrl = _fused("Ftrl", {"accumulator": "_accumulators", "linear": "_linears"})
Lamb = _fused("Lamb", _MOMENTS)
Adafactor = _fused("Adafactor", {"row": "_r", "column": "_c", "velocity": "_v"})
Muon = _fused("Muon", {"momentum": "momentums", "velocity": "adam_velocities"})
ScheduleFreeAdamW = _fused("ScheduleFreeAdamW", _MOMENTS)

for _schedule in schedules.KNOWN.values():  # so that a saved model finds the schedule of its optimizer
    keras.saving.register_keras_serializable("fastopt")(_schedule)
