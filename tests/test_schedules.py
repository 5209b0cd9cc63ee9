"""Schedules against real Keras and torch, closed forms, configs and refusals."""

import copy
import doctest
import functools
import importlib
import inspect
import json
import math
import pickle
import pkgutil
import warnings
from fractions import Fraction
from types import SimpleNamespace

import keras_reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optional_torch import torch
from rows import rows

import fastopt
from fastopt import schedules

keras = keras_reference.import_keras()

NAMES = (
    "ExponentialDecay",
    "PiecewiseConstantDecay",
    "PolynomialDecay",
    "InverseTimeDecay",
    "CosineDecay",
    "CosineDecayRestarts",
)
OWN_NAMES = ("LinearWarmup", "WarmupCosine", "WarmupStableDecay", "OneCycle", "Chain", "TimeBasedDecay", "StepDecay")

# At least one row per option; a decay lasts 20 steps, so that STEPS cover three of them.
CASES = [
    ("ExponentialDecay", {"initial_learning_rate": 0.1, "decay_steps": 20, "decay_rate": 0.96}),
    ("ExponentialDecay", {"initial_learning_rate": 0.1, "decay_steps": 20, "decay_rate": 0.5, "staircase": True}),
    ("ExponentialDecay", {"initial_learning_rate": 0.1, "decay_steps": 20, "decay_rate": 1.5, "name": "growth"}),
    ("ExponentialDecay", {"initial_learning_rate": 0.1, "decay_steps": 20, "decay_rate": 0.0}),
    ("PiecewiseConstantDecay", {"boundaries": [20, 45], "values": [1.0, 0.5, 0.1]}),
    ("PiecewiseConstantDecay", {"boundaries": (7,), "values": (0.3, 0.2), "name": "halves"}),
    ("PolynomialDecay", {"initial_learning_rate": 0.1, "decay_steps": 20}),
    ("PolynomialDecay", {"initial_learning_rate": 0.1, "decay_steps": 20, "end_learning_rate": 0.01, "power": 0.5}),
    ("PolynomialDecay", {"initial_learning_rate": 0.1, "decay_steps": 20, "power": 2.0, "cycle": True}),
    ("PolynomialDecay", {"initial_learning_rate": 0.1, "decay_steps": 20, "power": 0.0}),
    ("InverseTimeDecay", {"initial_learning_rate": 0.1, "decay_steps": 20, "decay_rate": 0.5}),
    ("InverseTimeDecay", {"initial_learning_rate": 0.1, "decay_steps": 20, "decay_rate": 2.0, "staircase": True}),
    ("CosineDecay", {"initial_learning_rate": 0.1, "decay_steps": 20}),
    ("CosineDecay", {"initial_learning_rate": 0.1, "decay_steps": 20, "alpha": 0.3}),
    ("CosineDecay", {"initial_learning_rate": 0.1, "decay_steps": 20, "warmup_steps": 5}),
    ("CosineDecay", {"initial_learning_rate": 0.01, "decay_steps": 20, "warmup_target": 0.1, "warmup_steps": 7}),
    ("CosineDecay", {"initial_learning_rate": 0.0, "decay_steps": 20, "warmup_target": 0.1, "alpha": 0.1}),
    ("CosineDecayRestarts", {"initial_learning_rate": 0.1, "first_decay_steps": 20}),
    ("CosineDecayRestarts", {"initial_learning_rate": 0.1, "first_decay_steps": 20, "t_mul": 1.0}),
    ("CosineDecayRestarts", {"initial_learning_rate": 0.1, "first_decay_steps": 8, "t_mul": 1.5, "m_mul": 0.7}),
    ("CosineDecayRestarts", {"initial_learning_rate": 0.1, "first_decay_steps": 8, "alpha": 0.2, "m_mul": 1.1}),
]
STEPS = range(61)

HALVING = schedules.ExponentialDecay(0.1, 20, 0.5)
OWN = [
    schedules.LinearWarmup(0.1, 20),
    schedules.LinearWarmup(HALVING, 20, 0.01, name=None),
    schedules.LinearWarmup(schedules.LinearWarmup(HALVING, 5), 20),
    schedules.WarmupCosine(0.1, 5, 20),
    schedules.WarmupCosine(0.1, 5, 20, 0.01, 0.02, name="warm"),
    schedules.WarmupStableDecay(0.1, 5, 20, 10),
    schedules.WarmupStableDecay(0.1, 5, 20, 10, 0.01, 0.02, decay="1-sqrt"),
    schedules.OneCycle(0.1, 50),
    schedules.OneCycle(0.1, 50, 0.4, "linear", 10.0, 100.0, three_phase=True),
    schedules.Chain([0.1], []),
    schedules.Chain([schedules.LinearWarmup(0.1, 5), 0.1, schedules.Chain([HALVING, 0.01], [7])], (5, 13.5)),
    schedules.TimeBasedDecay(0.1, 0.001),
    schedules.TimeBasedDecay(0.1, 0.001, "recursive", steps_per_epoch=5),
    schedules.StepDecay(0.1, 0.5, 10),
    schedules.StepDecay(0.1, 0.5, 10, variant="code", steps_per_epoch=2, name=None),
]


