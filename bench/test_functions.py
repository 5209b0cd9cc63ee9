"""Losses and activations against torch, held against the same gates; what falls below one, twice, fails."""

import functools

import numpy as np
import pytest

import fastopt
from fastopt.bench.gates import PEER, Failure
from fastopt.bench.measure import interleaved_rounds, wall_seconds
from fastopt.bench.outcome import BusyError
from fastopt.bench.ratios import ratio_of

torch = pytest.importorskip("torch", reason="it is what they are held against")
from fastopt.bench.functions import check, functions, names  # noqa: E402

ROUNDS, TURN = 9, 0.01
OUT, NEW, TORCH = "out=", "new", "torch"


@functools.cache
def table(seed):
    """Name → function. Another seed: the same on other arrays."""
    return {function.name: function for function in functions(seed)}


def pytest_generate_tests(metafunc):
    run = metafunc.config.fastopt_run
    found = [] if run.quick or run.peers is not None else names()
    metafunc.parametrize("name", [name for name in found if run.pattern.search(f"function/{name}")])


def warm_seconds(call, repeats):
    """Seconds per call, after one that finds threads and caches as whoever was on before has left them."""
    call()
    return wall_seconds(call, repeats)


def ratios(function):
    """Way → torch's time over ours."""
    out = np.empty_like(function.result)
    calls = {OUT: lambda: function.ours(out), NEW: lambda: function.ours(None), TORCH: function.theirs}
    rounds = interleaved_rounds(calls, ROUNDS, warm_seconds, TURN)
    return {way: ratio_of(rounds[TORCH], rounds[way]) for way in (OUT, NEW)}


def too_low(name, found, gates):
    """What is below its gate, in words."""
    limits = {way: gates.threshold(f"function/{name}/{way}", PEER) for way in found}
    lows = [
        Failure(f"function/{name}/{way} against torch", ratio, limits[way])
        for way, ratio in found.items()
        if ratio.high < limits[way]
    ]
    return list(map(str, lows))


def test_function(name, run):
    torch.set_num_threads(fastopt.get_num_threads())
    try:
        function = table(0)[name]
        check(function)
        found = ratios(function)
        if too_low(name, found, run.gates):
            found = ratios(table(1)[name])  # where arrays lie is chance
    except BusyError as error:
        run.busy[f"function/{name}"] = str(error)
        pytest.skip(str(error))
    run.functions[name] = {way: list(ratio) for way, ratio in found.items()}
    if failures := too_low(name, found, run.gates):
        pytest.fail("\n".join(failures), pytrace=False)
