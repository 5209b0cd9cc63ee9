"""The benchmark engine: what it compares agrees, what it judges is judged right, and the gates bite."""

import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from keras_reference import import_keras
from oracles import Oracle

from fastopt import optimizers, registry
from fastopt.bench import check as checking
from fastopt.bench.cases import QUICK, STACKS, TABLE, Case
from fastopt.bench.check import DisagreementError, Judge, check
from fastopt.bench.contest import FEW_ROUNDS, Contest, Turn, disturbance
from fastopt.bench.gates import Gate, Gates, baseline_of, baseline_path, read_gates
from fastopt.bench.measurement import Measurement, TooLargeError, chosen_peers, measure
from fastopt.bench.memory import Memory
from fastopt.bench.outcome import BUSY_STATUS, BusyError, Outcome, mean_speedup, outcome_of, read_outcome
from fastopt.bench.peers import PEERS
from fastopt.bench.picture import labels_of, picture_of, save_picture
from fastopt.bench.problem import Problem
from fastopt.bench.ratios import Ratio, geometric_mean, ratio_of
from fastopt.bench.recipes import RECIPES, _recipes
from fastopt.bench.shapes import MODELS
from fastopt.bench.sides import OTHER_BYTES, SLOW, SLOWED, Ceiling, Fastopt, Side, Traffic, averaging, own_of
from fastopt.bench.surroundings import surroundings

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "bench"

pytestmark = pytest.mark.xdist_group("bench")

# -- the table ---------------------------------------------------------------------------------------------------------


def test_the_table_is_what_was_asked_for():
    assert len(TABLE) >= 55
    assert sum(case.rule.facts.memory_bound for case in TABLE.values()) >= 40
    assert {case.rule.optimizer for case in TABLE.values()} == {recipe.optimizer for recipe in RECIPES.values()}
    assert {case.stack for case in TABLE.values()} == set(STACKS)
    assert {case.model for case in TABLE.values()} >= {"1e3", "1e4", "1e5", "1e6", "3.2e7", *MODELS}


def test_every_optimizer_has_a_recipe_without_being_told():
    names = {kind.__name__ for kind in vars(optimizers).values() if isinstance(kind, type)} - {"LossScaleOptimizer"}
    assert {recipe.optimizer for recipe in RECIPES.values()} == names
    assert names == {RECIPES[name.lower()].optimizer for name in names}
    assert RECIPES["adam"].hyper == {
        "learning_rate": 1e-3, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-18, "amsgrad": False,
    }  # fmt: skip
    assert RECIPES["adamw"].hyper == RECIPES["adam"].hyper | {"weight_decay": 0.01}


class Newcomer(optimizers.Nadam):
    """Nadam under another name, as an optimizer that is added one day."""


def test_a_new_optimizer_is_measured_without_being_told(monkeypatch):
    for name in ("_CLASSES", "_BUILT_IN"):
        monkeypatch.setattr(registry, name, getattr(registry, name).copy())
    registry.add(Newcomer, built_in=True)
    found = dict(_recipes())
    assert found.keys() - RECIPES.keys() == {"newcomer"}
    monkeypatch.setitem(RECIPES, "newcomer", found["newcomer"])
    case = Case("newcomer", "1e3")
    assert case.rule.elementwise and not case.renews and case.rule.hyper["learning_rate"] == 1e-3
    check(*sides_of(case, here(case)))


def test_rules_say_what_they_are():
    assert {name for name, recipe in RECIPES.items() if not recipe.elementwise} == {"lamb", "adafactor", "muon"}
    assert [name for name in ("sgd", "adam", "rmsprop-centered-momentum") if RECIPES[name].degenerates] == [
        "rmsprop-centered-momentum"
    ]


@pytest.mark.parametrize(
    "model, arrays, elements",
    [
        ("gpt2", 148, 124_439_808),
        ("resnet50", 161, 25_557_032),
        ("vit-b", 152, 86_567_656),
        ("400-tensors", 400, 832_000),
        ("465-groups", 465, 969_216),
        ("3.2e7", 1, 32_000_000),
    ],
)
def test_models_have_their_parameters(model, arrays, elements):
    case = Case("adam", model)
    assert (len(case.shapes), case.parameters) == (arrays, elements)


