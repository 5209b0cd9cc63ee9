"""Callbacks against those of real Keras 3, and the old releases' against oracles written from their rules."""

import doctest
import inspect
import math
import warnings
from types import SimpleNamespace

import keras_reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt
from fastopt import callbacks, schedules
from fastopt.callbacks import rates
from fastopt.compat.keras_1_0 import callbacks as callbacks_1_0
from fastopt.compat.keras_2_2 import callbacks as callbacks_2_2
from fastopt.compat.keras_2_3 import callbacks as callbacks_2_3

keras = keras_reference.import_keras()

# Keras's variables lack the keyword by which NumPy 2 asks not to copy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

ERAS = (callbacks_2_2, callbacks_2_3)


@pytest.mark.parametrize("kind", ["LearningRateScheduler", "ReduceLROnPlateau", "SwapEMAWeights"])
def test_fit_of_keras_is_told_that_they_are_not_for_it(kind):
    """`fit` makes a list of its callbacks before anything else."""
    arguments = [lambda epoch: 0.1] if kind == "LearningRateScheduler" else []
    with pytest.raises(
        TypeError, match=rf"^{kind} of fastopt is for .* own: in Keras's fit use that of keras\.callbacks"
    ):
        keras.callbacks.CallbackList([getattr(callbacks, kind)(*arguments)], model=object(), epochs=1)
    assert hasattr(keras.callbacks, kind)


class Old:
    """What the callbacks need of the optimizers of Keras 1.0 and 2.2."""

    def __init__(self, lr):
        self.lr = lr


class Renamed:
    """What they need of those of Keras 2.3."""

    def __init__(self, lr):
        self.learning_rate = lr

    @property
    def lr(self):
        return self.learning_rate


def of_keras(name, optimizer, **arguments):
    """A real callback of Keras, with no more of a model than it needs."""
    callback = getattr(keras.callbacks, name)(**arguments)
    callback.set_model(SimpleNamespace(optimizer=optimizer))
    return callback


def step_decay(epoch):
    """As tutorials write it."""
    initial_lrate = 0.1
    drop = 0.5
    epochs_drop = 10.0
    return initial_lrate * math.pow(drop, math.floor((1 + epoch) / epochs_drop))


# -- LearningRateScheduler ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule",
    [
        step_decay,
        lambda epoch, learning_rate: learning_rate * 0.5,
        lambda epoch, drop=0.5: 0.1 * drop**epoch,
        lambda epoch, *, drop=0.5: 0.1 * drop**epoch,
        lambda epoch: np.float32(0.25),
        lambda epoch: np.float64(0.25),
        schedules.StepDecay(0.1, 0.5, 2, variant="code"),
    ],
)
def test_scheduler_equals_keras(schedule, capsys):
    rate = 0.5
    optimizer, theirs = fastopt.SGD(rate), keras.optimizers.SGD(rate)
    callback = callbacks.LearningRateScheduler(schedule, verbose=1)
    reference = of_keras("LearningRateScheduler", theirs, schedule=schedule, verbose=1)
    printed = []
    for epoch in range(12):
        callback.on_epoch_begin(epoch, None, optimizer)
        printed.append(capsys.readouterr().out)
        reference.on_epoch_begin(epoch)
        expected = capsys.readouterr().out
        assert printed[-1].split(" to ")[0] == expected.split(" to ")[0]
        assert printed[-1].startswith(f"\nEpoch {epoch + 1}: LearningRateScheduler setting learning rate to ")
        logs, reference_logs = {"loss": 1.0}, {"loss": 1.0}
        callback.on_epoch_end(epoch, logs, optimizer)
        reference.on_epoch_end(epoch, reference_logs)
        assert logs == pytest.approx(reference_logs, rel=1e-6)


def test_scheduler_is_silent_and_takes_no_logs(capsys):
    optimizer, logs = fastopt.SGD(0.1), {}
    callback = callbacks.LearningRateScheduler(step_decay)
    callback.on_epoch_begin(9, None, optimizer)
    callback.on_epoch_end(9, None, optimizer)
    callback.on_epoch_end(9, logs, optimizer)
    assert logs == {"learning_rate": 0.05}
    assert capsys.readouterr().out == ""


