"""Rows of embedding tables: fastopt on arrays and on tensors against torch.optim and a plain loop over the rows.

What falls below a gate, twice, fails.
"""

import time
from typing import NamedTuple

import numpy as np
import pytest
from fastopt.kernels.cpu.ceiling import RowLoop

import fastopt
from fastopt.bench.gates import CEILING, PEER, Failure
from fastopt.bench.ratios import ratio_of

torch = pytest.importorskip("torch", reason="it is what they are held against")
import fastopt.torch  # noqa: E402

ARRAYS, TENSORS, TORCH, LOOP = "arrays", "tensors", "torch", "loop"
"""Who steps: fastopt on NumPy's arrays and on torch's tensors, torch.optim, the plain loop."""


class Case(NamedTuple):
    """A rule on a table of so many rows and columns, with so many places in its gradient."""

    rule: str
    height: int
    width: int
    places: int

    @property
    def id(self):
        """A name, unique in the table."""
        return f"rows/{self.rule}/{self.height:.0e}x{self.width}/{self.places}".replace("e+0", "e")


class Rule(NamedTuple):
    """What a rule is called here and in torch, its options beside the rate; arrays that a step changes."""

    ours: str
    torchs: str
    options: dict
    torchs_options: dict
    streams: int


START = {"initial_accumulator_value": 0.1}
RULES = {
    "adam": Rule("Adam", "SparseAdam", {"epsilon": 1e-8}, {}, 3),
    "adagrad": Rule("Adagrad", "Adagrad", {**START, "epsilon": 1e-10}, START, 2),
    "sgd": Rule("SGD", "SGD", {}, {}, 1),
}

TABLE = [
    *(Case(rule, 1_000_000, 64, 16_384) for rule in RULES),
    *(Case(rule, 10_000_000, 16, 65_536) for rule in RULES),
    *(Case("adam", height, 16, 16_384) for height in (100_000, 1_000_000, 10_000_000)),
]
"""The last three: what a step costs must not depend on the height."""


def indices_of(case, seed):
    """Row numbers as words in a text have them: Zipf's law, the frequent ones anywhere."""
    rng = np.random.default_rng(seed)
    ranks = np.minimum(rng.zipf(1.15, case.places).astype(np.float64) - 1, 1e15).astype(np.int64)
    return np.asarray(rng.permutation(case.height)[ranks % case.height])


class Sides:
    """All who step, each with a table of its own; a side is called for a step, and returns the seconds it took."""

    def __init__(self, case, seed=0):
        self.case, self._rule = case, RULES[case.rule]
        self._indices = indices_of(case, seed)
        rng = np.random.default_rng(seed + 1)
        self._values = rng.standard_normal((case.places, case.width), np.float32)
        self.tensors = []
        self.calls = {
            ARRAYS: self._on_arrays(),
            TENSORS: self._on_tensors(fastopt.torch),
            TORCH: self._on_tensors(torch.optim),
            LOOP: self._loop(),
        }

    @property
    def touched(self):
        """Rows that a step changes."""
        return len(np.unique(self._indices))

    def _new_table(self):
        return np.full((self.case.height, self.case.width), 0.01, np.float32)

    def _on_arrays(self):
        self.table = self._new_table()
        optimizer = getattr(fastopt, self._rule.ours)(0.001, **self._rule.options)
        optimizer.build([self.table])
        gradients = [fastopt.RowGradient(self._indices, self._values)]
        return lambda: _seconds(lambda: optimizer.apply(gradients))

    def _on_tensors(self, namespace):
        tensor = torch.from_numpy(self._new_table()).requires_grad_()
        self.tensors.append(tensor)
        optimizer = getattr(namespace, self._rule.torchs)([tensor], lr=0.001, **self._rule.torchs_options)
        gradient = torch.sparse_coo_tensor(
            torch.from_numpy(self._indices)[None], torch.from_numpy(self._values), tensor.shape, check_invariants=False
        )

        def step():
            tensor.grad = gradient.clone()  # as a backward pass brings it: nobody has merged its indices
            return _seconds(optimizer.step)

        return step

    def _loop(self):
        loop = RowLoop(self._indices, self._values, [self._new_table() for _ in range(self._rule.streams)])
        return lambda: _seconds(loop)

    def check(self):
        """Have all but the loop take three steps, and compare.

        Raises
        ------
        AssertionError
            If they have not moved the same rows by the same.
        """
        for side in (ARRAYS, TENSORS, TORCH):
            for _ in range(3):
                self.calls[side]()
        rows = np.unique(self._indices)
        for tensor in self.tensors:
            np.testing.assert_allclose(tensor.detach().numpy()[rows], self.table[rows], rtol=1e-4, atol=1e-6)


def _seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


ROUNDS = 25


def pytest_generate_tests(metafunc):
    run = metafunc.config.fastopt_run
    found = [] if run.quick or run.peers is not None else TABLE
    metafunc.parametrize("table", [each for each in found if run.pattern.search(each.id)], ids=lambda each: each.id)


def measured(sides):
    """Seconds of each side in each round, all in turn; caches are cold to each, as others have stepped between."""
    rounds = {name: [] for name in sides.calls}
    for number in range(ROUNDS + 2):
        for name, call in sides.calls.items():
            seconds = call()
            if number >= 2:
                rounds[name].append(seconds)
    return rounds


def ratios(table, seed):
    """What is held against gates, by its name and what it is against."""
    sides = Sides(table, seed)
    if seed == 0:
        sides.check()
    rounds = measured(sides)
    found = {(way, PEER): ratio_of(rounds[TORCH], rounds[way]) for way in (ARRAYS, TENSORS)}
    return {**found, (ARRAYS, CEILING): ratio_of(rounds[LOOP], rounds[ARRAYS])}, float(np.median(rounds[ARRAYS]))


def too_low(table, found, gates):
    limits = {key: gates.threshold(f"{table.id}/{key[0]}", key[1]) for key in found}
    return [
        str(Failure(f"{table.id}/{way} against the {against}", found[way, against], limit))
        for (way, against), limit in limits.items()
        if limit is not None and found[way, against].high < limit
    ]


SECONDS = {}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_table(table, run):
    torch.set_num_threads(fastopt.get_num_threads())
    found, SECONDS[table] = ratios(table, 0)
    if too_low(table, found, run.gates):
        found, SECONDS[table] = ratios(table, 1)
    run.tables[table.id] = {f"{way} against the {against}": list(r) for (way, against), r in found.items()}
    failures = too_low(table, found, run.gates)
    alike = [SECONDS[each] for each in SECONDS if each[0::2] == table[0::2] and each[3] == table[3]]
    if max(alike) > 3 * min(alike):
        failures.append(f"{table.id}: the time depends on the table's height: {alike}")
    if failures:
        pytest.fail("\n".join(failures), pytrace=False)