@pytest.mark.parametrize(
    "recipe, stack, dtype, expected",
    [
        ("sgd", "plain", "float32", 12),
        ("adamw", "plain", "float32", 28),
        ("adamw", "plain", "float64", 56),
        ("adamw", "clip", "float32", 32),
        ("adamw", "clip-ema", "float32", 40),
        ("adamw", "all", "float32", 44),
        ("lamb", "plain", "float32", 40),
    ],
)
def test_traffic_is_counted(recipe, stack, dtype, expected):
    side = Fastopt(Problem(Case(recipe, "1e3", dtype, stack)))
    assert Traffic(side).bytes_per_parameter == expected


# -- the ceiling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [0, 1, 1000, 100_001])
def test_the_ceiling_adds_to_all_arrays(size, dtype):
    from fastopt.kernels.cpu.ceiling import Loop, add_to_all, read

    arrays = [np.arange(size, dtype=dtype) * k for k in (1, 2, 3)]
    Loop(add_to_all, arrays[0], arrays[1:])()
    Loop(read, arrays[0].view({4: np.int32, 8: np.int64}[arrays[0].itemsize]))()
    for k, array in zip((1, 3, 4), arrays, strict=True):
        np.testing.assert_array_equal(array, np.arange(size, dtype=dtype) * k)


# -- all sides compute the same ----------------------------------------------------------------------------------------


def sides_of(case, names):
    problem = Problem(case)
    return problem, [Fastopt(problem), *(PEERS[name](problem) for name in names)]


def here(case):
    """Peers that are installed for tests and can do a case."""
    import_keras()
    with_compiler = {"DeepSpeed"}
    torch_backend = {"Keras"}
    taken, _ = chosen_peers(case, 3, PEERS.keys() - with_compiler - torch_backend)
    return taken


SLOW_TO_COMPILE = {"adafactor", "muon"}


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=[pytest.mark.full] * (name in SLOW_TO_COMPILE)) for name in RECIPES]
)
def test_every_recipe_agrees_on_all_sides(recipe):
    case = Case(recipe, "1e3")
    problem, sides = sides_of(case, here(case))
    assert ("NumPy" in [side.name for side in sides]) == (recipe in ("adam", "adamw", "sgd-momentum"))
    check(problem, sides)


JUDGED = [
    *(Case(recipe, "1e3") for recipe in RECIPES if recipe not in SLOW_TO_COMPILE),
    *(Case("adamw", "1e3", stack=stack) for stack in STACKS if stack != "plain"),
    Case("adamw", "465-groups", stack="all"),
    *(pytest.param(Case(recipe, "1e3"), marks=pytest.mark.full) for recipe in RECIPES if recipe in SLOW_TO_COMPILE),
]


@pytest.mark.parametrize("case", JUDGED, ids=lambda case: case.id)
def test_the_judge_is_right(case):
    """It computes what the oracle does, which is written from the papers and knows nothing of fastopt."""
    problem = Problem(case)
    judge, stack = Judge(problem), case.options
    options = {"loss_scale_factor": stack.scale, "global_clipnorm": stack.clip, **averaging(case)}
    params, grads = ([array.astype(np.float64) for array in arrays] for arrays in (problem.params, problem.grads))
    own = [own_of(case, k) for k in range(len(params))]
    rate = case.rule.hyper["learning_rate"]
    multipliers = {k: each["learning_rate"] / rate for k, each in enumerate(own) if each}
    undecayed = [k for k, each in enumerate(own) if each and not each["weight_decay"]]
    oracle = Oracle(
        case.rule.optimizer, case.rule.hyper | options, params, undecayed=undecayed, multipliers=multipliers
    )
    for k in range(3):
        judge.renew(k)
        judge.step()
        expected = oracle.apply([(-1) ** k * grad for grad in grads])
    for found, wanted in (
        (judge.params(), expected),
        *((judge.slots()[name], oracle.slots[name]) for name in judge.slots()),
    ):
        for one, two in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-12)


@pytest.mark.full
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("recipe", ["adam", "adamw", "lion"])
def test_deepspeed_agrees(recipe, stack):
    if reason := PEERS["DeepSpeed"].missing():
        pytest.skip(reason)
    case = Case(recipe, "1e4", stack=stack)
    assert PEERS["DeepSpeed"].lacks(case) is None
    check(*sides_of(case, ["DeepSpeed"]))


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("recipe", ["adamw", "sgd-momentum", "lion"])
def test_every_stack_agrees_on_all_sides(recipe, stack):
    case = Case(recipe, "1e4", stack=stack)
    check(*sides_of(case, here(case)))