def made(name, arguments):
    """The same schedule of fastopt and of Keras."""
    return getattr(schedules, name)(**arguments), getattr(keras.optimizers.schedules, name)(**arguments)


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_equals_keras(name, arguments):
    ours, theirs = made(name, arguments)
    for step in STEPS:
        assert ours(step) == pytest.approx(float(theirs(step)), rel=1e-5, abs=1e-8), step


@pytest.mark.parametrize("name", NAMES)
def test_signature_is_that_of_keras(name):
    ours, theirs = (inspect.signature(getattr(module, name)) for module in (schedules, keras.optimizers.schedules))
    assert [(p.name, p.default) for p in ours.parameters.values()] == [
        (p.name, p.default) for p in theirs.parameters.values()
    ]


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_config_equals_that_of_keras_and_comes_back(name, arguments):
    ours, theirs = made(name, arguments)
    as_json = json.dumps(ours.get_config())
    assert json.loads(as_json) == json.loads(json.dumps(theirs.get_config()))
    for copied in (
        type(ours).from_config(json.loads(as_json)),
        schedules.deserialize(json.loads(json.dumps(schedules.serialize(ours)))),
        schedules.deserialize(keras.optimizers.schedules.serialize(theirs)),
        pickle.loads(pickle.dumps(ours)),
        copy.deepcopy(ours),
        eval(repr(ours), vars(schedules)),
    ):
        assert copied == ours
        assert hash(copied) == hash(ours)
        assert copied(13) == ours(13)


@pytest.mark.parametrize("ours", OWN, ids=repr)
def test_configs_of_schedules_that_keras_lacks_come_back(ours):
    as_json = json.dumps(ours.get_config())
    for copied in (
        type(ours).from_config(json.loads(as_json)),
        schedules.deserialize(json.loads(json.dumps(schedules.serialize(ours)))),
        pickle.loads(pickle.dumps(ours)),
        copy.deepcopy(ours),
        eval(repr(ours), vars(schedules)),
    ):
        assert copied == ours
        assert hash(copied) == hash(ours)
        assert [copied(step) for step in STEPS] == [ours(step) for step in STEPS]
    assert schedules.serialize(ours)["module"] == "fastopt.schedules"
    assert len({*OWN}) == len(OWN)


@pytest.mark.parametrize("ours", OWN, ids=repr)
@rows("step", [13, 13.0, np.int64(13), np.float32(13)])
def test_schedules_that_keras_lacks_give_floats(ours, step):
    assert type(ours(step)) is float
    assert ours(step) == ours(13)


@pytest.mark.parametrize("ours", OWN, ids=repr)
def test_optimizers_take_schedules_that_keras_lacks(ours):
    optimizer, weights = fastopt.SGD(ours), np.zeros(1)
    again = fastopt.SGD.from_config(json.loads(json.dumps(optimizer.get_config())))
    assert repr(again) == repr(optimizer)
    for step in range(8):
        assert optimizer.learning_rate == ours(step)
        optimizer.apply([np.ones(1)], [weights])


# -- functions as learning rates ---------------------------------------------------------------------------------------


def halving(step):
    return 0.5**step


class Halving:
    """The same in forms that are no plain function."""

    def __call__(self, step):
        return halving(step)

    def method(self, step):
        return halving(step)


FUNCTIONS = {
    "function": halving,
    "lambda": lambda step: halving(step),
    "object": Halving(),
    "bound method": Halving().method,
    "partial": functools.partial(lambda base, step: base**step, 0.5),
    "with an option": lambda step, base=0.5, *, scale=1.0: scale * base**step,
    "NumPy scalar": lambda step: np.float32(halving(step)),
    "0-d array": lambda step: np.array(halving(step)),
    "0-d tensor": lambda step: torch.tensor(halving(step), requires_grad=True),
    "int": lambda step: 1 if step == 0 else halving(step),
    "without hash": type("Unhashable", (Halving,), {"__eq__": lambda self, other: False})(),
}


