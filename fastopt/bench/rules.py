"""Every optimizer in plain NumPy, written from its source: in float64 the judge of all sides, in float32 a peer.

A rule changes a parameter and its slots in place, for update ``t`` (from 1). ``h`` are the hyper-parameters of a
recipe. Slots are zero at first, but for those in `INITIAL`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .memory import Array

Slots = dict[str, Array]
Hyper = dict[str, Any]
Rule = Callable[[Array, Array, Slots, Hyper, int], None]


def _follow(average: Array, value: Array, keep: float) -> None:
    average *= keep
    average += (1 - keep) * value


def sgd(param: Array, grad: Array, slots: Slots, h: Hyper, t: int) -> None:
    """Momentum: Polyak 1964; Nesterov's: Sutskever et al. 2013."""
    rate, momentum = h["learning_rate"], h["momentum"]
    if not momentum:
        param -= rate * grad
        return
    velocity = slots["momentum"]
    velocity *= momentum
    velocity -= rate * grad
    param += momentum * velocity - rate * grad if h["nesterov"] else velocity


def rmsprop(param: Array, grad: Array, slots: Slots, h: Hyper, t: int) -> None:
    """Tieleman & Hinton 2012; centered: Graves 2013."""
    _follow(slots["velocity"], grad * grad, h["rho"])
    variance = slots["velocity"]
    if h["centered"]:
        mean = slots["average_gradient"]
        _follow(mean, grad, h["rho"])
        variance = variance - mean * mean
    update = h["learning_rate"] * grad / np.sqrt(variance + h["epsilon"])
    if h["momentum"]:
        slots["momentum"] *= h["momentum"]
        slots["momentum"] += update
        update = slots["momentum"]
    param -= update


def adagrad(param: Array, grad: Array, slots: Slots, h: Hyper, t: int) -> None:
    """Duchi et al. 2011."""
    slots["accumulator"] += grad * grad
    param -= h["learning_rate"] * grad / np.sqrt(slots["accumulator"] + h["epsilon"])


def adadelta(param: Array, grad: Array, slots: Slots, h: Hyper, t: int) -> None:
    """Zeiler 2012."""
    squares, deltas = slots["accumulated_grad"], slots["accumulated_delta_var"]
    _follow(squares, grad * grad, h["rho"])
    delta = np.sqrt((deltas + h["epsilon"]) / (squares + h["epsilon"])) * grad
    _follow(deltas, delta * delta, h["rho"])
    param -= h["learning_rate"] * delta


def adam(param: Array, grad: Array, slots: Slots, h: Hyper, t: int) -> None:
    """Kingma & Ba 2014; AMSGrad: Reddi et al. 2018; decay: Loshchilov & Hutter 2017."""
    velocity = _moments(grad, slots, h)
    if h["amsgrad"]:
        velocity = np.maximum(slots["velocity_hat"], velocity, out=slots["velocity_hat"])
    param *= 1 - h["learning_rate"] * h.get("weight_decay", 0.0)
    alpha = h["learning_rate"] * math.sqrt(1 - h["beta_2"] ** t) / (1 - h["beta_1"] ** t)
    param -= alpha * slots["momentum"] / (np.sqrt(velocity) + h["epsilon"])


def _moments(grad: Array, slots: Slots, h: Hyper) -> Array:
    _follow(slots["momentum"], grad, h["beta_1"])
    _follow(slots["velocity"], grad * grad, h["beta_2"])
    return slots["velocity"]


def adamax(param: Array, grad: Array, slots: Slots, h: Hyper, t: int) -> None:
    """Kingma & Ba 2014, section 7.1."""
    _follow(slots["momentum"], grad, h["beta_1"])
    slots["norm"] *= h["beta_2"]
    np.maximum(slots["norm"], np.abs(grad), out=slots["norm"])
    rate = h["learning_rate"] / (1 - h["beta_1"] ** t)
    param -= rate * slots["momentum"] / (slots["norm"] + h["epsilon"])


def nadam(param: Array, grad: Array, slots: Slots, h: Hyper, t: int) -> None:
    """Dozat 2016."""
    velocity = _moments(grad, slots, h)
    now, then, product = _share(h["beta_1"], t), _share(h["beta_1"], t + 1), _shares(h["beta_1"], t)
    ahead = then / (1 - product * then) * slots["momentum"] + (1 - now) / (1 - product) * grad
    param -= h["learning_rate"] * ahead / (np.sqrt(velocity / (1 - h["beta_2"] ** t)) + h["epsilon"])


def _share(beta_1: float, t: int) -> float:
    return float(beta_1 * (1 - 0.5 * 0.96**t))


@functools.lru_cache(maxsize=8)
def _shares(beta_1: float, t: int) -> float:
    """Their product up to ``t``, from the last one asked for."""
    return 1.0 if t == 0 else _shares(beta_1, t - 1) * _share(beta_1, t)


def lion(param: Array, grad: Array, slots: Slots, h: Hyper, t: int) -> None:
    """Chen et al. 2023."""
    momentum = slots["momentum"]
    param -= h["learning_rate"] * np.sign(h["beta_1"] * momentum + (1 - h["beta_1"]) * grad)
    _follow(momentum, grad, h["beta_2"])


def ftrl(param: Array, grad: Array, slots: Slots, h: Hyper, t: int) -> None:
    """McMahan et al. 2013, with the power -1/2 and no regularisation."""
    accumulator, linear = slots["accumulator"], slots["linear"]
    before = np.sqrt(accumulator)
    accumulator += grad * grad
    root = np.sqrt(accumulator)
    linear += grad - (root - before) / h["learning_rate"] * param
    np.divide(-h["learning_rate"] * linear, root, out=param)