def test_a_defaulted_second_argument_receives_the_rate():
    """The hazard: `drop` is the rate, from Keras 2.1.4 on; keyword-only it is not."""
    hazardous, safe = (lambda epoch, drop=0.5: drop), (lambda epoch, *, drop=0.5: drop)
    for module, make in ((callbacks, fastopt.SGD), (callbacks_2_2, Old), (callbacks_2_3, Renamed)):
        for schedule, expected in ((hazardous, 0.125), (safe, 0.5)):
            optimizer = make(0.125)
            module.LearningRateScheduler(schedule).on_epoch_begin(0, None, optimizer)
            assert getattr(optimizer, "learning_rate", None) == expected or optimizer.lr == expected
    optimizer = Old(0.125)
    callbacks_1_0.LearningRateScheduler(hazardous).on_epoch_begin(0, None, optimizer)
    assert optimizer.lr == 0.5


def test_what_a_schedule_raises_is_not_lost():
    def broken(epoch, learning_rate):
        raise TypeError("the cause")

    with pytest.raises(TypeError, match="learning_rate") as caught:
        callbacks.LearningRateScheduler(broken).on_epoch_begin(0, None, fastopt.SGD(0.1))
    assert "the cause" in str(caught.value.__context__)


@pytest.mark.parametrize("value", [1, None, "0.1", np.array([0.1]), np.float16(0.1), schedules.CosineDecay(0.1, 5)])
def test_schedules_return_floats(value):
    optimizer = fastopt.SGD(0.5)
    for module in (callbacks, *ERAS):
        with pytest.raises(ValueError, match=r"should be a float\. Got"):
            target = Old(0.5) if module is callbacks_2_2 else optimizer
            module.LearningRateScheduler(lambda epoch: value).on_epoch_begin(0, None, target)
    with pytest.raises(ValueError, match="should be a float"):
        of_keras("LearningRateScheduler", keras.optimizers.SGD(), schedule=lambda epoch: value).on_epoch_begin(0)
    assert optimizer.learning_rate == 0.5


def test_only_what_can_be_called_is_a_schedule():
    with pytest.raises(TypeError, match="must be a function of the epoch, got"):
        callbacks.LearningRateScheduler(0.1)


def test_rates_that_follow_a_schedule_cannot_be_set():
    schedule = schedules.ExponentialDecay(0.1, 10, 0.5)
    theirs = keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5))
    for optimizer in (fastopt.SGD(schedule), fastopt.LossScaleOptimizer(fastopt.SGD(schedule))):
        with pytest.raises(TypeError, match="follows a schedule"):
            callbacks.LearningRateScheduler(step_decay).on_epoch_begin(0, None, optimizer)
        plateau = callbacks.ReduceLROnPlateau("loss", patience=0)
        plateau.on_epoch_end(0, {"loss": 1.0}, optimizer)
        with pytest.raises(TypeError, match="follows a schedule"):
            plateau.on_epoch_end(1, {"loss": 1.0}, optimizer)
    with pytest.raises(TypeError, match="learning_rate"):
        of_keras("LearningRateScheduler", theirs, schedule=step_decay).on_epoch_begin(0)


@pytest.mark.parametrize("module", [callbacks, callbacks_2_2, callbacks_2_3])
def test_an_optimizer_has_a_rate(module):
    message = "learning_rate" if module is not callbacks_2_2 else "lr"
    with pytest.raises(ValueError, match=f'must have a "{message}" attribute, and object has none'):
        module.LearningRateScheduler(step_decay).on_epoch_begin(0, None, object())
    with pytest.raises(ValueError, match=f'must have a "{message}" attribute'):
        module.ReduceLROnPlateau().on_epoch_end(0, {}, object())


@pytest.mark.parametrize(
    "optimizer",
    [fastopt.Adam(0.5), fastopt.LossScaleOptimizer(fastopt.Adam(0.5)), Renamed(0.5), keras.optimizers.Adam(0.5)],
)
def test_anything_with_a_rate_will_do(optimizer):
    callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2).on_epoch_begin(0, None, optimizer)
    assert float(optimizer.learning_rate) == 0.25
    plateau = callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1)
    for epoch in range(2):
        plateau.on_epoch_end(epoch, {"loss": np.float32(1.0)}, optimizer)
    assert float(optimizer.learning_rate) == 0.125