@pytest.mark.parametrize("form", FUNCTIONS)
@pytest.mark.parametrize("name", ["SGD", "LossScaleOptimizer"])
def test_functions_of_one_argument_are_asked_with_the_step(form, name):
    """Steps count from 0, so the rates are 1, 1/2, 1/4, …; with gradients of 1 the weights are exact sums of them."""
    weights, optimizer = np.zeros(3), fastopt.SGD(FUNCTIONS[form])
    if name == "LossScaleOptimizer":
        optimizer = fastopt.LossScaleOptimizer(optimizer, 1.0)
    for step in range(6):
        assert optimizer.learning_rate == 0.5**step
        optimizer.apply([np.ones(3)], [weights])
    assert -weights[0] == 2 - 2 * 0.5**6


@pytest.mark.parametrize("accumulated", [None, 2])
@pytest.mark.parametrize("name", ["SGD", "Nadam"])
def test_optimizers_take_schedules_of_keras(name, accumulated):
    """Against Keras's optimizer with the same schedule, which it asks with the count of calls, from 0."""
    schedule = keras.optimizers.schedules.PolynomialDecay(0.25, 6, 0.0)
    options = {"gradient_accumulation_steps": accumulated}
    optimizer, weights = getattr(fastopt, name)(schedule, **options), np.zeros(3, np.float32)
    theirs, variable = getattr(keras.optimizers, name)(schedule, **options), keras.Variable(np.zeros(3))
    for step in range(8):
        gradient = np.cos(np.arange(3, dtype=np.float32) + step)
        optimizer.apply([gradient], [weights])
        theirs.apply([keras.ops.convert_to_tensor(gradient)], [variable])
    np.testing.assert_allclose(weights, keras.ops.convert_to_numpy(variable.value), rtol=1e-5, atol=1e-6)


def test_optimizers_take_schedules_of_optax():
    """Against optax.sgd, which asks its schedules with the count of updates, from 0."""
    optax = pytest.importorskip("optax", reason="comes with the extra bench")
    schedule = optax.linear_onecycle_schedule(8, 0.25)
    optimizer, weights = fastopt.SGD(schedule), np.zeros(3, np.float32)
    theirs, params = optax.sgd(schedule), np.zeros(3, np.float32)
    state = theirs.init(params)
    for _ in range(8):
        optimizer.apply([np.ones(3, np.float32)], [weights])
        updates, state = theirs.update(np.ones(3, np.float32), state)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(weights, params, rtol=1e-6)


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_copies_go_on_with_a_function_of_the_step(make_copy):
    optimizer = fastopt.SGD(halving)
    optimizer.build([np.zeros(3)])
    optimizer.apply([np.ones(3)])
    assert make_copy(optimizer).learning_rate == 0.5
    fresh = fastopt.SGD(halving)
    fresh.build([np.zeros(3)])
    fresh.load_state_dict(optimizer.state_dict())
    assert fresh.learning_rate == 0.5


@pytest.mark.parametrize(
    "function",
    [lambda epoch, rate: rate, lambda step, *, total: step / total, lambda *, step: step, math.pow],
    ids=["two arguments", "keyword without default", "by keyword only", "built-in of two"],
)
def test_functions_that_cannot_be_asked_are_refused_when_they_are_set(function):
    with pytest.raises(TypeError, match="learning_rate is a function of"):
        fastopt.SGD(function)
    optimizer = fastopt.SGD(0.5)
    with pytest.raises(TypeError, match="learning_rate is a function of"):
        optimizer.learning_rate = function
    assert optimizer.learning_rate == 0.5


def test_functions_without_required_arguments_are_asked_without():
    for function in (lambda step=5: 1.0 / step, lambda *steps: 0.2 + len(steps), iter([0.2]).__next__, lambda: 0.2):
        assert fastopt.SGD(function).learning_rate == 0.2


def test_a_function_of_the_step_is_followed_by_another_function_only():
    """As Keras has it for schedules."""
    optimizer = fastopt.SGD(lambda step: 0.5)
    with pytest.raises(TypeError, match="follows a schedule"):
        optimizer.learning_rate = 0.1
    optimizer.learning_rate = lambda: 0.25
    assert optimizer.learning_rate == 0.25
    optimizer.learning_rate = 0.125
    assert optimizer.learning_rate == 0.125


def test_what_a_function_of_the_step_returns_is_checked():
    for answer, error in ((np.ones(2), TypeError), ("0.1", TypeError), (None, TypeError), (math.nan, ValueError)):
        weights, optimizer = np.zeros(3), fastopt.SGD(lambda step, answer=answer: answer)
        with pytest.raises(error, match="learning_rate"):
            optimizer.apply([np.ones(3)], [weights])
        assert not weights.any()


def test_configs_hold_no_numpy_and_no_shared_list():
    schedule = schedules.CosineDecay(np.float32(0.5), np.int64(10))
    assert json.dumps(schedule.get_config()).startswith('{"initial_learning_rate": 0.5, "decay_steps": 10,')
    piecewise = schedules.PiecewiseConstantDecay(np.array([3, 5]), np.array([3.0, 2.0, 1.0]))
    piecewise.get_config()["values"].append(0.0)
    assert piecewise.values == [3.0, 2.0, 1.0]


