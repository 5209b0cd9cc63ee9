"""optax, compiled by XLA in one function with clipping and averaging, which is given its memory back (donation)."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from ...kernels.cpu.launch import get_num_threads
from ..cases import Case
from ..memory import Array
from ..problem import Problem
from ..recipes import RATE
from .base import Peer

Hyper = dict[str, Any]


def _betas(h: Hyper) -> dict[str, float]:
    return {"b1": h["beta_1"], "b2": h["beta_2"], "eps": h["epsilon"]}


MAKERS: dict[str, Callable[[Any, Hyper], Any]] = {
    "SGD": lambda optax, h: optax.sgd(h["learning_rate"], h["momentum"] or None, h["nesterov"]),
    "RMSprop": lambda optax, h: optax.rmsprop(
        h["learning_rate"], h["rho"], h["epsilon"], centered=h["centered"], momentum=h["momentum"] or None
    ),
    "Adagrad": lambda optax, h: optax.adagrad(h["learning_rate"], h["initial_accumulator_value"], h["epsilon"]),
    "Adadelta": lambda optax, h: optax.adadelta(h["learning_rate"], h["rho"], h["epsilon"]),
    "Adam": lambda optax, h: optax.adam(h["learning_rate"], **_betas(h)),
    "AdamW": lambda optax, h: optax.adamw(h["learning_rate"], **_betas(h), weight_decay=h["weight_decay"]),
    "Adamax": lambda optax, h: optax.adamax(h["learning_rate"], **_betas(h)),
    "Lion": lambda optax, h: optax.lion(h["learning_rate"], h["beta_1"], h["beta_2"], weight_decay=0.0),
    "Lamb": lambda optax, h: optax.lamb(h["learning_rate"], **_betas(h)),
}
"""By fastopt's names. What is not here optax does not have, or with another formula."""


MOMENTS = {"momentum": ("mu", 1.0), "velocity": ("nu", 1.0)}
SLOTS = {
    "SGD": {"momentum": ("trace", -RATE)},
    "RMSprop": {"velocity": ("nu", 1.0), "momentum": ("trace", -1.0)},
    "Adagrad": {"accumulator": ("sum_of_squares", 1.0)},
    "Adadelta": {"accumulated_grad": ("e_g", 1.0), "accumulated_delta_var": ("e_x", 1.0)},
    "Adamax": {"momentum": ("mu", 1.0), "norm": ("nu", 1.0)},
}
"""Class → fastopt's name of a slot → optax's, and the factor between them; `MOMENTS` for all others."""


class Optax(Peer):
    """An optimizer of optax under ``jax.jit``."""

    name = "optax"
    package = "optax"
    arrays_beside = 1.0

    def __init__(self, problem: Problem) -> None:
        import jax

        super().__init__(problem)
        self._jax = jax
        both = problem.params, problem.grads
        self._params, self._grads = ([jax.numpy.array(array) for array in arrays] for arrays in both)
        self._average = [array.copy() for array in self._params] if self.case.options.ema is not None else []
        transformation = self._transformation()
        self._state = transformation.init(self._params)
        self._first = True
        self._compiled = jax.jit(self._function(transformation), donate_argnums=(0, 1, 2))

    @classmethod
    def missing(cls) -> str | None:
        return None if importlib.util.find_spec("jax") and not super().missing() else "optax is not installed"

    @classmethod
    def lacks(cls, case: Case) -> str | None:
        if case.rule.optimizer not in MAKERS or case.rule.hyper.get("amsgrad"):
            return f"optax has no {case.recipe} of the same formula"
        if get_num_threads() != os.cpu_count():
            return "JAX takes all cores"
        if case.dtype != "float32":
            return "JAX needs a setting of the whole process for float64"
        return "a compiled function for each of many groups" if case.groups else None

    def _transformation(self) -> Any:
        import optax

        stack = self.case.options
        clip = [optax.clip_by_global_norm(stack.clip)] if stack.clip is not None else []
        return optax.chain(*clip, MAKERS[self.case.rule.optimizer](optax, self.case.rule.hyper))

    def _function(self, transformation: Any) -> Callable[..., Any]:
        import optax

        stack, tree_map = self.case.options, self._jax.tree.map

        def step(params: Any, state: Any, average: Any, grads: Any, keep: Any) -> Any:
            if stack.scale is not None:
                grads = tree_map(lambda grad: grad / stack.scale, grads)
            updates, state = transformation.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            if stack.ema is not None:
                average = tree_map(lambda old, new: keep * old + (1 - keep) * new, average, params)
            return params, state, average

        return step

    def step(self) -> None:
        """One step, waited for. Gradients need not be zeroed: JAX makes new ones."""
        keep = 0.0 if self._first else self.case.options.ema or 0.0
        self._first = False
        done = self._compiled(self._params, self._state, self._average, self._grads, keep)
        self._params, self._state, self._average = self._jax.block_until_ready(done)

    def renew(self, k: int) -> None:
        grads = [np.empty_like(grad) for grad in self.problem.grads]
        self.problem.renew(grads, k)
        self._grads = self._jax.block_until_ready([self._jax.numpy.asarray(grad) for grad in grads])

    def params(self) -> list[Array]:
        return [np.asarray(param) for param in self._params]

    def slots(self) -> dict[str, list[Array]]:
        import optax

        found = {}
        for name, (key, factor) in SLOTS.get(self.case.rule.optimizer, MOMENTS).items():
            arrays = optax.tree_utils.tree_get(self._state, key)
            if arrays is not None:
                found[name] = [factor * np.asarray(array) for array in arrays]
        return found | ({"average": [np.asarray(array) for array in self._average]} if self._average else {})