def test_each_of_several_optimizers_is_treated_by_itself(capsys):
    both = SimpleNamespace(optimizers=[fastopt.SGD(0.5, name="slow"), fastopt.SGD(0.25, name="fast")])
    scheduler = callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2, verbose=1)
    scheduler.on_epoch_begin(0, None, both)
    assert "Epoch 1: LearningRateScheduler setting fast learning rate to 0.125." in capsys.readouterr().out
    plateau = callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_lr=0.125, verbose=1)
    for epoch in range(3):
        logs = {"loss": 1.0}
        plateau.on_epoch_end(epoch, logs, both)
    assert logs == {"loss": 1.0, "learning_rate_slow": 0.125, "learning_rate_fast": 0.125}
    assert capsys.readouterr().out == "\nEpoch 2: ReduceLROnPlateau reducing slow learning rate to 0.125.\n"


# -- ReduceLROnPlateau -------------------------------------------------------------------------------------------------

# Multiples of a power of two: Keras compares in float32, and so nothing is rounded.
METRICS = st.lists(st.one_of(st.integers(-64, 64).map(lambda n: n / 16), st.none(), st.just(math.nan)), max_size=40)
OPTIONS = st.fixed_dictionaries(
    {
        "factor": st.sampled_from([0.5, 0.25, 0.0]),
        "patience": st.integers(0, 4),
        "mode": st.sampled_from(["min", "max"]),
        "min_delta": st.sampled_from([0.0, 0.0625, 0.5]),
        "cooldown": st.integers(0, 3),
        "min_lr": st.sampled_from([0.0, 0.03125, 0.1, 0.125]),
    }
)


def logs_of(metric):
    return {"other": 1.0} | ({} if metric is None else {"loss": metric})


@settings(deadline=None)
@given(metrics=METRICS, options=OPTIONS, again=st.integers(0, 40))
def test_plateau_equals_keras(metrics, options, again):
    """`again`: the epoch before which a second training begins."""
    optimizer, theirs = fastopt.SGD(0.5), keras.optimizers.SGD(0.5)
    callback = callbacks.ReduceLROnPlateau("loss", **options)
    reference = of_keras("ReduceLROnPlateau", theirs, monitor="loss", **options)
    reference.on_train_begin()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for epoch, metric in enumerate(metrics):
            if epoch == again:
                callback.on_train_begin(None, optimizer)
                reference.on_train_begin()
            logs, expected = logs_of(metric), logs_of(metric)
            callback.on_epoch_end(epoch, logs, optimizer)
            reference.on_epoch_end(epoch, expected)
            assert logs == pytest.approx(expected, nan_ok=True)
            assert optimizer.learning_rate == pytest.approx(float(np.array(theirs.learning_rate.value)), rel=1e-6)
            for state in ("wait", "cooldown_counter"):
                assert getattr(callback, state) == getattr(reference, state), (state, epoch)


def plateau_2_1_6(metrics, factor, patience, mode, min_delta, cooldown, min_lr, lr=0.5):
    """The rates after each epoch, by the rules of Keras 2.1.6 to 2.3.1."""
    best, waited, resting = (math.inf if mode == "min" else -math.inf), 0, 0
    for metric in metrics:
        if metric is not None:
            if resting:
                resting, waited = resting - 1, 0
            better = metric < best - min_delta if mode == "min" else metric > best + min_delta
            if better:
                best, waited = metric, 0
            elif not resting:
                waited += 1
                if waited >= patience and lr > min_lr:
                    lr, resting, waited = max(lr * factor, min_lr), cooldown, 0
        yield lr