def test_different_arguments_or_classes_are_not_equal():
    one = schedules.ExponentialDecay(0.1, 10, 0.5)
    assert one == schedules.ExponentialDecay(0.1, 10.0, 0.5)
    assert hash(one) == hash(schedules.ExponentialDecay(0.1, 10.0, 0.5))
    assert one != schedules.ExponentialDecay(0.1, 11, 0.5)
    assert one != schedules.InverseTimeDecay(0.1, 10, 0.5, name="ExponentialDecay")
    assert one != 0.1


@pytest.mark.parametrize(("name", "arguments"), CASES)
@rows("step", [13, 13.0, np.int32(13), np.int64(13), np.uint8(13), np.float32(13), np.float64(13)])
def test_takes_any_number_and_gives_a_float(name, arguments, step):
    schedule, _ = made(name, arguments)
    assert type(schedule(step)) is float
    assert schedule(step) == schedule(13)


def test_integer_rates_give_floats():
    assert schedules.ExponentialDecay(1, 10, 2, staircase=True)(20) == 4.0
    assert type(schedules.ExponentialDecay(1, 10, 2, staircase=True)(20)) is float
    assert type(schedules.PiecewiseConstantDecay([1], [2, 1])(1)) is float
    assert type(schedules.CosineDecay(1, 10, warmup_target=2, warmup_steps=5)(0)) is float


def test_piecewise_without_boundaries_is_constant():
    assert schedules.PiecewiseConstantDecay([], [0.1])(7) == 0.1


def test_name_may_be_missing():
    schedule = schedules.CosineDecay(0.1, 10, name=None)
    assert schedules.CosineDecay.from_config(schedule.get_config()) == schedule


def periods_by_walking(step, first, t_mul):
    """Number of the period and done part of it, in exact arithmetic, one period after the other."""
    start, length, period = Fraction(0), Fraction(first), 0
    while step >= start + length:
        start, length, period = start + length, length * t_mul, period + 1
    return period, (step - start) / length


@settings(deadline=None)
@given(
    step=st.integers(0, 10**5),
    first=st.integers(100, 1000),
    t_mul=st.sampled_from([Fraction(1), Fraction(5, 4), Fraction(3, 2), Fraction(2), Fraction(3), Fraction(10)]),
)
def test_restarts_follow_their_definition(step, first, t_mul):
    schedule = schedules.CosineDecayRestarts(1.0, first, t_mul=float(t_mul), m_mul=0.9, alpha=0.1)
    period, done = periods_by_walking(step, first, t_mul)
    expected = 0.9 * 0.5 * 0.9**period * (1 + np.cos(np.pi * float(done))) + 0.1
    assert schedule(step) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("t_mul", [1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0])
def test_every_restart_gives_the_full_rate(t_mul):
    schedule = schedules.CosineDecayRestarts(0.1, 64, t_mul=t_mul)
    start = Fraction(0)
    for period in range(13):
        if start.denominator == 1:
            assert schedule(int(start)) == pytest.approx(0.1, rel=1e-9), period
        start += 64 * Fraction(t_mul) ** period


def test_float32_of_keras_does_not_limit_the_step():
    schedule = schedules.PolynomialDecay(1.0, 2**26, end_learning_rate=0.0)
    assert schedule(2**25 + 1) < schedule(2**25)


# -- schedules that Keras lacks ----------------------------------------------------------------------------------------


