"""Storage formats: a step of Adam that keeps numbers in fewer bytes, beside the same step in float32, or bitsandbytes.

What there is to gain is bytes: where memory is the limit, nearly as much as they are fewer; where the processor's
arithmetic is, nothing, and the gates say how much slower a step may be. What falls below one, twice, fails.
"""

import time
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest

import fastopt
import fastopt.torch
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


SIZES = 1_000_000, 10_000_000, 32_000_000
BITSANDBYTES = {f"formats/bitsandbytes/adam/{size:.2g}".replace("+0", ""): size for size in SIZES}
"""Name → elements: fastopt.torch's Adam with state of 8 bits beside bitsandbytes' Adam8bit."""

STEPS = 10
"""After which both sides must have come to about the same."""


def pytest_generate_tests(metafunc):
    run = metafunc.config.fastopt_run
    everything = not (run.quick or run.peers is not None)
    for name, table in (("kept", {case.id: case for case in TABLE}), ("peer", BITSANDBYTES)):
        if name in metafunc.fixturenames:
            ids = [each for each in table if everything and run.pattern.search(each)]
            values = [table[each] if name == "kept" else each for each in ids]
            metafunc.parametrize(name, values, ids=ids)


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


def test_bitsandbytes(peer, run):
    torch = pytest.importorskip("torch", reason="is not installed")
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="is not installed: pip install bitsandbytes")
    size, limit = BITSANDBYTES[peer], run.gates.threshold(peer, PEER)
    grad = torch.from_numpy(np.random.default_rng(0).standard_normal(size, np.float32))
    params = [torch.full((size,), 0.5, requires_grad=True) for _ in range(2)]
    sides = [fastopt.torch.Adam([params[0]], slot_dtype="8bit"), bitsandbytes.optim.Adam8bit([params[1]])]
    rounds = {"fastopt": [], "bitsandbytes": []}
    for number in range(STEPS + 5):
        for p, optimizer, seconds in zip(params, sides, rounds.values(), strict=True):
            p.grad = grad
            start = time.perf_counter()
            optimizer.step()
            seconds.append(time.perf_counter() - start)
        if number == STEPS - 1:
            apart, moved = params[0] - params[1], params[1] - 0.5
            assert (apart.norm() / moved.norm()).item() < 0.1, "the sides do not compute the same"
    rounds = {side: seconds[2:] for side, seconds in rounds.items()}
    ratio = ratio_of(rounds["bitsandbytes"], rounds["fastopt"])
    each = {side: np.median(seconds) / size * 1e9 for side, seconds in rounds.items()}
    run.tables[peer] = {"bitsandbytes' time": list(ratio), "nanoseconds for a parameter": each}
    if limit is not None and ratio.high < limit:
        pytest.fail(str(Failure(f"{peer} against bitsandbytes", ratio, limit)), pytrace=False)