@settings(deadline=None)
@given(metrics=METRICS, options=OPTIONS, era=st.sampled_from(ERAS), negative=st.booleans())
def test_plateau_of_the_eras(metrics, options, era, negative):
    options = options | ({"min_delta": -options["min_delta"]} if negative else {})
    optimizer = Old(0.5) if era is callbacks_2_2 else Renamed(0.5)
    callback = era.ReduceLROnPlateau("loss", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for epoch, (metric, rate) in enumerate(zip(metrics, plateau_2_1_6(metrics, **options), strict=True)):
            logs = logs_of(metric)
            before = optimizer.lr
            callback.on_epoch_end(epoch, logs, optimizer)
            assert optimizer.lr == rate
            assert logs["lr"] == before


def test_plateau_waits_for_patience_epochs():
    """The order of 2.1.6 and later: counted first, then compared."""
    for module, optimizer in ((callbacks, fastopt.SGD(1.0)), (callbacks_2_2, Old(1.0)), (callbacks_2_3, Renamed(1.0))):
        plateau = module.ReduceLROnPlateau("loss", factor=0.5, patience=3)
        rates = []
        for epoch in range(8):
            plateau.on_epoch_end(epoch, {"loss": 1.0}, optimizer)
            rates.append(getattr(optimizer, plateau.rate_name))
        assert rates == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_plateau_does_not_wear_out_the_least_rate():
    """At min_lr nothing is reduced any more, in whatever precision the optimizer holds its rate."""
    for optimizer in (fastopt.SGD(0.1), keras.optimizers.SGD(0.1)):
        for least in (0.01, 0.03, 0.07):
            optimizer.learning_rate = 0.1
            plateau = callbacks.ReduceLROnPlateau("loss", patience=1, min_lr=least)
            for epoch in range(6):
                plateau.on_epoch_end(epoch, {"loss": 1.0}, optimizer)
            assert float(optimizer.learning_rate) == pytest.approx(least)
            assert plateau.wait >= 3


@pytest.mark.parametrize(("module", "epoch"), [(callbacks, "Epoch 2"), *((era, "Epoch 00002") for era in ERAS)])
def test_plateau_tells(module, epoch, capsys):
    optimizer = Old(0.5) if module is callbacks_2_2 else fastopt.SGD(0.5)
    plateau = module.ReduceLROnPlateau("loss", factor=0.5, patience=1, verbose=1)
    for number in range(2):
        plateau.on_epoch_end(number, {"loss": 1.0}, optimizer)
    assert capsys.readouterr().out == f"\n{epoch}: ReduceLROnPlateau reducing learning rate to 0.25.\n"


def test_a_missing_metric_is_told_of():
    with pytest.warns(UserWarning, match=r"metric `val_loss` which is not available.*are: loss,learning_rate\."):
        callbacks.ReduceLROnPlateau().on_epoch_end(0, {"loss": 1.0}, fastopt.SGD())
    with pytest.warns(RuntimeWarning, match="metric `val_loss` which is not available.*are: loss,lr$"):
        callbacks_2_2.ReduceLROnPlateau().on_epoch_end(0, {"loss": 1.0}, Old(0.1))


def test_auto_knows_the_directions_of_keras():
    required = {"PrecisionAtRecall": [0.5], "RecallAtPrecision": [0.5], "SensitivityAtSpecificity": [0.5],
                "SpecificityAtSensitivity": [0.5], "IoU": [2, [0]], "MeanIoU": [2], "OneHotIoU": [2, [0]],
                "OneHotMeanIoU": [2], "BinaryIoU": [], "MeanMetricWrapper": [lambda y, p: p]}  # fmt: skip
    found = set()
    for kind in vars(keras.metrics).values():
        if not inspect.isclass(kind) or kind is keras.metrics.Metric:
            continue
        metric = kind(*required.get(kind.__name__, []))
        direction = getattr(metric, "_direction", None)
        if direction is not None:
            found.add(metric.name.removesuffix("_1"))
            known = rates.MAXIMIZED if direction == "up" else rates.MINIMIZED
            assert metric.name.removesuffix("_1") in known
    aliases = {"acc", "loss", "mse", "mae", "mape", "msle", "rmse"}
    assert found | aliases == rates.MAXIMIZED | rates.MINIMIZED
    assert not rates.MAXIMIZED & rates.MINIMIZED


def test_auto_picks_the_direction():
    def reduces(module, monitor, optimizer):
        plateau = module.ReduceLROnPlateau(monitor, factor=0.5, patience=1)
        for epoch, value in enumerate((0.0, 1.0)):
            plateau.on_epoch_end(epoch, {monitor: value}, optimizer)
        return optimizer.learning_rate < 1.0

    assert reduces(callbacks, "val_loss", fastopt.SGD(1.0))
    assert not reduces(callbacks, "val_accuracy", fastopt.SGD(1.0))
    assert not reduces(callbacks_2_3, "val_accuracy", Renamed(1.0))
    assert not reduces(callbacks_2_3, "my_accomplishment", Renamed(1.0))
    assert reduces(callbacks_2_3, "auc", Renamed(1.0))
    with pytest.raises(ValueError, match="whether the metric 'score' should fall or rise"):
        callbacks.ReduceLROnPlateau("score")


def test_an_unknown_mode_is_auto():
    with pytest.warns(UserWarning, match="mode 'down' is unknown, fallback to auto") as caught:
        assert callbacks.ReduceLROnPlateau("loss", mode="down").mode == "auto"
    assert caught[0].filename == __file__
    with pytest.warns(RuntimeWarning, match="mode 'down' is unknown, fallback to auto"):
        callbacks_2_2.ReduceLROnPlateau("loss", mode="down")


def test_epsilon_was_the_name_of_min_delta():
    for era in ERAS:
        with pytest.warns(UserWarning, match="`epsilon` argument is deprecated") as caught:
            assert era.ReduceLROnPlateau(epsilon=0.5, min_delta=0.1).min_delta == 0.5
        assert caught[0].filename == __file__
    with pytest.raises(TypeError, match="epsilon"):
        callbacks.ReduceLROnPlateau(epsilon=0.5)


@pytest.mark.parametrize("module", [callbacks, *ERAS])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"factor": 1.0}, ValueError, "does not support a factor >= 1.0"),
        ({"factor": -0.1}, ValueError, "factor must be in"),
        ({"factor": "0.1"}, TypeError, "factor must be a number"),
        ({"patience": -1}, ValueError, "patience must be in"),
        ({"cooldown": None}, TypeError, "cooldown must be a number"),
        ({"min_delta": math.nan}, ValueError, "min_delta must be finite"),
        ({"min_lr": math.inf}, ValueError, "min_lr must be finite"),
        ({"min_rate": 0.1}, TypeError, "min_rate"),
    ],
)
def test_plateau_refuses(module, arguments, error, message):
    with pytest.raises(error, match=message):
        module.ReduceLROnPlateau(**arguments)