def rates_of_torch(make, steps, rate=1.0):
    """The rates of a torch scheduler, which `make` makes for an optimizer."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate, momentum=0.9)
    scheduler = make(optimizer)
    found = [optimizer.param_groups[0]["lr"]]
    while len(found) < steps:
        optimizer.step()
        scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


def rates(schedule, steps):
    return [schedule(step) for step in range(steps)]


@rows("total_steps", [2, 3, 10, 47])
@rows("pct_start", [0.0, 0.3, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("anneal_strategy", ["cos", "linear"])
@pytest.mark.parametrize("three_phase", [False, True])
def test_one_cycle_equals_torch(total_steps, pct_start, anneal_strategy, three_phase):
    options = {"pct_start": pct_start, "anneal_strategy": anneal_strategy, "three_phase": three_phase}
    schedule = schedules.OneCycle(0.1, total_steps, **options, div_factor=10.0, final_div_factor=50.0)
    if pct_start * total_steps == 1:
        assert schedule(0) == 0.1, "torch divides by zero here"
        return
    expected = rates_of_torch(
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 0.1, total_steps, **options, div_factor=10.0, final_div_factor=50.0
        ),
        total_steps,
    )
    assert rates(schedule, total_steps) == pytest.approx(expected, rel=1e-12)
    assert schedule(10 * total_steps) == schedule(total_steps - 1)


def test_one_cycle_has_the_defaults_of_torch():
    pytest.importorskip("torch")
    theirs = inspect.signature(torch.optim.lr_scheduler.OneCycleLR).parameters
    for name, parameter in inspect.signature(schedules.OneCycle).parameters.items():
        if parameter.default is not parameter.empty and name != "name":
            assert parameter.default == theirs[name].default


def test_linear_warmup_equals_torch_sequential():
    """LinearLR of torch has a start factor for the first rate."""
    schedule = schedules.LinearWarmup(schedules.CosineDecay(0.1, 30), 10, 0.02)

    def make(optimizer):
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.2, total_iters=10)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30)
        return torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, decay], milestones=[10])

    assert rates(schedule, 40) == pytest.approx(rates_of_torch(make, 40, rate=0.1), rel=1e-9)


def test_chain_equals_torch_sequential():
    boundaries = [7, 20]
    schedule = schedules.Chain([0.03, schedules.ExponentialDecay(0.1, 1, 0.9), HALVING], boundaries)

    def make(optimizer):
        kinds = torch.optim.lr_scheduler
        factors = (lambda step: 0.3, lambda step: 0.9**step, lambda step: 0.5 ** (step / 20))
        return kinds.SequentialLR(optimizer, [kinds.LambdaLR(optimizer, factor) for factor in factors], boundaries)

    assert rates(schedule, 60) == pytest.approx(rates_of_torch(make, 60, rate=0.1), rel=1e-12)


def test_chain_gives_a_boundary_to_the_schedule_that_begins_there():
    assert rates(schedules.Chain([1.0, 2.0], [3]), 5) == [1.0, 1.0, 1.0, 2.0, 2.0]
    assert rates(schedules.PiecewiseConstantDecay([3], [1.0, 2.0]), 5) == [1.0, 1.0, 1.0, 1.0, 2.0]
    assert rates(schedules.Chain([1.0, 2.0], [0]), 2) == [2.0, 2.0]
    assert rates(schedules.Chain([HALVING], []), 60) == rates(HALVING, 60)


@pytest.mark.parametrize(("warmup", "total"), [(0, 20), (5, 20), (19, 20), (2.5, 7.5)])
def test_warmup_cosine_equals_the_cosine_decay_of_keras(warmup, total):
    ours = schedules.WarmupCosine(0.1, warmup, total, 0.01, 0.02)
    theirs = keras.optimizers.schedules.CosineDecay(
        0.01, total - warmup, alpha=0.2, warmup_target=0.1, warmup_steps=warmup
    )
    assert rates(ours, 40) == pytest.approx([float(theirs(step)) for step in range(40)], rel=1e-5)


def test_warmup_stable_decay_in_closed_form():
    curves = {
        "linear": lambda r: 1 - r,
        "cosine": lambda r: (1 + math.cos(math.pi * r)) / 2,
        "1-sqrt": lambda r: 1 - math.sqrt(r),
    }
    for decay, curve in curves.items():
        ours = schedules.WarmupStableDecay(0.1, 10, 30, 20, 0.02, 0.01, decay=decay)
        warmup = [0.02 + 0.08 * step / 10 for step in range(10)]
        cooldown = [0.01 + 0.09 * curve(step / 20) for step in range(21)]
        assert rates(ours, 70) == pytest.approx([*warmup, *[0.1] * 30, *cooldown, *[0.01] * 9], rel=1e-12)
    assert schedules.WarmupStableDecay(0.1, 0, 0, 4)(0) == 0.1


def test_the_three_readings_of_time_based_decay():
    """The values for a rate of 0.1 and a decay of 0.001, from the formulas by hand."""
    per_epoch, recursive = (schedules.TimeBasedDecay(0.1, 0.001, variant) for variant in ("epochs", "recursive"))
    assert rates(per_epoch, 4) == pytest.approx([0.1, 0.0999001, 0.0998004, 0.0997009], abs=5e-8)
    assert rates(recursive, 5) == pytest.approx([0.1, 0.0999001, 0.0997007, 0.0994025, 0.0990065], abs=5e-8)
    assert schedules.TimeBasedDecay(0.1, 0.001)(1000) == 0.05
    # decay = learning_rate / nb_epoch, after 50 epochs of 100 batches
    assert schedules.TimeBasedDecay(0.1, 0.1 / 50)(5000) == pytest.approx(0.00909, abs=5e-6)
    assert schedules.TimeBasedDecay(0.1, 0.1 / 50, "epochs")(50) == pytest.approx(0.0909, abs=5e-5)


@given(rate=st.floats(1e-6, 10), decay=st.floats(0, 2), epoch=st.integers(0, 300), per_epoch=st.integers(1, 50))
def test_time_based_decay_follows_its_definition(rate, decay, epoch, per_epoch):
    step = epoch * per_epoch + per_epoch - 1
    by_updates = schedules.TimeBasedDecay(rate, decay)
    assert by_updates(step) == pytest.approx(schedules.InverseTimeDecay(rate, 1, decay)(step), rel=1e-15)
    by_epochs, recursive = (
        schedules.TimeBasedDecay(rate, decay, variant, steps_per_epoch=per_epoch) for variant in ("epochs", "recursive")
    )
    assert by_epochs(step) == rate * (1 / (1 + decay * epoch))
    expected = rate
    for number in range(1, epoch + 1):
        expected = expected * 1 / (1 + decay * number)
    assert recursive(step) == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_recursive_decay_goes_on_from_the_last_epoch():
    schedule = schedules.TimeBasedDecay(0.1, 1e-9, "recursive")
    forward = [schedule(epoch) for epoch in range(100_000)]  # starting over each time would take hours
    assert [schedule(epoch) for epoch in (99_999, 70, 0)] == [forward[-1], forward[70], 0.1]


def test_recursive_decay_of_very_many_epochs_ends():
    assert schedules.TimeBasedDecay(0.1, 0.5, "recursive")(10**12) == 0.0
    assert schedules.TimeBasedDecay(0.1, 0.0, "recursive")(10**12) == 0.1


def test_the_two_variants_of_step_decay():
    formula, code = (schedules.StepDecay(0.1, 0.5, 10.0, variant=variant) for variant in ("formula", "code"))
    assert rates(formula, 31) == [0.1] * 10 + [0.05] * 10 + [0.025] * 10 + [0.0125]
    assert rates(code, 30) == [0.1] * 9 + [0.05] * 10 + [0.025] * 10 + [0.0125]
    staircase = schedules.ExponentialDecay(0.1, 10, 0.5, staircase=True)
    assert rates(formula, 60) == pytest.approx(rates(staircase, 60), rel=1e-15)


@pytest.mark.parametrize("variant", ["formula", "code"])
def test_step_decay_per_step_is_constant_within_an_epoch(variant):
    per_epoch, per_step = (schedules.StepDecay(0.1, 0.7, 3, variant, steps) for steps in (1, 4))
    assert rates(per_step, 80) == [rate for rate in rates(per_epoch, 20) for _ in range(4)]


@rows(
    ("make", "error", "message"),
    [
        (lambda: schedules.LinearWarmup("0.1", 5), TypeError, "learning_rate must be a number or a schedule"),
        (lambda: schedules.LinearWarmup(schedules.CosineDecay, 5), TypeError, "a number or a schedule"),
        (lambda: schedules.LinearWarmup(float("inf"), 5), ValueError, "learning_rate must be finite"),
        (lambda: schedules.LinearWarmup(0.1, -1), ValueError, "warmup_steps must be >= 0"),
        (lambda: schedules.WarmupCosine(0.1, 20, 20), ValueError, "warmup_steps must be less than total_steps"),
        (lambda: schedules.WarmupCosine(0.1, 0, 0), ValueError, "total_steps must be > 0"),
        (lambda: schedules.WarmupStableDecay(0.1, 1, 1, 0), ValueError, "decay_steps must be > 0"),
        (lambda: schedules.WarmupStableDecay(0.1, 1, -1, 1), ValueError, "stable_steps must be >= 0"),
        (
            lambda: schedules.WarmupStableDecay(0.1, 1, 1, 1, decay="sqrt"),
            ValueError,
            "decay must be 'linear' or 'cosine' or '1-sqrt', got 'sqrt'",
        ),
        (lambda: schedules.OneCycle(0.1, 0), ValueError, "total_steps must be >= 1"),
        (lambda: schedules.OneCycle(0.1, 9, 1.1), ValueError, "pct_start must be <= 1"),
        (lambda: schedules.OneCycle(0.1, 9, -0.1), ValueError, "pct_start must be >= 0"),
        (lambda: schedules.OneCycle(0.1, 9, anneal_strategy="cosine"), ValueError, "'cos' or 'linear', got 'cosine'"),
        (lambda: schedules.OneCycle(0.1, 9, anneal_strategy=["cos"]), ValueError, "anneal_strategy must be"),
        (lambda: schedules.OneCycle(0.1, 9, div_factor=0), ValueError, "div_factor must be > 0"),
        (lambda: schedules.OneCycle(0.1, 9, three_phase=3), TypeError, "three_phase must be True or False"),
        (lambda: schedules.Chain([0.1, 0.2], [1, 2]), ValueError, "2 schedules and 2 boundaries"),
        (lambda: schedules.Chain([0.1, 0.2, 0.3], [2, 2]), ValueError, "strictly increasing, got 2 before 2"),
        (lambda: schedules.Chain([0.1, 0.2], [-1]), ValueError, "boundaries must be >= 0"),
        (lambda: schedules.Chain([0.1, "0.2"], [1]), TypeError, r"schedules\[1\] must be a number or a schedule"),
        (lambda: schedules.Chain(0.1, [1]), TypeError, "schedules must be a sequence of schedules or numbers"),
        (lambda: schedules.TimeBasedDecay(0.1, -0.1), ValueError, "decay must be >= 0"),
        (lambda: schedules.TimeBasedDecay(0.1, 0.1, "epoch"), ValueError, "'updates' or 'epochs' or 'recursive'"),
        (lambda: schedules.TimeBasedDecay(0.1, 0.1, steps_per_epoch=5), ValueError, "steps_per_epoch must be 1"),
        (lambda: schedules.StepDecay(0.1, -0.5, 10), ValueError, "drop must be >= 0"),
        (lambda: schedules.StepDecay(0.1, 0.5, 0), ValueError, "epochs_drop must be > 0"),
        (lambda: schedules.StepDecay(0.1, 0.5, 10, steps_per_epoch=0), ValueError, "steps_per_epoch must be > 0"),
        (lambda: schedules.StepDecay(0.1, 0.5, 10, "Code"), ValueError, "variant must be 'formula' or 'code'"),
    ],
)
def test_schedules_that_keras_lacks_refuse(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("schedule", OWN, ids=repr)
def test_schedules_that_keras_lacks_refuse_what_is_no_step(schedule):
    for step, error in ((-1, ValueError), (float("nan"), ValueError), ("3", TypeError), (None, TypeError)):
        with pytest.raises(error, match="step must be"):
            schedule(step)


def test_keras_takes_a_schedule_of_epochs_for_its_callback():
    """A schedule of epochs is a plain function of the epoch, for Keras's own callback too."""
    theirs = keras.optimizers.SGD(0.0)
    callback = keras.callbacks.LearningRateScheduler(schedules.StepDecay(0.1, 0.5, 10, variant="code"))
    callback.set_model(SimpleNamespace(optimizer=theirs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        callback.on_epoch_begin(9)
    assert float(theirs.learning_rate) == pytest.approx(0.05)


# -- refusals and lookup -----------------------------------------------------------------------------------------------

VALID = {
    "ExponentialDecay": {"initial_learning_rate": 0.1, "decay_steps": 10, "decay_rate": 0.5},
    "PiecewiseConstantDecay": {"boundaries": [1, 2], "values": [3.0, 2.0, 1.0]},
    "PolynomialDecay": {"initial_learning_rate": 0.1, "decay_steps": 10},
    "InverseTimeDecay": {"initial_learning_rate": 0.1, "decay_steps": 10, "decay_rate": 0.5},
    "CosineDecay": {"initial_learning_rate": 0.1, "decay_steps": 10, "warmup_target": 0.2, "warmup_steps": 3},
    "CosineDecayRestarts": {"initial_learning_rate": 0.1, "first_decay_steps": 10},
}
NUMERIC = [
    (name, argument)
    for name in NAMES
    for argument, parameter in inspect.signature(getattr(schedules, name)).parameters.items()
    if parameter.annotation in (float, float | None)
]


@pytest.mark.parametrize(("name", "argument"), NUMERIC)
def test_refuses_what_is_no_finite_number(name, argument):
    for value in ("0.1", [0.1], True, 1j, np.ones(2)):
        with pytest.raises(TypeError, match=argument):
            getattr(schedules, name)(**VALID[name] | {argument: value})
    for value in (float("nan"), float("inf"), np.float32("-inf")):
        with pytest.raises(ValueError, match=f"{argument} must be finite"):
            getattr(schedules, name)(**VALID[name] | {argument: value})


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        *((name, "decay_steps", value) for name in NAMES for value in (0, -1) if "decay_steps" in VALID[name]),
        ("CosineDecayRestarts", "first_decay_steps", 0),
        ("CosineDecayRestarts", "t_mul", 0.5),
        ("CosineDecayRestarts", "m_mul", -0.5),
        ("CosineDecay", "warmup_steps", -1),
        ("ExponentialDecay", "decay_rate", -0.5),
        ("InverseTimeDecay", "decay_rate", -0.5),
        ("PolynomialDecay", "power", -1.0),
    ],
)
def test_refuses_numbers_out_of_range(name, argument, value):
    with pytest.raises(ValueError, match=argument):
        getattr(schedules, name)(**VALID[name] | {argument: value})


