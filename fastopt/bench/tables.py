"""Steps of some rows of embedding tables: fastopt on arrays and on tensors, torch, and a plain loop over the rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

import fastopt.torch

from ..kernels.cpu.ceiling import RowLoop
from ..row_gradient import RowGradient
from .memory import Array

ARRAYS, TENSORS, TORCH, LOOP = "arrays", "tensors", "torch", "loop"
"""Who steps: fastopt on NumPy's arrays and on torch's tensors, torch.optim, the plain loop."""


class Case(NamedTuple):
    """A rule on a table of so many rows and columns, with so many places in its gradient."""

    rule: str
    height: int
    width: int
    places: int

    @property
    def id(self) -> str:
        """A name, unique in the table."""
        return f"rows/{self.rule}/{self.height:.0e}x{self.width}/{self.places}".replace("e+0", "e")


class Peer(NamedTuple):
    """What a rule is called: a class here, and one for tensors here and in torch; arrays that a step changes."""

    ours: str
    torchs: str
    options: dict[str, Any]
    streams: int


RULES = {
    "adam": Peer("Adam", "SparseAdam", {"learning_rate": 0.001, "epsilon": 1e-8}, 3),
    "adagrad": Peer(
        "Adagrad", "Adagrad", {"learning_rate": 0.001, "initial_accumulator_value": 0.0, "epsilon": 1e-10}, 2
    ),
    "sgd": Peer("SGD", "SGD", {"learning_rate": 0.001}, 1),
}

TABLE = [
    *(Case(rule, 1_000_000, 64, 16_384) for rule in RULES),
    *(Case(rule, 10_000_000, 16, 65_536) for rule in RULES),
    *(Case("adam", height, 16, 16_384) for height in (100_000, 1_000_000, 10_000_000)),
]
"""The last three: what a step costs must not depend on the height."""


def indices_of(case: Case, seed: int) -> Array:
    """Row numbers as words in a text have them: Zipf's law, the frequent ones anywhere."""
    rng = np.random.default_rng(seed)
    ranks = np.minimum(rng.zipf(1.15, case.places).astype(np.float64) - 1, 1e15).astype(np.int64)
    return np.asarray(rng.permutation(case.height)[ranks % case.height])


class Sides:
    """All who step, each with a table of its own; a side is called for a step, and returns the seconds it took."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        self.case, self._peer = case, RULES[case.rule]
        self._indices = indices_of(case, seed)
        rng = np.random.default_rng(seed + 1)
        self._values = rng.standard_normal((case.places, case.width), np.float32)
        self.calls: dict[str, Callable[[], float]] = {
            ARRAYS: self._on_arrays(),
            TENSORS: self._on_tensors(fastopt.torch),
            TORCH: self._on_tensors(torch.optim),
            LOOP: self._loop(),
        }

    @property
    def touched(self) -> int:
        """Rows that a step changes."""
        return len(np.unique(self._indices))

    def _new_table(self) -> Array:
        return np.full((self.case.height, self.case.width), 0.01, np.float32)

    def _on_arrays(self) -> Callable[[], float]:
        self.table = self._new_table()
        optimizer = getattr(fastopt, self._peer.ours)(**self._peer.options)
        optimizer.build([self.table])
        gradients = [RowGradient(self._indices, self._values)]
        return lambda: _seconds(lambda: optimizer.apply(gradients))

    def _on_tensors(self, namespace: Any) -> Callable[[], float]:
        tensor = torch.from_numpy(self._new_table()).requires_grad_()
        vars(self).setdefault("tensors", []).append(tensor)
        optimizer = getattr(namespace, self._peer.torchs)([tensor], lr=0.001)
        gradient = torch.sparse_coo_tensor(
            torch.from_numpy(self._indices)[None], torch.from_numpy(self._values), tensor.shape, check_invariants=False
        )

        def step() -> float:
            tensor.grad = gradient.clone()  # as a backward pass brings it: nobody has merged its indices
            return _seconds(optimizer.step)

        return step

    def _loop(self) -> Callable[[], float]:
        loop = RowLoop(self._indices, self._values, [self._new_table() for _ in range(self._peer.streams)])
        return lambda: _seconds(loop)

    def check(self) -> None:
        """Have all but the loop take three steps, and compare.

        Raises
        ------
        AssertionError
            If they have not moved the same rows by the same.
        """
        for side in (ARRAYS, TENSORS, TORCH):
            for _ in range(3):
                self.calls[side]()
        for tensor in self.tensors:  # type: ignore[attr-defined]
            np.testing.assert_allclose(tensor.detach().numpy(), self.table, rtol=1e-4, atol=1e-6)


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