@pytest.mark.parametrize("name", ["LearningRateScheduler", "ReduceLROnPlateau", "SwapEMAWeights"])
def test_signature_is_that_of_keras(name):
    ours, theirs = (inspect.signature(getattr(module, name)) for module in (callbacks, keras.callbacks))
    expected = [(p.name, p.default) for p in theirs.parameters.values() if p.kind is not p.VAR_KEYWORD]
    assert [(p.name, p.default) for p in ours.parameters.values()] == expected


# -- the old releases --------------------------------------------------------------------------------------------------


def test_1_0_calls_with_the_epoch_alone():
    optimizer, logs = Old(0.0), {}
    callback = callbacks_1_0.LearningRateScheduler(step_decay)
    rates = []
    for epoch in range(20):
        callback.on_epoch_begin(epoch, None, optimizer)
        rates.append(optimizer.lr)
        callback.on_epoch_end(epoch, logs, optimizer)
    assert rates == [0.1] * 9 + [0.05] * 10 + [0.025]
    assert logs == {}
    assert not hasattr(callbacks_1_0, "ReduceLROnPlateau")
    with pytest.raises(TypeError, match="verbose"):
        callbacks_1_0.LearningRateScheduler(step_decay, verbose=1)


@pytest.mark.parametrize("value", [1, None, np.float64(0.1), np.float32(0.1)])
def test_1_0_asserts_python_floats(value):
    with pytest.raises(AssertionError, match="should be float"):
        callbacks_1_0.LearningRateScheduler(lambda epoch: value).on_epoch_begin(0, None, Old(0.1))
    with pytest.raises(AssertionError, match='must have a "lr" attribute'):
        callbacks_1_0.LearningRateScheduler(lambda epoch: 0.1).on_epoch_begin(0, None, object())
    with pytest.raises(TypeError, match="learning_rate"):
        callbacks_1_0.LearningRateScheduler(lambda epoch, learning_rate: 0.1).on_epoch_begin(0, None, Old(0.1))


