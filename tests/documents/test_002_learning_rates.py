"""Document 002: how to set the learning rate of SGD."""

import csv
import math
from itertools import pairwise

import numpy as np
import pytest
from documents.runs import documented_signature, era_class, steps_of
from typer.testing import CliRunner

import fastopt
from fastopt.cli import app
from fastopt.compat.keras_2_2 import callbacks, optimizers

ERA = "keras_2_2"


def step_decay(epoch):
    """The article's function."""
    initial_lrate = 0.1
    drop = 0.5
    epochs_drop = 10.0
    lrate = initial_lrate * math.pow(drop, math.floor((1 + epoch) / epochs_drop))
    return lrate


def rates(optimizer, updates):
    """The rate of each update: what a gradient of 1 moves a parameter by."""
    return [
        -(b - a)
        for a, b in pairwise([0.0, *(s[0][0] for s in steps_of(optimizer, [np.zeros(1)], [[np.ones(1)]] * updates))])
    ]


@pytest.mark.row(65, oracle="the document's signature")
def test_signature():
    documented = {"lr": 0.01, "momentum": 0.0, "decay": 0.0, "nesterov": False}
    found = documented_signature(era_class(ERA, "SGD"))
    assert found == documented
    assert list(found) == list(documented)


# -- time-based --------------------------------------------------------------------------------------------------------


@pytest.mark.row(65, 67, oracle="lr0 / (1 + decay * iterations) by hand: per update, not recursive")
def test_decay():
    assert rates(optimizers.SGD(lr=0.1, decay=0.5), 4) == pytest.approx([0.1, 0.1 / 1.5, 0.05, 0.04])


@pytest.mark.row(68, oracle="the closed form; half the rate after 1/decay updates")
def test_the_articles_curve():
    found = rates(optimizers.SGD(lr=0.1, decay=0.001), 1001)
    assert found[:4] == pytest.approx([0.1, 0.0999001, 0.0998004, 0.0997009], abs=1e-7)
    assert found[1000] == pytest.approx(0.05)
    assert all(later < earlier for earlier, later in pairwise(found))


@pytest.mark.row(67, 68, oracle="the closed forms by hand: per update, per epoch, and read as an assignment")
@pytest.mark.parametrize(
    "variant, expected",
    [
        ("updates", [0.1, 0.0999001, 0.0998004, 0.0997009]),
        ("epochs", [0.1, 0.0999001, 0.0998004, 0.0997009]),
        ("recursive", [0.1, 0.0999001, 0.0997007, 0.0994025]),
    ],
)
def test_the_articles_formula_as_a_schedule(variant, expected):
    schedule = fastopt.schedules.TimeBasedDecay(0.1, 0.001, variant)
    assert [schedule(number) for number in range(4)] == pytest.approx(expected, abs=1e-7)


@pytest.mark.row(68, oracle="the closed form, for every update that the curve shows")
def test_the_articles_curve_on_the_command_line():
    shown = CliRunner().invoke(app, ["schedule", "TimeBasedDecay(0.1, 0.001)", "--steps", "1000", "--csv"])
    _, *curve = csv.reader(shown.stdout.splitlines())
    assert [(int(step), float(rate)) for step, rate in curve] == [
        (step, pytest.approx(0.1 / (1 + 0.001 * step))) for step in range(1001)
    ]


@pytest.mark.row(67, 69, oracle="lr0 / (1 + decay * epoch), constant within an epoch, by hand")
def test_the_articles_reading_by_epochs():
    by_epochs = fastopt.schedules.TimeBasedDecay(0.1, 0.002, "epochs", steps_per_epoch=100)
    assert [by_epochs(step) for step in (0, 99, 100, 5000)] == pytest.approx([0.1, 0.1, 0.1 / 1.002, 0.1 / 1.1])


@pytest.mark.row(69, oracle="spec: 0.1 / (1 + 0.002 * 5000) after 50 epochs of 100 batches")
def test_the_articles_recipe():
    learning_rate, nb_epoch = 0.1, 50
    recipe = {"lr": learning_rate, "decay": learning_rate / nb_epoch}
    assert rates(optimizers.SGD(**recipe), 5001)[5000] == pytest.approx(0.1 / 11)
    config = optimizers.SGD(**recipe, momentum=0.9, nesterov=True).get_config()
    assert config == {"lr": 0.1, "momentum": 0.9, "decay": 0.002, "nesterov": True}


# -- drop-based --------------------------------------------------------------------------------------------------------


