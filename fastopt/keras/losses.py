"""Objectives of Keras 1 and 2 that Keras 3 dropped or renamed, as Keras functions: differentiable on every backend.

Pass the function, ``model.compile(loss=fastopt.keras.losses.cosine_proximity)``: Keras looks strings up among its own.
They are registered, so saved models find them.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


def _register(function: Any) -> Any:
    return keras.saving.register_keras_serializable("fastopt")(function)


@_register
def kullback_leibler_divergence(y_true: Any, y_pred: Any) -> Any:
    """Keras 1.0.4 to 2's name of ``kl_divergence``: Σ t log(t / p) over the last axis, both clipped to [1e-7, 1]."""
    return keras.losses.kl_divergence(y_true, y_pred)


@_register
def cosine_proximity(y_true: Any, y_pred: Any) -> Any:
    """Keras 2.0.9 to 2.3: minus the cosine similarity, −Σ t̂ p̂ over the last axis."""
    return keras.losses.cosine_similarity(y_true, y_pred)


@_register
def mean_cosine_proximity(y_true: Any, y_pred: Any) -> Any:
    """Keras 1 to 2.0.8's ``cosine_proximity``: the mean −Σ t̂ p̂ / d over a last axis of d elements."""
    similarity = keras.losses.cosine_similarity(y_true, y_pred)
    return similarity / ops.cast(ops.shape(y_pred)[-1], similarity.dtype)


@_register
def logcosh(y_true: Any, y_pred: Any) -> Any:
    """Keras 2's name of ``log_cosh``."""
    return keras.losses.log_cosh(y_true, y_pred)


kld = KLD = kullback_leibler_divergence
cosine = cosine_proximity