@pytest.mark.parametrize("era", ERAS)
def test_eras_pass_the_rate_and_log_it(era, capsys):
    optimizer, logs = (Old if era is callbacks_2_2 else Renamed)(0.5), {}
    callback = era.LearningRateScheduler(lambda epoch, lr: lr / 2, verbose=1)
    callback.on_epoch_begin(4, None, optimizer)
    callback.on_epoch_end(4, logs, optimizer)
    assert optimizer.lr == 0.25
    assert logs == {"lr": 0.25}
    assert capsys.readouterr().out == "\nEpoch 00005: LearningRateScheduler setting learning rate to 0.25.\n"


# -- SwapEMAWeights ----------------------------------------------------------------------------------------------------


@pytest.fixture
def averaged():
    """An optimizer with an average, and its parameter, which is 0 on average -1.75 and now -2."""
    weights = np.zeros(3, np.float32)
    optimizer = fastopt.SGD(1.0, use_ema=True, ema_momentum=0.25)
    optimizer.build([weights])
    for _ in range(2):
        optimizer.apply([np.ones(3, np.float32)])
    return optimizer, weights


@pytest.mark.parametrize("what", ["test", "predict"])
def test_evaluations_see_the_average(what, averaged):
    optimizer, weights = averaged
    callback = callbacks.SwapEMAWeights()
    callback.on_epoch_begin(0, None, optimizer)
    for _ in range(2):
        getattr(callback, f"on_{what}_begin")(None, optimizer)
        assert weights.tolist() == [-1.75] * 3
        with pytest.raises(RuntimeError, match="evaluation_weights"):
            optimizer.apply([weights])
        getattr(callback, f"on_{what}_end")(None, optimizer)
        assert weights.tolist() == [-2.0] * 3
    callback.on_epoch_end(0, {}, optimizer)
    callback.on_train_end({}, optimizer)
    assert weights.tolist() == [-2.0] * 3


def test_average_between_epochs(averaged):
    optimizer, weights = averaged
    callback = callbacks.SwapEMAWeights(swap_on_epoch=True)
    callback.on_epoch_begin(0, None, optimizer)
    callback.on_epoch_end(0, None, optimizer)
    callback.on_test_begin(None, optimizer)
    assert weights.tolist() == [-1.75] * 3
    callback.on_epoch_begin(1, None, optimizer)
    assert weights.tolist() == [-2.0] * 3
    callback.on_epoch_end(1, None, optimizer)
    callback.on_train_end(None, optimizer)
    assert weights.tolist() == [-2.0] * 3
    optimizer.finalize_variable_values()
    assert weights.tolist() == [-1.75] * 3


def test_there_must_be_an_average():
    optimizer = fastopt.SGD(1.0)
    optimizer.build([np.zeros(3, np.float32)])
    callback = callbacks.SwapEMAWeights()
    with pytest.raises(RuntimeError, match="use_ema=True"):
        callback.on_test_begin(None, optimizer)
    callback.on_test_end(None, optimizer)


def test_a_loop_may_call_every_hook_of_every_callback():
    every = [callbacks.Callback(), callbacks.LearningRateScheduler(step_decay), callbacks.ReduceLROnPlateau("loss")]
    optimizer = fastopt.SGD(0.5)
    for callback in every:
        callback.on_train_begin(None, optimizer)
        callback.on_epoch_begin(0, None, optimizer)
        for hook in ("on_test_begin", "on_test_end", "on_predict_begin", "on_predict_end"):
            getattr(callback, hook)(None, optimizer)
        callback.on_epoch_end(0, {"loss": 1.0}, optimizer)
        callback.on_train_end(None, optimizer)
    assert optimizer.learning_rate == 0.1


def test_docstring_example():
    assert doctest.testmod(callbacks).failed == 0