@pytest.mark.row(
    71, oracle="the document's formula by hand: InitialLearningRate * DropRate ** floor(Epoch / EpochDrop)"
)
def test_the_articles_formula():
    schedule = fastopt.schedules.StepDecay(0.1, 0.5, 10)
    epochs = (0, 9, 10, 19, 20, 30)
    assert [schedule(epoch) for epoch in epochs] == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025, 0.0125])


@pytest.mark.row(72, oracle="the article's own function")
def test_the_articles_code_as_a_schedule():
    schedule = fastopt.schedules.StepDecay(0.1, 0.5, 10, variant="code")
    assert [schedule(epoch) for epoch in range(40)] == [step_decay(epoch) for epoch in range(40)]


@pytest.mark.row(70, oracle="constant between drops; the drops lie on an exponential")
def test_constant_then_sudden():
    schedule = fastopt.schedules.StepDecay(0.1, 0.5, 10)
    values = [schedule(epoch) for epoch in range(40)]
    drops = [epoch for epoch, (a, b) in enumerate(pairwise(values), 1) if a != b]
    assert drops == [10, 20, 30]
    assert np.diff(np.log(values[::10])) == pytest.approx([-math.log(2)] * 3)


# -- the callback ------------------------------------------------------------------------------------------------------


def scheduled_rates(optimizer, epochs):
    """The rate of each epoch under the article's callback, in a plain loop."""
    callback, seen = callbacks.LearningRateScheduler(step_decay), []
    optimizer.build([np.zeros(1)])
    for epoch in range(epochs):
        callback.on_epoch_begin(epoch, {}, optimizer)
        seen.append(optimizer.learning_rate)
        optimizer.apply([np.ones(1)])
        callback.on_epoch_end(epoch, {}, optimizer)
    return seen


@pytest.mark.row(72, 73, 74, oracle="epochs 0-8: 0.1, 9-18: 0.05, 19-28: 0.025, 29: 0.0125, by hand")
def test_step_decay_rules_the_placeholder_rate():
    optimizer = optimizers.SGD(lr=0.0, momentum=0.9, decay=0.0, nesterov=False)
    assert scheduled_rates(optimizer, 30) == pytest.approx([0.1] * 9 + [0.05] * 10 + [0.025] * 10 + [0.0125])


@pytest.mark.row(74, oracle="no placeholder rate moves anything")
def test_the_placeholder_moves_nothing():
    assert rates(optimizers.SGD(lr=0.0, momentum=0.9, decay=0.0, nesterov=False), 3) == [0.0] * 3


# -- workflow and batches ----------------------------------------------------------------------------------------------

RNG = np.random.default_rng(3)
INPUTS = RNG.normal(size=(64, 3))
TARGETS = INPUTS @ np.array([1.0, -2.0, 0.5])


def least_squares(optimizer, batch_size, epochs=30):
    """(mean squared error after training, updates done)."""
    weights = np.zeros(3)
    optimizer.build([weights])
    for _ in range(epochs):
        for start in range(0, len(INPUTS), batch_size):
            x, y = INPUTS[start : start + batch_size], TARGETS[start : start + batch_size]
            optimizer.apply([2 * x.T @ (x @ weights - y) / len(x)])
    return float(np.mean((INPUTS @ weights - TARGETS) ** 2)), optimizer.iterations


@pytest.mark.row(66, oracle="a convex problem whose minimum is 0")
def test_sgd_first_then_other_rates_then_other_optimizers():
    start = float(np.mean(TARGETS**2))
    by_rate = [least_squares(optimizers.SGD(lr=lr), batch_size=16)[0] for lr in (1e-4, 1e-3, 1e-2)]
    assert start > by_rate[0] > by_rate[1] > by_rate[2]
    for name in ("RMSprop", "Adagrad", "Adam", "Adamax", "Nadam"):
        assert least_squares(era_class(ERA, name)(lr=0.1), batch_size=16)[0] < 0.05 * start, name


@pytest.mark.row(
    76, oracle="updates per epoch counted by hand; the gradient of all samples is the mean of the batches'"
)
def test_batch_sizes():
    assert [least_squares(optimizers.SGD(), size, epochs=1)[1] for size in (64, 16, 1)] == [1, 4, 64]
    per_batch = [least_squares(optimizers.SGD(lr=0.01), size, epochs=1)[0] for size in (64, 16, 1)]
    assert per_batch[0] > per_batch[1] > per_batch[2], "more updates in one pass over the data get further"
