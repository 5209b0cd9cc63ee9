"""Keras 1.0.2, 2.2.4 and 2.3.1 in plain NumPy, and what those releases computed, to judge the eras by.

The rules are written from the releases' sources; test_legacy.py holds them against the recorded trajectories.
"""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

ERAS = {"keras_1_0": "1.0.2", "keras_2_2": "2.2.4", "keras_2_3": "2.3.1"}
GOLDEN = Path(__file__).parents[1] / "golden" / "legacy.json"

_EPSILON = {
    "keras_1_0": {"RMSprop": 1e-6, "Adagrad": 1e-6, "Adadelta": 1e-6, "Adam": 1e-8, "Adamax": 1e-8, "Nadam": 1e-8},
    "keras_2_2": dict.fromkeys(("RMSprop", "Adagrad", "Adadelta", "Adam", "Adamax", "Nadam"), 1e-7),
}
_EPSILON["keras_2_3"] = _EPSILON["keras_2_2"]
_DEFAULTS = {
    "SGD": {"lr": 0.01, "momentum": 0.0, "nesterov": False},
    "RMSprop": {"lr": 0.001, "rho": 0.9},
    "Adagrad": {"lr": 0.01},
    "Adadelta": {"lr": 1.0, "rho": 0.95},
    "Adam": {"lr": 0.001, "beta_1": 0.9, "beta_2": 0.999, "amsgrad": False},
    "Adamax": {"lr": 0.002, "beta_1": 0.9, "beta_2": 0.999},
    "Nadam": {"lr": 0.002, "beta_1": 0.9, "beta_2": 0.999, "schedule_decay": 0.004},
}


# -- recorded ----------------------------------------------------------------------------------------------------------


class Recorded(NamedTuple):
    """What a release computed: the parameters after each step."""

    optimizer: str
    kwargs: dict
    steps: list


@functools.cache
def _recording():
    return json.loads(GOLDEN.read_text())


def params():
    """The parameters that the recordings start from."""
    return [np.array(values) for values in _recording()["params"]]


def gradients():
    """The gradients of each recorded step."""
    return [[np.array(values) for values in step] for step in _recording()["grads"]]


def recorded(era):
    """Every trajectory of an era's release."""
    cases = [case for case in _recording()["cases"] if case["version"] == ERAS[era] and "steps" in case]
    return [
        Recorded(case["optimizer"], case["kwargs"], [[np.array(p) for p in step] for step in case["steps"]])
        for case in cases
    ]


# -- computed ----------------------------------------------------------------------------------------------------------


def trajectory(era, optimizer, kwargs, params, gradients):
    """The parameters after each step of an era's optimizer."""
    settings = _DEFAULTS[optimizer] | {
        "epsilon": _EPSILON[era].get(optimizer),
        "decay": 0.0,
        "inside": era == "keras_1_0",
    }
    settings |= {{"learning_rate": "lr"}.get(key, key): value for key, value in kwargs.items()}
    clips = {key: settings.pop(key, 0.0) for key in ("clipnorm", "clipvalue")}
    rule = _RULES[optimizer](**settings)
    slots = [{} for _ in params]
    steps = []
    for iterations, grads in enumerate(gradients):
        lr = settings["lr"] * (1 / (1 + settings["decay"] * iterations))
        moved = zip(params, clipped(grads, **clips), slots, strict=True)
        params = [param - rule(grad, slot, lr, iterations + 1) for param, grad, slot in moved]
        steps.append(params)
    return steps


def clipped(grads, clipnorm=0.0, clipvalue=0.0):
    """By one norm over all gradients, then elementwise."""
    norm = np.sqrt(sum(np.sum(grad**2) for grad in grads))
    if clipnorm > 0 and norm >= clipnorm:
        grads = [grad * clipnorm / norm for grad in grads]
    return [np.clip(grad, -clipvalue, clipvalue) for grad in grads] if clipvalue > 0 else grads


def _sgd(lr, momentum, nesterov, **_):
    def step(g, slot, lr, t):
        slot["m"] = m = momentum * slot.get("m", 0) - lr * g
        return -(momentum * m - lr * g) if nesterov else -m

    return step


def _rmsprop(rho, epsilon, inside, **_):
    def step(g, slot, lr, t):
        slot["a"] = a = rho * slot.get("a", 0) + (1 - rho) * g**2
        return lr * g / _root(a, epsilon, inside)

    return step


def _adagrad(epsilon, inside, **_):
    def step(g, slot, lr, t):
        slot["a"] = a = slot.get("a", 0) + g**2
        return lr * g / _root(a, epsilon, inside)

    return step


def _adadelta(rho, epsilon, **_):
    def step(g, slot, lr, t):
        slot["a"] = a = rho * slot.get("a", 0) + (1 - rho) * g**2
        update = g * np.sqrt(slot.get("d", 0) + epsilon) / np.sqrt(a + epsilon)
        slot["d"] = rho * slot.get("d", 0) + (1 - rho) * update**2
        return lr * update

    return step


def _adam(beta_1, beta_2, epsilon, amsgrad, **_):
    def step(g, slot, lr, t):
        m, v = _moments(slot, g, beta_1, beta_2)
        if amsgrad:
            slot["vhat"] = v = np.maximum(slot.get("vhat", 0), v)
        return lr * np.sqrt(1 - beta_2**t) / (1 - beta_1**t) * m / (np.sqrt(v) + epsilon)

    return step


def _adamax(beta_1, beta_2, epsilon, **_):
    def step(g, slot, lr, t):
        m, _ = _moments(slot, g, beta_1, beta_2)
        slot["u"] = u = np.maximum(beta_2 * slot.get("u", 0), np.abs(g))
        return lr / (1 - beta_1**t) * m / (u + epsilon)

    return step


def _nadam(beta_1, beta_2, epsilon, schedule_decay, **_):
    def momentum(t):
        return beta_1 * (1 - 0.5 * 0.96 ** (t * schedule_decay))

    def step(g, slot, lr, t):
        m, v = _moments(slot, g, beta_1, beta_2)
        product = np.prod([momentum(k) for k in range(1, t + 1)])
        m_bar = (1 - momentum(t)) * g / (1 - product) + momentum(t + 1) * m / (1 - product * momentum(t + 1))
        return lr * m_bar / (np.sqrt(v / (1 - beta_2**t)) + epsilon)

    return step


def _moments(slot, g, beta_1, beta_2):
    slot["m"] = beta_1 * slot.get("m", 0) + (1 - beta_1) * g
    slot["v"] = beta_2 * slot.get("v", 0) + (1 - beta_2) * g**2
    return slot["m"], slot["v"]


def _root(a, epsilon, inside):
    return np.sqrt(a + epsilon) if inside else np.sqrt(a) + epsilon


_RULES = {
    "SGD": _sgd, "RMSprop": _rmsprop, "Adagrad": _adagrad, "Adadelta": _adadelta, "Adam": _adam, "Adamax": _adamax,
    "Nadam": _nadam,
}  # fmt: skip