@pytest.mark.parametrize(
    "case",
    [
        Case("adamw", "465-groups", stack="clip"),
        Case("lion", "1e3", "float64"),
        Case("adamw", "1e3", "float64", "all"),
        Case("adamw", "1e6", "float64", "clip"),
    ],
)
def test_groups_and_float64_agree(case):
    check(*sides_of(case, here(case)))


class Wrong(Fastopt):
    """fastopt, with one number of what it says changed."""

    name = "wrong"

    def __init__(self, problem, what):
        super().__init__(problem)
        self._what = what

    def params(self):
        return self._spoilt("parameters", super().params())

    def slots(self):
        return {name: self._spoilt(name, arrays) for name, arrays in super().slots().items()}

    def _spoilt(self, what, arrays):
        if what != self._what:
            return arrays
        last = arrays[-1].copy()
        last.reshape(-1)[-1] *= 1.001
        return [*arrays[:-1], last]


@pytest.mark.parametrize("what", ["parameters", "momentum", "velocity", "average"])
def test_a_side_that_is_wrong_anywhere_is_found(what):
    problem = Problem(Case("adam", "1e6", stack="clip-ema"))
    with pytest.raises(DisagreementError, match=f"wrong and fastopt in float64 disagree in {what}"):
        check(problem, [Wrong(problem, what)])


def test_nan_is_a_disagreement():
    problem = Problem(Case("sgd", "1e3"))
    problem.params[0][:] = np.nan
    side = Fastopt(problem)
    problem.params[0][:] = 1.0
    with pytest.raises(DisagreementError):
        check(problem, [side])


def test_gradients_stay_what_they_are():
    """After any number of steps, no side has numbers that are slower, or wrong: no denormals, no NaN."""
    for recipe, stack in (("rmsprop-centered-momentum", "plain"), ("adamw", "all")):
        side = Fastopt(Problem(Case(recipe, "1e3", stack=stack)))
        for k in range(2000):
            side.renew(k)
            side.step()
        for array in [*side.params(), *itertools.chain.from_iterable(side.slots().values())]:
            assert np.isfinite(array).all()
            assert np.abs(array[array != 0]).min() > np.finfo(np.float32).tiny


def test_the_ceiling_reads_gradients_that_have_just_been_written():
    problem = Problem(Case("adam", "400-tensors"))
    ceiling = Ceiling(problem, Traffic(Fastopt(problem)))
    ceiling.renew(1)
    addend, *others = ceiling._loops[-1]._arrays
    np.testing.assert_array_equal(addend, -np.concatenate([grad.reshape(-1) for grad in problem.grads]))
    assert all((array == others[0]).all() for array in others)


# -- who takes part ----------------------------------------------------------------------------------------------------


def test_who_cannot_take_part_is_told_why():
    taken, missing = chosen_peers(Case("ftrl", "1e3"), 3, ["torch fused", "optax", "DeepSpeed", "NumPy"])
    assert taken == []
    assert all(reason for reason in missing.values()) and len(missing) == 4


def test_a_library_that_is_not_there_is_missing(monkeypatch):
    monkeypatch.setattr(PEERS["torch fused"], "package", "no_such_package")
    _, missing = chosen_peers(Case("adam", "1e3"), 3, ["torch fused"])
    assert missing == {"torch fused": "no_such_package is not installed"}


def test_only_so_many_take_part():
    pytest.importorskip("torch")
    names = ["torch fused", "DeepSpeed", "NumPy", "torch foreach"]
    measurement = Measurement(Case("sgd-momentum", "1e3"), names, most_peers=1)
    assert measurement.missing.keys() == set(names[1:])
    taken, missing = chosen_peers(Case("sgd-momentum", "1e3"), 3, names, most_peers=2)
    assert taken == ["torch fused", "NumPy"]
    assert missing["torch foreach"] == "left out to save time: only 2 may take part"


def test_where_memory_is_short_the_first_ones_come_first():
    pytest.importorskip("torch")
    case = Case("adam", "1e6")
    taken, missing = chosen_peers(case, 3, ["torch fused", "torch foreach"], free=4e6 * 10 / 0.7)
    assert taken == ["torch fused"]
    assert "memory" in missing["torch foreach"]


