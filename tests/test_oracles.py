"""The oracles against real Keras 3, against numbers that Keras tests itself with, and against recorded trajectories."""

from collections import Counter
from dataclasses import replace

import numpy as np
import oracles
import pytest
import table
from compare import Trajectory, assert_close, keras_run, oracle_run, worst_of_slots, worst_of_steps

# How far Keras in float32 strays from the float64 oracle within 50 steps, times two or three. Most of it is Adam's bias
# correction: float32 knows 1 - 0.999**t to 1e-5 only. SGD's parameters reach 50, and come back to the floor of 1e-2.
BOUNDS = {"Adam": 1e-3, "AdamW": 1e-3, "Muon": 1e-3, "SGD": 3e-4, "Lion": 2e-4, "ScheduleFreeAdamW": 2e-4}
BOUND = 1e-4
SLOTS_BOUND = 2e-4
VISIBLE = 1e-2

P, G = [1.0, 2.0, 3.0, 4.0], [1.0, 6.0, 7.0, 2.0]
SQUARE = [[1.0, 2.0], [3.0, 4.0]]


def shifted(amount):
    return [value - amount for value in P]


# One step at rate 0.5, from the tests of Keras itself.
CHECK_VALUES = [
    ("SGD", P, [0.5, -1.0, -0.5, 3.0]),
    ("Adam", P, shifted(0.5)),
    ("Adamax", P, shifted(0.5)),
    ("Lion", P, shifted(0.5)),
    ("AdamW", P, [0.4980, 1.4960, 2.494, 3.492]),
    ("Nadam", P, shifted(0.5314)),
    ("RMSprop", P, shifted(1.5811)),
    ("Adagrad", P, [0.5233, 1.5007, 2.5005, 3.5061]),
    ("Adadelta", P, shifted(0.0007)),
    ("Lamb", P, shifted(1.3693)),
    ("Adafactor", P, shifted(1.3693)),
    ("Adafactor", SQUARE, [[0.7007, -0.0081], [1.2492, 3.4407]]),
    ("Ftrl", P, [0.2218, 1.3954, 2.3651, 2.8814]),
    ("Muon", SQUARE, [[0.9888, 1.8871], [2.8734, 3.9704]]),
]


@table.over(table.COMPARABLE_WITH_KERAS)
def test_oracle_follows_keras(case):
    assert_close(keras_run(case), oracle_run(case), BOUNDS.get(case.optimizer, BOUND), SLOTS_BOUND)


@pytest.mark.parametrize(("name", "param", "expected"), CHECK_VALUES)
def test_oracle_reproduces_the_check_values_of_keras(name, param, expected):
    grads = [np.reshape(G, np.shape(param))]
    (step,) = oracles.run(name, {"learning_rate": 0.5}, [np.array(param)], [grads])
    # Newton-Schulz is an approximation, and Keras states its result to two digits.
    np.testing.assert_allclose(step[0], expected, atol=1e-2 if name == "Muon" else 5.1e-5)


def test_oracle_decays_before_the_step():
    kwargs = {"learning_rate": 1.0, "weight_decay": 0.004}
    last = oracles.run("SGD", kwargs, [np.array(2.0)], [[np.array(0.0)]] * 3)[-1]
    assert last[0] == pytest.approx(1.9760959, abs=1e-7)


@pytest.mark.parametrize("case", table.golden(), ids=lambda case: case.id)
def test_oracle_reproduces_golden(case):
    params = [param.astype(np.float64) for param in case.params]
    oracle = oracles.Oracle(case.optimizer, case.kwargs, params)
    steps = [oracle.apply(grads) for grads in case.grads]
    assert_close(Trajectory(case.steps, case.slots), Trajectory(steps, oracle.slots), 2e-6)


@table.over([case for case in table.CASES if "micro-step" in case.differs_from_keras])
def test_averages_of_accumulated_steps_differ_from_keras(case):
    """Keras pulls the average on micro-steps too: the two part at the first overwrite, in the third window."""
    ours, keras = oracle_run(case).steps, keras_run(case).steps
    bound = BOUNDS.get(case.optimizer, BOUND)
    assert worst_of_steps(keras[:4], ours[:4]).error < bound
    assert worst_of_steps(keras, ours).error > VISIBLE


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", oracles.RULES)
def test_oracle_keeps_dtype_and_shape(name, dtype):
    params = [np.ones(shape, dtype) for shape in table.SHAPES]
    kwargs = {"weight_decay": 0.1, "use_ema": True, "ema_overwrite_frequency": 2, "gradient_accumulation_steps": 2}
    oracle = oracles.Oracle(name, kwargs | table.OWN[name][0], params)
    for _ in range(4):
        oracle.apply([np.full(shape, 0.1) for shape in table.SHAPES])
    assert [(param.shape, param.dtype) for param in oracle.params] == [(shape, dtype) for shape in table.SHAPES]
    assert {slot.dtype for slots in oracle.slots.values() for slot in slots if slot is not None} == {np.dtype(dtype)}


@table.over([case for case in table.CASES if table.BIG not in case.shapes])
def test_every_option_of_a_row_shows(case):
    """A row that would pass without one of its options tests nothing."""
    for option in visible_options(case):
        kwargs = without(case.kwargs, option)
        # Muon's iteration, with one coefficient of another set, overflows: that shows, too.
        with np.errstate(all="ignore"):
            run = oracle_run(replace(case, kwargs=kwargs))
        assert difference(run, oracle_run(case)) > VISIBLE, option


def visible_options(case):
    """All but explicit defaults and `relative_step`, which has no effect in Keras either."""
    return [name for name, value in case.kwargs.items() if value is not False and name != "relative_step"]


def without(kwargs, option):
    dropped = [name for name in kwargs if name == option or (option == "use_ema" and name.startswith("ema_"))]
    return {name: value for name, value in kwargs.items() if name not in dropped}


def difference(trajectory, reference):
    if trajectory.slots.keys() != reference.slots.keys():
        return np.inf
    steps = worst_of_steps(trajectory.steps, reference.steps).error
    slots = worst_of_slots(trajectory.slots, reference.slots).error
    return np.inf if np.isnan(steps + slots) else max(steps, slots)


def test_covering_subset_has_every_optimizer_and_option_twice():
    def used(cases):
        return Counter(use for case in cases for use in uses(case))

    rare = {use: count for use, count in used(case for case in table.CASES if not case.full).items() if count < 2}
    assert set(used(case for case in table.CASES if not case.full)) == set(used(table.CASES))
    assert not rare


def uses(case):
    """What a row exercises: its optimizer, the common options by name, own hyper-parameters by optimizer and name."""
    yield case.optimizer
    for option in visible_options(case):
        own = any(option in values for values in table.OWN[case.optimizer]) or option in ("exclude_layers",)
        yield (case.optimizer, option) if own else option
    if isinstance(case.kwargs.get("learning_rate"), tuple):
        yield case.kwargs["learning_rate"][0]
    yield from (name for name in ("names", "undecayed", "multipliers") if getattr(case, name))