def schedule_free_adamw(param: Array, grad: Array, slots: Slots, h: Hyper, t: int) -> None:
    """Defazio et al. 2024; the parameter is y, the slot ``momentum`` z."""
    fast, velocity, share = slots["momentum"], slots["velocity"], h["beta_1"]
    _follow(velocity, grad * grad, h["beta_2"])
    mean = (param - (1 - share) * fast) / share
    fast -= h["learning_rate"] * grad / (np.sqrt(velocity / (1 - h["beta_2"] ** t)) + h["epsilon"])
    mean += (fast - mean) / t
    np.add((1 - share) * fast, share * mean, out=param)


def lamb(param: Array, grad: Array, slots: Slots, h: Hyper, t: int) -> None:
    """You et al. 2019, without its decay."""
    velocity = _moments(grad, slots, h)
    root = np.sqrt(velocity / (1 - h["beta_2"] ** t)) + h["epsilon"]
    update = slots["momentum"] / (1 - h["beta_1"] ** t) / root
    over, under = np.linalg.norm(param), np.linalg.norm(update)
    trust = float(over / under) if over > 0 and under > 0 else 1.0
    param -= trust * h["learning_rate"] * update


def adafactor(param: Array, grad: Array, slots: Slots, h: Hyper, t: int) -> None:
    """Shazeer & Stern 2018, algorithms 4 and 5, with its default hyper-parameters."""
    squares, keep = grad * grad + 1e-30, 1 - t**-0.8
    if param.ndim < 2:
        _follow(slots["velocity"], squares, keep)
        variance = slots["velocity"]
    else:
        row, column = slots["row"], slots["column"]
        _follow(row, squares.mean(axis=-1), keep)
        _follow(column, squares.mean(axis=-2), keep)
        variance = (row / row.mean(axis=-1, keepdims=True))[..., None] * column[..., None, :]
    update = grad / np.sqrt(variance)
    update /= max(1.0, _rms(update))
    param -= max(1e-3, _rms(param)) * min(h["learning_rate"], 1 / math.sqrt(t)) * update


def _rms(array: Array) -> float:
    return math.sqrt(float(np.mean(array * array)))


def muon(param: Array, grad: Array, slots: Slots, h: Hyper, t: int) -> None:
    """Jordan et al. 2024, with Keras's default hyper-parameters; all but matrices by Adam."""
    param *= 1 - h["learning_rate"] * 0.004
    if param.ndim != 2:
        adam(param, grad, slots, h | {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7, "amsgrad": False}, t)
        return
    momentum = slots["momentum"]
    momentum *= 0.95
    momentum += grad
    param -= h["learning_rate"] * 0.2 * math.sqrt(max(param.shape)) * _orthogonal(grad + 0.95 * momentum)


def _orthogonal(matrix: Array) -> Array:
    """Five steps of a Newton-Schulz iteration, which push the singular values towards 1."""
    if matrix.shape[0] > matrix.shape[1]:
        return _orthogonal(matrix.T).T
    matrix = matrix / (np.linalg.norm(matrix) + matrix.dtype.type(1e-7))
    for _ in range(5):
        square = matrix @ matrix.T
        matrix = 3.4445 * matrix + (-4.7750 * square + 2.0315 * square @ square) @ matrix
    return matrix


RULES: dict[str, Rule] = {
    "SGD": sgd,
    "RMSprop": rmsprop,
    "Adagrad": adagrad,
    "Adadelta": adadelta,
    "Adam": adam,
    "AdamW": adam,
    "Adamax": adamax,
    "Nadam": nadam,
    "Lion": lion,
    "Ftrl": ftrl,
    "ScheduleFreeAdamW": schedule_free_adamw,
    "Lamb": lamb,
    "Adafactor": adafactor,
    "Muon": muon,
}
"""By the names of fastopt's classes."""

INITIAL = {"accumulator": 0.1}
"""What slots are filled with, but for zeros."""


def slots_of(optimizer: str, h: Hyper, param: Array) -> Slots:
    """A rule's slots for one parameter, as they are before the first step."""
    if optimizer == "Adafactor" and param.ndim > 1:
        return {"row": np.zeros_like(param[..., 0]), "column": np.zeros_like(param[..., 0, :])}
    slots = {name: np.full_like(param, INITIAL.get(name, 0.0)) for name in _slot_names(optimizer, h, param)}
    if optimizer == "ScheduleFreeAdamW":
        slots["momentum"] = param.copy()
    return slots


def _slot_names(optimizer: str, h: Hyper, param: Array) -> tuple[str, ...]:
    moments = ("momentum", "velocity")
    by_optimizer: dict[str, tuple[str, ...]] = {
        "SGD": ("momentum",) * bool(h.get("momentum")),
        "RMSprop": ("velocity", *["momentum"] * bool(h.get("momentum")), *["average_gradient"] * h.get("centered", 0)),
        "Adagrad": ("accumulator",),
        "Adadelta": ("accumulated_grad", "accumulated_delta_var"),
        "Adam": (*moments, *["velocity_hat"] * h.get("amsgrad", 0)),
        "Adamax": ("momentum", "norm"),
        "Lion": ("momentum",),
        "Ftrl": ("accumulator", "linear"),
        "Adafactor": ("velocity",),
        "Muon": ("momentum",) if param.ndim == 2 else moments,
    }
    return by_optimizer.get(optimizer, moments)
