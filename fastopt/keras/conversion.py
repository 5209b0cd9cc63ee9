"""Keras's own optimizers, such as a loaded model has, turned into fastopt's."""

from __future__ import annotations

from typing import Any

import keras

from . import optimizers
from ._keras import EXCLUSIONS, REPLACED, rate_of, trained_by
from .fused import Fused


def from_keras(optimizer: Any) -> Any:
    """fastopt's optimizer in place of one of Keras's: the same config, state and counters, and the fused step.

    >>> model = keras.models.load_model("model.keras")  # doctest: +SKIP
    >>> model.compile(optimizer=fastopt.keras.from_keras(model.optimizer), loss="mse")  # doctest: +SKIP

    Training goes on where it was. ``load_model(path, custom_objects={"Adam": fastopt.keras.Adam})`` does the same for
    some files only: Keras looks up the name of a class in ``custom_objects`` where it has written a registered name,
    which it does not for its own classes, except for nine (SGD, RMSprop, the Ada and Adam families, Nadam, Lion) on
    its torch backend.

    Parameters
    ----------
    optimizer : keras.optimizers.Optimizer
        Of one of Keras's own classes, built or not; it is left as it is. A `keras.optimizers.LossScaleOptimizer` gets
        another inner optimizer, and is returned itself. One of fastopt's is returned as it is.

    Returns
    -------
    keras.optimizers.Optimizer
        For the same variables, which both optimizers then hold: go on with one of them.

    Raises
    ------
    TypeError
        If it is no optimizer of Keras's, or has methods of its own, which the fused step would not call.
    """
    if isinstance(optimizer, Fused):
        return optimizer
    if type(optimizer) is keras.optimizers.LossScaleOptimizer:
        optimizer.inner_optimizer = from_keras(optimizer.inner_optimizer)
        return optimizer
    kind, config = _counterpart(optimizer), optimizer.get_config()
    if not isinstance(rate_of(optimizer), keras.Variable):
        config["learning_rate"] = rate_of(optimizer)
    made = kind(**config)
    for name in EXCLUSIONS:
        if hasattr(optimizer, name):
            setattr(made, name, getattr(optimizer, name))
    if optimizer.built:
        made.build(trained_by(optimizer))
        for variable, original in zip(made.variables, optimizer.variables, strict=True):
            variable.assign(original)
    return made


def _counterpart(optimizer: Any) -> Any:
    """fastopt's class of the name of a class of Keras's own."""
    original = type(optimizer)
    is_kerass = original.__module__.partition(".")[0] == "keras"  # for each backend there may be another class
    if not is_kerass or not hasattr(optimizers, original.__name__):
        raise TypeError(
            f"{original.__module__}.{original.__qualname__} is not one of Keras's optimizers that fastopt has too: "
            "give one of keras.optimizers, such as Adam; or derive your own class from fastopt.keras.Adam instead"
        )
    own = [name for name in REPLACED if name in vars(optimizer)]
    if own:
        raise TypeError(f"this {original.__name__} has {', '.join(own)} of its own, which a fused step does not call")
    return getattr(optimizers, original.__name__)