def test_a_case_without_memory_for_it_is_refused():
    with pytest.raises(TooLargeError, match="GB"):
        measure(Case("adam", "1e12"), 0.1, [])


# -- memory ------------------------------------------------------------------------------------------------------------


def test_large_arrays_lie_where_earlier_ones_did():
    memory, shape = Memory(), (512, 1024)
    first = memory.empty(shape, np.float32)
    where, view = first.ctypes.data, first[3:]
    del first
    other = memory.copy(np.ones(shape, np.float32))
    assert not np.shares_memory(view, other) and (other == 1).all()
    assert memory.idle_bytes == 0
    del view
    assert memory.idle_bytes == other.nbytes
    again = memory.empty((1024, 256), np.float64)
    assert (again.ctypes.data, again.shape, again.dtype) == (where, (1024, 256), np.float64)
    assert again.flags.writeable and memory.idle_bytes == 0


@pytest.mark.parametrize("size", [1, 1000, 10_001, 300_000])
def test_arrays_begin_a_cache_line(size):
    memory = Memory()
    arrays = [memory.empty((size,), np.float32) for _ in range(10)]
    assert all(array.ctypes.data % 64 == 0 for array in arrays)
    for k, array in enumerate(arrays):
        array.fill(k)
    assert all((array == k).all() for k, array in enumerate(arrays))


def test_memory_of_other_sizes_is_given_back():
    memory = Memory()
    sizes = {memory.empty((n,), np.float32).nbytes for n in (300_000, 400_000, 10)}
    assert memory.idle_bytes == 1_200_000 + 1_600_000  # small arrays are not worth it
    memory.keep_only(sizes - {1_200_000})
    assert memory.idle_bytes == 1_600_000
    memory.keep_only(())
    assert memory.idle_bytes == 0


# -- rounds ------------------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes only in steps."""

    now = 0.0

    def __call__(self):
        return self.now


class Timed(Side):
    """A side whose steps take given times."""

    def __init__(self, name, clock, seconds, log):
        self.name, self.case = name, Case("adam", "1e3")
        self._clock, self._seconds, self._log = clock, itertools.cycle(seconds), log

    def step(self):
        self._clock.now += next(self._seconds)
        self._log.append(self.name)

    def prepare(self, k):
        self._clock.now += 0.06


def contest(seconds=3.0, renews=False, **sides):
    clock, log = Clock(), []
    timed = [Timed(name, clock, times, log) for name, times in sides.items()]
    for side in timed:
        side.case = Case("adam", "1e3", stack="all" if renews else "plain")
    return Contest(timed[0], timed[1:], seconds, clock), log


def test_all_sides_take_turns_in_rotating_order():
    rounds, log = contest(fastopt=[0.02], ceiling=[0.02], one=[0.02], two=[0.02])
    del log[:]
    times = rounds.play()
    assert {name: len(found) for name, found in times.items()} == dict.fromkeys(times, rounds.rounds)
    order = [name for name, _ in itertools.groupby(log)]
    assert order[:8] == ["fastopt", "ceiling", "one", "two", "fastopt", "one", "two", "ceiling"]


def test_rounds_fill_the_time_they_may_take():
    few, many = (contest(seconds, fastopt=[0.02], ceiling=[0.02])[0].rounds for seconds in (1.0, 2.0))
    assert 5 < few < many
    assert contest(1e-3, fastopt=[0.02], ceiling=[0.02])[0].rounds == 5


def test_rounds_leave_time_for_what_is_not_measured():
    rounds, _ = contest(4.0, renews=True, fastopt=[0.02], ceiling=[0.02])
    assert rounds.rounds == pytest.approx(contest(1.0, fastopt=[0.02], ceiling=[0.02])[0].rounds, abs=1)
    assert rounds.play()["ceiling"] == pytest.approx([0.02] * rounds.rounds)


def test_a_peer_that_is_far_behind_is_in_for_a_few_rounds():
    rounds, _ = contest(fastopt=[0.02], ceiling=[0.02], fast=[0.03], slow=[0.5])
    times = rounds.play()
    assert len(times["slow"]) == FEW_ROUNDS < len(times["fast"]) == len(times["ceiling"])
    assert ratio_of(times["slow"], times["fastopt"]).value == pytest.approx(25)


