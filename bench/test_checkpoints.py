"""Checkpoints: saving 1e9 bytes beside others' ways, and beside a plain write of as many until they are on the disk.

Others do not wait for the disk, so that a loss of power can take their file: the one that counts is the plain write,
which does. What falls below its gate, twice, fails.
"""

import os
import time

import numpy as np
import pytest

import fastopt
from fastopt.bench.gates import PEER, Failure
from fastopt.bench.ratios import ratio_of

BYTES = 1_000_000_000
ARRAYS = 20
ROUNDS = 7
NAME = "checkpoints/1e9"


def ways(folder):
    """What saves the same state, by name; each returns when it says that it is done."""
    optimizer = fastopt.SGD(momentum=0.9)
    params = {f"layer{k}": np.full(BYTES // 4 // ARRAYS, k, np.float32) for k in range(ARRAYS)}
    optimizer.build(params)
    arrays = {}
    for k, array in enumerate(optimizer.slots["momentum"]):
        array[...] = np.random.default_rng(k).standard_normal(array.size, np.float32)
        arrays[f"layer{k}"] = array

    def plainly():
        with open(folder / "plain", "wb", buffering=0) as file:
            for array in arrays.values():
                file.write(array)
            os.fsync(file.fileno())

    found = {
        "fastopt": lambda: optimizer.save(folder / "fastopt"),
        "write and fsync": plainly,
        "np.savez": lambda: np.savez(folder / "savez.npz", **arrays),
    }
    try:
        import torch

        found["torch.save"] = lambda: torch.save(
            {name: torch.from_numpy(array) for name, array in arrays.items()}, folder / "torch"
        )
    except ImportError:
        found.pop("torch.save", None)
    try:
        from safetensors.numpy import save_file

        found["safetensors"] = lambda: save_file(arrays, folder / "safetensors")
    except ImportError:
        found.pop("safetensors", None)
    return found


def measured(folder):
    """Seconds of each way in each round, in turn; every round begins with nothing left to be written."""
    sides = ways(folder)
    rounds = {side: [] for side in sides}
    for number in range(ROUNDS):
        for side, save in sides.items():
            os.sync()
            start = time.perf_counter()
            save()
            rounds[side].append(time.perf_counter() - start)
        if number == 0:
            for seconds in rounds.values():
                seconds.clear()  # the first makes the files
    return rounds


def pytest_generate_tests(metafunc):
    run = metafunc.config.fastopt_run
    found = [] if run.quick or run.peers is not None or not run.pattern.search(NAME) else [NAME]
    metafunc.parametrize("name", found)


def test_checkpoints(name, run, tmp_path):
    limit = run.gates.threshold(name, PEER)
    for _ in range(2):
        rounds = measured(tmp_path)
        ratios = {side: ratio_of(seconds, rounds["fastopt"]) for side, seconds in rounds.items() if side != "fastopt"}
        run.tables[name] = {
            **{f"{side}'s time": list(ratio) for side, ratio in ratios.items()},
            "GB in a second": BYTES / 1e9 / float(np.median(rounds["fastopt"])),
        }
        ratio = ratios["write and fsync"]
        if limit is None or ratio.high >= limit:
            return
    pytest.fail(str(Failure(f"{name} against write and fsync", ratio, limit)), pytrace=False)