@pytest.mark.parametrize(
    ("boundaries", "values", "error", "message"),
    [
        ([1, 2], [1.0, 2.0], ValueError, "2 values and 2 boundaries"),
        ([2, 1], [1.0, 2.0, 3.0], ValueError, "got 2 before 1"),
        ([1, 1], [1.0, 2.0, 3.0], ValueError, "got 1 before 1"),
        ([1, float("nan")], [1.0, 2.0, 3.0], ValueError, r"boundaries\[1\] must be finite"),
        ([1], [1.0, "2"], TypeError, r"values\[1\] must be a number"),
        ("1", [1.0, 2.0], TypeError, "boundaries must be a sequence"),
        (1, [1.0, 2.0], TypeError, "boundaries must be a sequence"),
    ],
)
def test_refuses_impossible_pieces(boundaries, values, error, message):
    with pytest.raises(error, match=message):
        schedules.PiecewiseConstantDecay(boundaries, values)


@pytest.mark.parametrize(
    ("name", "argument"), [("ExponentialDecay", "staircase"), ("PolynomialDecay", "cycle"), ("CosineDecay", "name")]
)
def test_refuses_flags_and_names_of_other_types(name, argument):
    with pytest.raises(TypeError, match=argument):
        getattr(schedules, name)(**VALID[name] | {argument: 2})


