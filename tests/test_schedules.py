"""Schedules against real Keras, exact restarts, configs and refusals."""

import copy
import doctest
import inspect
import json
import pickle
from fractions import Fraction

import keras_reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
@pytest.mark.parametrize("step", [13, 13.0, np.int32(13), np.int64(13), np.uint8(13), np.float32(13), np.float64(13)])
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
    for name in NAMES:
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
    assert doctest.testmod(schedules).failed == 0
