"""Keras's own optimizers, on its torch backend."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from ...kernels.cpu.launch import get_num_threads
from ..cases import Case
from ..memory import Array
from ..problem import Problem
from ..sides import common_options
from .base import Peer


class Keras(Peer):
    """``keras.optimizers`` with the hyper-parameters of the case, which are Keras's."""

    name = "Keras"
    package = "keras"
    arrays_beside = 2.0

    def __init__(self, problem: Problem) -> None:
        import keras
        import torch

        super().__init__(problem)
        self._torch = torch
        torch.set_num_threads(get_num_threads())
        params, self._grads = problem.copies()
        self._variables = [keras.Variable(array, dtype=self.case.dtype) for array in params]
        self._tensors = [torch.from_numpy(grad) for grad in self._grads]
        kind = getattr(self.optimizers(), self.case.rule.optimizer)
        self._optimizer = kind(**self.case.rule.hyper, **common_options(self.case))
        self._optimizer.build(self._variables)

    def optimizers(self) -> Any:
        """Return the module that has the classes."""
        import keras

        return keras.optimizers

    @classmethod
    def missing(cls) -> str | None:
        if reason := super().missing():
            return reason
        if importlib.util.find_spec("torch") is None:
            return "torch, its backend here, is not installed"
        os.environ.setdefault("KERAS_BACKEND", "torch")
        import keras

        backend = keras.backend.backend()
        return None if backend == "torch" else f"Keras is on its {backend} backend: set KERAS_BACKEND=torch"

    @classmethod
    def lacks(cls, case: Case) -> str | None:
        import keras

        if not hasattr(keras.optimizers, case.rule.optimizer):
            return f"Keras has no {case.rule.optimizer}"
        if case.dtype != "float32":
            return "Keras rounds hyper-parameters to float32"
        return "Keras has no groups of parameters" if case.groups else None

    def step(self) -> None:
        """One step."""
        with self._torch.no_grad():
            self._optimizer.apply(self._tensors)
            if self.case.options.zero_grads:
                self._torch._foreach_zero_(self._tensors)

    def renew(self, k: int) -> None:
        self.problem.renew(self._grads, k)

    def params(self) -> list[Array]:
        return [_array(variable) for variable in self._variables]

    def slots(self) -> dict[str, list[Array]]:
        # Most variables are called as fastopt's slots are.
        found: dict[str, list[Array]] = {}
        for variable in self._optimizer.variables:
            for name in (*self.case.rule.slots, "average"):
                if variable.name.endswith(f"_{name}"):
                    found.setdefault(name, []).append(_array(variable))
        return {name: arrays for name, arrays in found.items() if len(arrays) == len(self._variables)}


def _array(variable: Any) -> Array:
    array: Array = variable.value.detach().numpy()
    return array