CALM = {"fastopt": [1.0, 1.1, 1.0, 1.2, 1.1, 1.0], "ceiling": [0.9] * 6}


@pytest.mark.parametrize(
    "rounds, share, found",
    [
        ({}, 2.0, None),
        ({}, 0.9, None),
        ({}, 0.3, "this process ran for only 30% of the time"),
        ({"NumPy": [1.0, 1.0, 1.0, 50.0, 50.0]}, 2.0, "a quarter of NumPy's rounds took 50 times as long"),
        ({"NumPy": [1.0, 1.0, 1.0, 1.0, 50.0]}, 2.0, None),  # one, which no median notices
        ({"fastopt": [1.0, 1.0, 4.0, 4.0, 4.0, 1.0]}, 2.0, "the middle half of fastopt's rounds differ 4.0 times"),
        ({"fastopt": [1.0, 1.0, 2.0, 2.0, 2.0, 1.0]}, 2.0, None),
        ({"slow": [1.0, 1.0, 50.0]}, 2.0, None),  # too few rounds to tell, and they decide nothing
    ],
)
def test_rounds_that_others_disturbed_are_told_by_their_times(rounds, share, found):
    told = disturbance(CALM | rounds, share)
    assert (told is None) == (found is None)
    assert (told or "").startswith(found or "")


def test_a_thread_that_waits_for_a_processor_is_noticed():
    """The share of the rounds is time on processors over time that passed, both made up."""
    clock = Clock()
    sides = [Timed(name, clock, [0.02], []) for name in ("fastopt", "ceiling")]
    rounds = Contest(sides[0], sides[1:], 0.1, clock, lambda: 0.3 * clock())
    rounds.play()
    assert rounds.share() == pytest.approx(0.3)


def test_a_disturbed_case_has_no_outcome(monkeypatch):
    monkeypatch.setattr("fastopt.bench.measurement.disturbance", lambda times, share: "somebody sang")
    measurement = Measurement(Case("sgd", "1e3"), [])
    contest = measurement.contest(0.05)
    contest.play()
    with pytest.raises(BusyError, match="not measured: the machine was busy: somebody sang"):
        measurement.outcome(contest)
    assert measurement.outcome(contest, even_if_busy=True).ceiling_fraction is not None


def test_our_times_may_come_from_somebody_else():
    rounds, _ = contest(fastopt=[0.02], ceiling=[0.01])
    rounds.others()
    assert rounds.times([0.5]) == {"fastopt": [0.5], "ceiling": [pytest.approx(0.01)]}


# -- ratios ------------------------------------------------------------------------------------------------------------


def test_a_ratio_is_the_median_of_rounds_and_holds_while_the_machine_drifts():
    drift = [1.0, 1.5, 3.0, 2.0, 0.7, 9.0, 1.1]
    ratio = ratio_of([2 * factor for factor in drift], drift)
    assert ratio == Ratio(2.0, 2.0, 2.0)


def test_the_interval_holds_the_median_of_what_rounds_come_from():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        ratio = ratio_of(rng.lognormal(0.5, 0.2, 25), np.ones(25))
        held += ratio.low <= np.exp(0.5) <= ratio.high
        assert ratio.low <= ratio.value <= ratio.high
    assert held >= 85


def test_rounds_that_only_one_side_had_do_not_count():
    assert ratio_of([2.0], [1.0, 5.0]).value == 2.0
    with pytest.raises(ValueError, match="round"):
        ratio_of([], [1.0])


def test_geometric_mean():
    assert geometric_mean([0.5, 2.0, 8.0]) == pytest.approx(2.0)


# -- outcomes and gates ------------------------------------------------------------------------------------------------


def outcome(case_id="adam/float32/1e6/plain/cpu", ceiling=0.9, missing=None, **peers):
    case = Case.named(case_id)
    times = {"fastopt": [1e-3] * 9, "ceiling": [ceiling * 1e-3] * 9}
    times |= {name: [ratio * 1e-3] * 9 for name, ratio in peers.items()}
    return outcome_of(case, times, 28, missing or {})


def test_a_cold_case_is_known_by_its_name_and_counts_in_no_mean():
    cold = outcome("adamw/float32/400-tensors/plain/cpu/cold", torch=40.0)
    assert cold.case.cold and read_outcome(cold.to_json()).case == cold.case
    assert mean_speedup([outcome(torch=2.0), cold]) == pytest.approx(2.0)