@pytest.mark.parametrize("name", NAMES)
def test_refuses_what_is_no_step(name):
    schedule = getattr(schedules, name)(**VALID[name])
    for step in (-1, -0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="step must be"):
            schedule(step)
    for step in ("3", None, [3]):
        with pytest.raises(TypeError, match="step must be a number"):
            schedule(step)


def test_get_knows_every_name_in_any_case():
    for name in NAMES + OWN_NAMES:
        assert schedules.get(name) is schedules.get(name.lower()) is getattr(schedules, name)


@pytest.mark.parametrize("name", ["cosine", None, 3])
def test_get_lists_the_names_it_knows(name):
    with pytest.raises(ValueError, match="unknown learning rate schedule") as caught:
        schedules.get(name)
    assert all(known in str(caught.value) for known in NAMES)


@pytest.mark.parametrize("config", [{}, {"class_name": "CosineDecay"}, "CosineDecay", None])
def test_deserialize_says_what_it_needs(config):
    with pytest.raises(ValueError, match="class_name and config"):
        schedules.deserialize(config)


def test_serialize_refuses_what_is_no_schedule():
    with pytest.raises(TypeError, match="LearningRateSchedule"):
        schedules.serialize(0.1)


class Rooted(schedules.LearningRateSchedule):
    """A user's own, whose attribute is not called as its argument is."""

    def __init__(self, peak):
        self._peak = peak

    def __call__(self, step):
        return self._peak / (step + 1) ** 0.5

    def get_config(self):
        return {"peak": self._peak}


