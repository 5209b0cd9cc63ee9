"""Runs the real Keras 3 optimizers, NumPy backend, in float32.

Keras takes every shape of the table, 0-d and empty ones too, and gives finite numbers. Its warnings are silenced here:
- global_clipnorm divides by zero when all gradients are zero; the factor becomes 1, as it should;
- Lamb (0/0) and Adafactor (mean of an empty slice) warn on empty parameters: the NaN only ever multiplies nothing;
- building ScheduleFreeAdamW converts a variable without NumPy 2's `copy` keyword.
Adafactor keeps NaN in the slots of factored empty arrays such as (0, 5); no row of the table has one.

The torch backend would not do: there, ScheduleFreeAdamW of Keras 3.15 reads the old z after it has overwritten it.
"""

import os
import sys
import warnings
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType

import numpy as np

SLOT_NAMES = {
    "momentum", "velocity", "velocity_hat", "average_gradient", "accumulator", "norm", "linear",
    "accumulated_grad", "accumulated_delta_var", "average", "gradient_accumulator",
}  # fmt: skip


def run(name, kwargs, params, grads_per_step, paths=None, undecayed=(), recorded=None):
    """The parameters after each recorded step (from 1; default all), then {slot name: [array or None per parameter]}.

    `learning_rate` may be (schedule name, arguments); `undecayed` holds indices of parameters without weight decay.
    """
    paths = paths or [str(index) for index in range(len(params))]
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        return _run(name, kwargs, params, grads_per_step, paths, undecayed, recorded)


def _run(name, kwargs, params, grads_per_step, paths, undecayed, recorded):
    keras = import_keras()
    variables = [keras.Variable(param, name=path, dtype="float32") for param, path in zip(params, paths, strict=True)]
    optimizer = getattr(keras.optimizers, name)(**_with_schedule(keras, kwargs))
    if undecayed:
        optimizer.exclude_from_weight_decay(var_list=[variables[index] for index in undecayed])
    optimizer.build(variables)
    steps = []
    for number, grads in enumerate(grads_per_step, 1):
        optimizer.apply(list(grads))
        if recorded is None or number in recorded:
            steps.append([np.array(variable.value) for variable in variables])
    return steps, _slots(optimizer, paths)


def import_keras():
    os.environ.setdefault("KERAS_BACKEND", "numpy")
    with _jax_if_missing():
        import keras
    if keras.backend.backend() != "numpy":
        raise RuntimeError(f"the Keras reference needs KERAS_BACKEND=numpy, not {keras.backend.backend()}")
    return keras


@contextmanager
def _jax_if_missing():
    """The NumPy backend of Keras 3.15 imports jax, for convolutions and Fourier transforms: an empty one will do."""
    if "keras" in sys.modules or find_spec("jax"):
        yield
        return
    stand_ins = {name: ModuleType(name) for name in ("jax", "jax.lax", "keras.src.backend.jax.math")}
    stand_ins["jax"].lax, stand_ins["jax"].monitoring = stand_ins["jax.lax"], ModuleType("jax.monitoring")
    stand_ins["keras.src.backend.jax.math"].fft = stand_ins["keras.src.backend.jax.math"].fft2 = None
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


def _with_schedule(keras, kwargs):
    if not isinstance(kwargs.get("learning_rate"), tuple):
        return kwargs
    schedule, arguments = kwargs["learning_rate"]
    return kwargs | {"learning_rate": getattr(keras.optimizers.schedules, schedule)(**arguments)}


def _slots(optimizer, paths):
    found = {}
    for variable in optimizer.variables:
        for index, path in enumerate(paths):
            slot = variable.name.removeprefix(f"{path}_")
            if slot != variable.name and slot in SLOT_NAMES:
                found.setdefault(slot, [None] * len(paths))[index] = np.array(variable.value)
    if type(optimizer).__name__ == "Adafactor":
        _add_factors(optimizer, found)
    return found


def _add_factors(optimizer, found):
    """Adafactor's row and column factors have no names; its `velocity` of a matrix is only their product."""
    for slot, factors in (("row", optimizer._r), ("column", optimizer._c)):
        found[slot] = [np.array(factor.value) if factor.shape else None for factor in factors]
    found["velocity"] = [array if array.ndim < 2 else None for array in found["velocity"]]