def test_before_a_cold_step_no_cache_holds_the_arrays():
    """Other memory is read, more than caches hold, outside of what is timed."""
    times = {}
    for cold in (False, True):
        side = Fastopt(Problem(Case("sgd", "1e3", cold=cold)))
        calls = []
        side.step = lambda: calls.append("step")  # noqa: B023
        with patch("fastopt.bench.sides.fill_caches", lambda: calls.append("fill")):  # noqa: B023
            turn = Turn(side, time.perf_counter)
            turn.take()
        times[cold] = set(itertools.pairwise(calls))
    assert times[False] == {("step", "step")}
    assert times[True] == {("fill", "step"), ("step", "fill")}
    assert OTHER_BYTES >= 64 * 2**20


def test_an_outcome_names_the_fastest_peer():
    found = outcome(torch=1.5, optax=1.2, keras=30.0)
    assert (found.peer, found.speedup.value) == ("optax", pytest.approx(1.2))
    assert found.gb_per_s == pytest.approx(28.0)
    summary = found.summary()
    assert {"bytes_per_parameter", "gb_per_s", "ceiling_fraction", "peer", "speedup"} <= summary.keys()
    assert json.loads(json.dumps(found.to_json()))["speedups"]["keras"][0] == pytest.approx(30.0)


def test_without_peers_there_is_no_speedup():
    assert outcome().peer is outcome().speedup is mean_speedup([outcome()]) is None


def gates(*rules, baseline=None, mean=1.0):
    return Gates(rules, {"ceiling": 0.1, "peer": 0.2}, mean, baseline or {})


def test_a_ratio_below_its_gate_fails():
    held = gates(Gate("/1e6/", "ceiling", 0.88), Gate("", "peer", 1.0))
    assert held.failures(outcome(ceiling=0.89, torch=1.0)) == []
    (failure,) = held.failures(outcome(ceiling=0.87, torch=1.0))
    assert "against the ceiling: 0.87" in str(failure) and "at least 0.88" in str(failure)
    (failure,) = held.failures(outcome(ceiling=0.89, torch=3.0, optax=0.99))
    assert "against the peer: 0.99" in str(failure)


def test_what_may_be_noise_does_not_fail():
    noisy = outcome(ceiling=0.9)
    noisy = Outcome(noisy.case, noisy.seconds, 28, Ratio(0.85, 0.8, 0.9))
    assert gates(Gate("", "ceiling", 0.88)).failures(noisy) == []


def test_nan_fails():
    broken = Outcome(Case("adam", "1e6"), 1e-3, 28, Ratio(*[float("nan")] * 3))
    assert gates(Gate("", "ceiling", 0.1)).failures(broken)


def test_the_last_gate_that_matches_counts():
    rules = Gate("", "peer", 1.0), Gate("^adam/", "peer", 5.0, "known"), Gate("float64", "peer", 9.0)
    assert gates(*rules).threshold("adam/float32/1e6/plain/cpu", "peer") == 5.0
    assert gates(*rules).threshold("adam/float32/1e6/plain/cpu", "ceiling") is None


def test_a_ratio_that_regresses_fails():
    earlier = baseline_of([[outcome(ceiling=0.9, torch=2.0)]])
    held = gates(baseline=earlier)
    assert held.failures(outcome(ceiling=0.82, torch=1.61)) == []
    assert ["baseline" in str(failure) for failure in held.failures(outcome(ceiling=0.80, torch=1.59))] == [True, True]


def test_what_is_far_from_the_ceiling_has_no_baseline_there():
    assert baseline_of([[outcome(ceiling=0.2, torch=2.0)]]) == {"adam/float32/1e6/plain/cpu": {"peer": 2.0}}


def test_a_baseline_is_the_median_of_runs():
    runs = [[outcome(ceiling=0.8, torch=9.0)], [outcome(ceiling=0.5, torch=2.0)], [outcome(ceiling=0.9, optax=3.0)]]
    assert baseline_of(runs) == {"adam/float32/1e6/plain/cpu": {"ceiling": 0.8, "peer": 3.0}}


