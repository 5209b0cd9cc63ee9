"""Storage formats: a step of Adam that keeps numbers in fewer bytes, beside the same step in float32.

What there is to gain is bytes: where memory is the limit, nearly as much as they are fewer; where the processor's
arithmetic is, nothing, and the gates say how much slower a step may be. What falls below one, twice, fails.
"""

import time
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt.bench.gates import PEER, Failure
from fastopt.bench.ratios import ratio_of

SIZE = 32_000_000


class Case(NamedTuple):
    """How numbers are kept; bytes that a step moves for each parameter."""

    name: str
    dtype: type
    options: dict
    moved: int

    @property
    def id(self):
        """A name, unique in the table."""
        return f"formats/adam/{self.name}"


BASE = Case("float32", np.float32, {}, 28)
TABLE = [
    Case("bfloat16-slots", np.float32, {"slot_dtype": "bfloat16"}, 20),
    Case("8-bit-slots", np.float32, {"slot_dtype": "8bit"}, 16),
    Case("all-bfloat16", ml_dtypes.bfloat16, {"slot_dtype": "bfloat16", "stochastic_rounding": True}, 14),
    Case("split-masters", ml_dtypes.bfloat16, {"master_weights": "split"}, 26),
    Case("split-masters-8-bit", ml_dtypes.bfloat16, {"master_weights": "split", "slot_dtype": "8bit"}, 14),
]
ROUNDS = 11


def stepping(case):
    """A step of a case, which returns its seconds."""
    params = np.full(SIZE, 0.5, np.float32).astype(case.dtype)
    grads = np.tile(np.random.default_rng(0).standard_normal(1_000_000, np.float32), SIZE // 1_000_000)
    optimizer, grads = fastopt.Adam(1e-3, **case.options), [grads.astype(case.dtype)]
    optimizer.build([params])

    def step():
        start = time.perf_counter()
        optimizer.apply(grads)
        return time.perf_counter() - start

    return step


def measured(case):
    """Seconds of the case and of float32 in each round, in turn."""
    sides = {each.name: stepping(each) for each in (case, BASE)}
    rounds = {side: [] for side in sides}
    for number in range(ROUNDS + 2):
        for side, step in sides.items():
            seconds = step()
            if number >= 2:
                rounds[side].append(seconds)
    return rounds


def pytest_generate_tests(metafunc):
    run = metafunc.config.fastopt_run
    found = [] if run.quick or run.peers is not None else TABLE
    metafunc.parametrize("kept", [each for each in found if run.pattern.search(each.id)], ids=lambda each: each.id)


def test_format(kept, run):
    limit = run.gates.threshold(kept.id, PEER)
    for _ in range(2):
        rounds = measured(kept)
        ratio, seconds = (
            ratio_of(rounds[BASE.name], rounds[kept.name]),
            {side: np.median(rounds[side]) for side in rounds},
        )
        speed = BASE.moved * SIZE / seconds[BASE.name]
        run.tables[kept.id] = {
            "float32's time": list(ratio),
            "bytes fewer": BASE.moved / kept.moved,
            "GB in a second, float32": speed / 1e9,
            "nanoseconds for a parameter": seconds[kept.name] / SIZE * 1e9,
        }
        if limit is None or ratio.high >= limit:
            return
    pytest.fail(str(Failure(f"{kept.id} against float32", ratio, limit)), pytrace=False)
