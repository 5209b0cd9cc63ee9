"""`fastopt.torch.DeepSpeedCPUAdam` beside the class that it takes the place of, by formats and sizes.

Both are shown to compute the same first. What falls below a gate, twice, fails.
"""

import os
import time
from typing import NamedTuple

import pytest

from fastopt.bench.gates import PEER, Failure
from fastopt.bench.peers.deepspeed import DeepSpeed
from fastopt.bench.ratios import ratio_of

torch = pytest.importorskip("torch", reason="both step its tensors")
import fastopt.torch  # noqa: E402

OURS, THEIRS = "fastopt", "DeepSpeed"
ROUNDS = 21


class Case(NamedTuple):
    """Dtypes of parameters and state, number of parameters."""

    dtype: str
    state: str
    size: str

    @property
    def id(self):
        """A name, unique in the table."""
        return f"deepspeed/adamw/{self.dtype}/{self.state}-state/{self.size}"


KINDS = [("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")]
TABLE = [Case(*kind, size) for kind in KINDS for size in ("1e6", "1e7", "3.2e7")]


def sides_of(case):
    """An optimizer of each class, and its parameter, which has its gradient."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    found = {}
    for name, kind in ((OURS, fastopt.torch.DeepSpeedCPUAdam), (THEIRS, DeepSpeedCPUAdam)):
        generator, dtype = torch.Generator().manual_seed(0), getattr(torch, case.dtype)
        p, grad = (torch.randn(int(float(case.size)), generator=generator).to(dtype) for _ in range(2))
        p.requires_grad_().grad = grad
        found[name] = kind([p], weight_decay=0.01, fp32_optimizer_states=case.state == "float32"), p
    return found


def measured(case):
    """Seconds of both sides in each round, in turn, after two that have them agree."""
    sides = sides_of(case)
    rounds = {side: [] for side in sides}
    for number in range(ROUNDS + 2):
        for side, (optimizer, _) in sides.items():
            start = time.perf_counter()
            optimizer.step()
            rounds[side].append(time.perf_counter() - start)
        if number == 1:
            (_, ours), (_, theirs) = sides.values()
            torch.testing.assert_close(ours, theirs, rtol=max(torch.finfo(ours.dtype).eps, 1e-5), atol=1e-5)
    return {side: seconds[2:] for side, seconds in rounds.items()}


def pytest_generate_tests(metafunc):
    run = metafunc.config.fastopt_run
    found = [] if run.quick or (run.peers is not None and THEIRS not in run.peers) else TABLE
    metafunc.parametrize("stepped", [each for each in found if run.pattern.search(each.id)], ids=lambda each: each.id)


def test_beside_deepspeed(stepped, run):
    if reason := DeepSpeed.missing():
        pytest.skip(reason)
    limit = run.gates.threshold(stepped.id, PEER)
    for _ in range(2):
        rounds = measured(stepped)
        ratio = ratio_of(rounds[THEIRS], rounds[OURS])
        run.tables[stepped.id] = {"DeepSpeed's time": list(ratio)}
        if limit is None or ratio.high >= limit:
            return
    pytest.fail(str(Failure(f"{stepped.id} against DeepSpeed", ratio, limit)), pytrace=False)
