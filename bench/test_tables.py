"""Rows of embedding tables against torch.optim and a plain loop, by gates; what falls below one, twice, fails."""

import numpy as np
import pytest

import fastopt
from fastopt.bench.gates import CEILING, PEER, Failure
from fastopt.bench.ratios import ratio_of

torch = pytest.importorskip("torch", reason="it is what they are held against")
from fastopt.bench.tables import ARRAYS, LOOP, TABLE, TENSORS, TORCH, Sides  # noqa: E402

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