def test_the_mean_of_a_run():
    outcomes = [outcome(torch=2.0), outcome(torch=8.0)]
    assert gates(mean=3.9).mean_failure(outcomes) is None
    assert "4" in gates(mean=4.1).mean_failure(outcomes)


def baseline(tmp_path, *cases, **facts):
    """bench/baseline.py over one run with these cases."""
    content = {"surroundings": {"processor": "A CPU @ 3 GHz (zen)", "threads": 4} | facts, "cases": cases}
    (tmp_path / "run.json").write_text(json.dumps(content))
    script = [sys.executable, str(BENCH / "baseline.py"), str(tmp_path / "run.json"), f"--out={tmp_path}"]
    return subprocess.run(script, cwd=ROOT, capture_output=True, text=True)


def test_a_baseline_takes_whole_runs_and_belongs_to_their_processor(tmp_path):
    done = baseline(tmp_path, outcome(torch=2.0).to_json())
    assert done.returncode == 1 and "run.json is no whole run" in done.stderr
    whole = [outcome(case_id, torch=2.0).to_json() for case_id in TABLE]
    for threads in (4, 8):
        assert baseline(tmp_path, *whole, threads=threads).returncode == 0
        written = tmp_path / f"a-cpu-3-ghz-zen-{threads}-threads.json"
        assert written == baseline_path(tmp_path, {"processor": "A CPU @ 3 GHz (zen)", "threads": threads})
        assert read_gates(BENCH / "gates.toml", written).baseline["adam/float32/1e4/plain/cpu"]["peer"] == 2.0


def test_baselines_are_where_their_processor_looks_for_them():
    paths = list((BENCH / "baselines").glob("*.json"))
    assert paths
    for path in paths:
        content = json.loads(path.read_text())
        assert path == baseline_path(path.parent, content)
        assert content["cases"].keys() <= TABLE.keys()


def function_names():
    """As gates know losses and activations."""
    functions = pytest.importorskip("fastopt.bench.functions", exc_type=ImportError, reason="they need torch")
    return [f"function/{name}" for name in functions.names()]


EXTRA = [
    "rows/adam/1e6x64/16384",
    "rows/sgd/1e6x64/16384",
    "formats/adam/bfloat16-slots",
    "formats/adam/split-masters-8-bit",
    "formats/bitsandbytes/adam/1e6",
    "deepspeed/adamw/float32/float32-state/1e6",
    "deepspeed/adamw/bfloat16/float32-state/1e7",
    "checkpoints/1e9",
]
"""Cases of bench/test_tables.py, bench/test_formats.py, bench/test_deepspeed.py and bench/test_checkpoints.py."""


@pytest.mark.parametrize("name", ["gates.toml", "gates-quick.toml"])
def test_the_gates_of_the_repository_are_sound(name):
    held = read_gates(BENCH / name, Path("none"))
    cases = [case.id for case in (QUICK if "quick" in name else TABLE.values())]
    others = [] if "quick" in name else [*function_names(), *EXTRA]
    for gate in held.gates:
        assert any(re.search(gate.cases, name) for name in cases + others), f"{gate.cases} matches no case"
    weaker = [gate for gate in held.gates if gate.against == "peer" and gate.at_least < 1 and "quick" not in name]
    assert all(gate.cause for gate in weaker), "an exception without a cause"


@pytest.mark.parametrize("text", ["against = 'clock'", "at_leat = 1.0", "exempt = true\nat_least = 1.0"])
def test_gates_that_mean_nothing_are_refused(tmp_path, text):
    against = "" if "against" in text else "against = 'peer'\n"
    content = f"[[gate]]\ncases = ''\n{against}{text}\n[mean]\nat_least = 1\n[baseline]\nceiling = 0.1\npeer = 0.1\n"
    (tmp_path / "gates.toml").write_text(content)
    with pytest.raises(ValueError, match="gate"):
        read_gates(tmp_path / "gates.toml", tmp_path / "none")


# -- the gates bite ----------------------------------------------------------------------------------------------------


def test_a_slowed_optimizer_takes_more_steps_and_no_other_does(monkeypatch):
    monkeypatch.setenv(SLOW, "adam")
    for recipe, steps in (("adam", SLOWED), ("adamw", 1)):
        side = Fastopt(Problem(Case(recipe, "1e3")))
        side.step()
        assert side.optimizer.iterations == steps