class Unsaved(schedules.LearningRateSchedule):
    def __init__(self, peak):
        self._peak = peak


def test_a_users_schedule_needs_two_methods():
    ours = Rooted(0.1)
    assert ours(3) == 0.05
    assert repr(ours) == "Rooted(peak=0.1)"
    assert ours == Rooted(0.1)
    assert {ours, Rooted(0.1)} == {ours}
    assert schedules.deserialize(schedules.serialize(ours), {"Rooted": Rooted}) == ours


def test_a_users_schedule_may_be_nested():
    ours = schedules.LinearWarmup(schedules.Chain([Rooted(0.1), 0.01], [100]), 5)
    config = schedules.serialize(ours)
    with pytest.raises(ValueError, match="unknown learning rate schedule 'Rooted'"):
        schedules.deserialize(config)
    assert schedules.deserialize(config, {"Rooted": Rooted}) == ours
    with pytest.raises(ValueError, match="unknown learning rate schedule 'Rooted'"):
        type(ours).from_config(config["config"])


def test_a_users_schedule_without_config_is_itself_only():
    one, other = Unsaved(0.1), Unsaved(0.1)
    assert one != other
    assert len({one, other, one}) == 2
    assert "Unsaved object" in repr(one)
    with pytest.raises(NotImplementedError, match="must override get_config"):
        schedules.serialize(one)
    with pytest.raises(NotImplementedError, match="must override __call__"):
        one(0)


def test_docstring_examples():
    modules = [
        importlib.import_module(found.name) for found in pkgutil.iter_modules(schedules.__path__, "fastopt.schedules.")
    ]
    assert sum(doctest.testmod(module).attempted for module in modules) > 20
    assert sum(doctest.testmod(module).failed for module in modules) == 0