def quick_bench(tmp_path, *arguments, **environment):
    """Quick cases without peers, in a process of their own; exit status, output, and what it measured."""
    file = tmp_path / "benchmark.json"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += [BENCH / "test_cases.py", "--seconds=0.3", "--peers=none", f"--benchmark-json={file}", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=inherited | environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr, json.loads(file.read_text())


def test_slow_steps_fail_the_benchmark_and_others_do_not(tmp_path):
    cases = "--cases=^(adam|sgd-momentum)/float32/1e5"
    status, output, recorded = quick_bench(tmp_path, "--quick", "--busy=ignore", cases, FASTOPT_BENCH_SLOW="adam")
    assert status == 1, output
    assert "1 failed, 1 passed" in output
    assert "adam/float32/1e5/plain/cpu against the ceiling" in output
    assert "slow on purpose" in output
    slow, other = (
        next(each for each in recorded["benchmarks"] if f"[{name}/" in each["name"])
        for name in ("adam", "sgd-momentum")
    )
    assert slow["extra_info"]["ceiling_fraction"] < other["extra_info"]["ceiling_fraction"]
    assert "node" not in recorded["machine_info"]


def test_without_the_slowing_the_benchmark_passes(tmp_path):
    results = tmp_path / "results.json"
    arguments = "--quick", "--busy=ignore", "--cases=^adam/float32/1e5", f"--results={results}"
    status, output, recorded = quick_bench(tmp_path, *arguments)
    assert status == 0, output
    (kept,) = json.loads(results.read_text())["cases"]
    (benchmark,) = recorded["benchmarks"]
    assert benchmark["extra_info"]["bytes_per_parameter"] == kept["bytes_per_parameter"] == 28
    assert kept["microseconds"] == pytest.approx(1e6 * statistics.median(benchmark["stats"]["data"]), rel=0.5)


PLUGIN = """
from fastopt.bench import gates, measurement, surroundings
reasons = iter(["somebody sang", None])
measurement.disturbance = lambda times, share: next(reasons)
surroundings.processor = lambda: "never seen"
gates.Gates.failures = lambda self, outcome: []
"""


@pytest.mark.parametrize("how, expected", [("fail", BUSY_STATUS), ("pass", 0)])
def test_a_disturbed_case_is_marked_and_left_out(tmp_path, how, expected):
    """The first of two cases, by a made-up reason; on a processor without a baseline."""
    (tmp_path / "made_up.py").write_text(PLUGIN)
    arguments = "-p", "made_up", f"--busy={how}", "--cases=^(sgd|lion)/float32/1e4/"
    status, output, recorded = quick_bench(tmp_path, *arguments, PYTHONPATH=str(tmp_path))
    assert status == expected, output
    assert "1 passed, 1 skipped" in output
    assert "sgd/float32/1e4/plain/cpu: not measured: the machine was busy: somebody sang" in output
    assert "1 of 2 cases not measured" in output
    assert "no baseline of this processor: gates alone count; make bench-baseline makes one, never-seen-" in output
    assert [each["name"] for each in recorded["benchmarks"]] == ["test_case[lion/float32/1e4/plain/cpu]"]


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_nothing_of_the_machine_but_what_matters():
    facts = surroundings()
    assert set(facts) == {
        "processor", "cores", "threads", "threading_layer", "omp_wait_policy", "system", "versions",
    }  # fmt: skip
    assert os.sep not in facts["processor"] + facts["system"]


def test_the_picture(tmp_path):
    outcomes = [outcome(**{"torch fused": 1.5, "NumPy": 3.0}), outcome("lion/float32/1e6/plain/cpu", NumPy=0.5)]
    assert labels_of(outcomes) == ["adam", "lion"]
    save_picture(outcomes, tmp_path / "out.png", "title")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_reaches_out_of_the_picture():
    case = "rmsprop-centered-momentum/float32/400-tensors/clip-ema/cpu"
    figure = picture_of([outcome(case, **dict.fromkeys(PEERS, 1.5)), outcome(NumPy=90.0)], "all peers, " * 6)
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(box.x0, box.y0) >= 0
    assert box.x1 <= width and box.y1 <= height


def test_tolerances_are_those_of_rounding():
    assert checking.TOLERANCES["float64"] < 1e-10 < checking.TOLERANCES["float32"] < 1e-4
    assert Ceiling.name == "ceiling"
