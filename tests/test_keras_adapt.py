"""fastopt.keras.adapt: a fastopt class, a user's own included, as a Keras optimizer; and the objectives for Keras."""

import importlib
import types
from typing import NamedTuple

import numpy as np
import pytest
from keras_cases import CLOSE, COPY_KEYWORD, ON_BOTH_BACKENDS, gradients, is_fused, parameters, train, values
from keras_cases import variables_of as variables_of_keras

import fastopt
from fastopt.compat import backend, keras_2_2

pytestmark = [pytest.mark.filterwarnings(COPY_KEYWORD), *ON_BOTH_BACKENDS]


class _Scalars(NamedTuple):
    learning_rate: float
    friction: float


def _push(param, grad, slots, s):
    (speed,) = slots
    speed = s.friction * speed + grad
    return param - s.learning_rate * speed, (speed,)


class _UnitScalars(NamedTuple):
    learning_rate: float


def _squares(param, grad, slots, s):
    return (grad * grad,), slots


def _length(sums, n, s):
    return sums[0] ** 0.5 if sums[0] > 0 else 1.0


def _unit_step(param, grad, slots, length, s):
    return param - s.learning_rate * grad / length


Push = fastopt.register_rule(
    "Push", _push, _Scalars, slots={"speed": 0.5}, defaults={"learning_rate": 0.0625, "friction": 0.75}
)
Unit = fastopt.register_rule(
    "Unit", _squares, _UnitScalars, defaults={"learning_rate": 0.0625}, between=_length, second=_unit_step
)
KINDS = {
    "Push": Push, "Unit": Unit, "Nadam": fastopt.Nadam, "Lamb": fastopt.Lamb, "Ftrl": fastopt.Ftrl,
    "ScheduleFreeAdamW": fastopt.ScheduleFreeAdamW,
}  # fmt: skip
OPTIONS = {
    "plain": {},
    "many": {"global_clipnorm": 1.0, "weight_decay": 0.25, "use_ema": True, "ema_momentum": 0.75,
             "ema_overwrite_frequency": 3},
    "accumulated": {"clipnorm": 1.0, "gradient_accumulation_steps": 2},
    "scaled": {"clipvalue": 0.125, "loss_scale_factor": 128.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def adapted(fast):
    """The adapted classes, by name."""
    return types.SimpleNamespace(**{name: fast.adapt(kind, "tests", __name__) for name, kind in KINDS.items()})


@pytest.fixture
def steps(keras):
    """An adapted optimizer's variables after steps, and the arrays of the same fastopt optimizer."""

    def run(optimizer, plain, number=10):
        variables, arrays = variables_of_keras(keras, parameters()), parameters()
        grads = gradients(number)
        train(optimizer, keras, variables, grads)
        plain.build(arrays)
        for step in grads:
            plain.apply(step)
        return variables, arrays

    return run


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", KINDS)
def test_steps_are_those_of_the_class_bit_for_bit(name, options, adapted, steps):
    optimizer = getattr(adapted, name)(learning_rate=0.0625, **options)
    variables, arrays = steps(optimizer, KINDS[name](learning_rate=0.0625, **options))
    assert is_fused(optimizer)
    for variable, array in zip(variables, arrays, strict=True):
        np.testing.assert_array_equal(variable.numpy(), array)


@pytest.mark.parametrize("name", KINDS)
def test_configs_are_those_of_the_class(name, adapted, keras):
    kind = getattr(adapted, name)
    optimizer = kind(0.125, clipnorm=2.0, name="mine")
    assert optimizer.get_config() == KINDS[name](0.125, clipnorm=2.0, name="mine").get_config()
    for again in (
        kind.from_config(optimizer.get_config()),
        keras.optimizers.deserialize(keras.optimizers.serialize(optimizer)),
    ):
        assert type(again) is kind and again.get_config() == optimizer.get_config()
    assert type(keras.optimizers.get(f"tests>{name}")) is kind


def test_errors_are_those_of_the_class(adapted):
    with pytest.raises(TypeError, match="has no argument 'decay'"):
        adapted.Push(decay=1.0)
    with pytest.raises(ValueError, match="choose one way to clip"):
        adapted.Push(clipnorm=1.0, clipvalue=1.0)


def test_a_schedule_of_keras(adapted, keras, steps):
    rate = keras.optimizers.schedules.ExponentialDecay(0.0625, 2, 0.5, staircase=True)
    optimizer = adapted.Push(rate)
    plain = Push(fastopt.schedules.ExponentialDecay(0.0625, 2, 0.5, staircase=True))
    variables, arrays = steps(optimizer, plain)
    for variable, array in zip(variables, arrays, strict=True):
        np.testing.assert_array_equal(variable.numpy(), array)
    again = adapted.Push.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()


@pytest.mark.parametrize("release", ["keras_1_0", "keras_2_2", "keras_2_3"])
def test_programs_of_old_set_and_read_what_were_variables(fast, keras, release):
    """As on Theano, where ``K.set_value(x, value)`` was ``x.set_value(value)``: by hand, rate / (1 + decay * count)."""
    kind = importlib.import_module(f"fastopt.keras.compat.{release}").SGD
    optimizer = kind(0.5, decay=1.0)
    assert hasattr(optimizer, "initial_decay") == (release != "keras_1_0")
    variables = variables_of_keras(keras, [np.zeros(3)])
    ones = [[np.ones(3, np.float32)]]
    train(optimizer, keras, variables, ones)
    optimizer.lr.set_value(0.25)
    assert (float(optimizer.lr.get_value()), float(optimizer.learning_rate)) == (0.25, 0.25)
    backend.set_value(optimizer.iterations, 3)
    train(optimizer, keras, variables, ones)
    assert int(backend.get_value(optimizer.iterations)) == 4
    np.testing.assert_allclose(variables[0].numpy(), -(0.5 + 0.25 / 4))
    optimizer.iterations = 1
    if release != "keras_1_0":
        optimizer.initial_decay = 0.0  # the releases then leave decay out
        train(optimizer, keras, variables, ones)
        np.testing.assert_allclose(variables[0].numpy(), -(0.5 + 0.25 / 4 + 0.25))
    assert kind.from_config(optimizer.get_config()).get_config() == optimizer.get_config()


@pytest.mark.parametrize("name", ["Push", "SGD"])
def test_a_function_of_the_step(adapted, keras, fast, name):
    """Rates of 1, 1/2 and 1/4 move by 1.75 where the gradient is 1 and nothing keeps speed."""
    options = {"friction": 0.0} if name == "Push" else {}
    optimizer = getattr(adapted if name == "Push" else fast, name)(lambda step: 0.5**step, **options)
    variables = variables_of_keras(keras, [np.zeros(3)])
    train(optimizer, keras, variables, [[np.ones(3, np.float32)]] * 3)
    np.testing.assert_array_equal(variables[0].numpy(), np.full(3, -1.75))
    assert float(optimizer.learning_rate) == 0.125
    with pytest.raises(TypeError, match="cannot be set to a number"):
        optimizer.learning_rate = 0.1
    with pytest.raises(TypeError, match="learning_rate is a function of"):
        adapted.Push(lambda epoch, rate: rate)


def test_a_learning_rate_set_while_training(adapted, keras):
    optimizer, variables = adapted.Push(0.0625), variables_of_keras(keras, [np.ones(3)])
    train(optimizer, keras, variables, [[np.zeros(3, np.float32)]])
    optimizer.learning_rate = 0.0
    before = values(variables)
    train(optimizer, keras, variables, [[np.ones(3, np.float32)]])
    np.testing.assert_array_equal(variables[0].numpy(), before[0])
    assert optimizer.get_config()["learning_rate"] == 0.0


def test_hyper_parameters_are_attributes_that_steps_follow(adapted, keras):
    optimizer, plain = adapted.Push(0.0625, friction=0.5, clipnorm=4.0), Push(0.0625, friction=0.5, clipnorm=4.0)
    variables, arrays = variables_of_keras(keras, parameters()), parameters()
    plain.build(arrays)
    assert (optimizer.friction, optimizer.clipnorm) == (0.5, 4.0)
    for changed, value in (("friction", 0.25), ("clipnorm", 0.5), ("weight_decay", 0.5)):
        train(optimizer, keras, variables, gradients(2))
        for step in gradients(2):
            plain.apply(step)
        setattr(optimizer, changed, value)
        setattr(plain, changed, value)
        assert optimizer.get_config()[changed] == value
    train(optimizer, keras, variables, gradients(2))
    for step in gradients(2):
        plain.apply(step)
    for variable, array in zip(variables, arrays, strict=True):
        np.testing.assert_array_equal(variable.numpy(), array)


def test_state_is_in_the_variables(adapted, keras):
    variables = variables_of_keras(keras, parameters())
    optimizer = adapted.Nadam(0.0625, use_ema=True)
    train(optimizer, keras, variables, gradients(3))
    others = variables_of_keras(keras, values(variables))
    other = adapted.Nadam(0.0625, use_ema=True)
    other.build(others)
    store = {}
    optimizer.save_own_variables(store)
    other.load_own_variables(store)
    for one, its in ((optimizer, variables), (other, others)):
        train(one, keras, its, gradients(3, seed=5))
    for one, two in zip(variables, others, strict=True):
        np.testing.assert_array_equal(one.numpy(), two.numpy())


def test_half_precision_is_refused_where_a_rule_looks_at_more_than_an_element(adapted, keras):
    variables = variables_of_keras(keras, parameters(), dtype="float16")
    grads = [keras.ops.zeros(variable.shape, "float16") for variable in variables]
    adapted.Push().apply(grads, variables)
    optimizer = adapted.Unit()
    optimizer.build(variables)
    with pytest.raises(TypeError, match="is float16, and Unit keeps parameters and state in float32 or float64"):
        optimizer.apply(grads)


def test_variables_without_memory_to_write_to_are_refused(adapted, keras, monkeypatch):
    monkeypatch.setattr("fastopt.keras.fused.Fused._memory", None)
    with pytest.raises(RuntimeError, match="no update but the fused one"):
        train(adapted.Push(), keras, variables_of_keras(keras, parameters()), gradients(1))


def test_a_rule_under_multi_and_loss_scale_optimizers(adapted, keras):
    optimizer = keras.optimizers.LossScaleOptimizer(adapted.Push(0.0625), initial_scale=2.0)
    variables = variables_of_keras(keras, [np.ones(3)])
    train(optimizer, keras, variables, [[np.full(3, 2, np.float32)]])
    np.testing.assert_array_equal(variables[0].numpy(), np.float32(1 - 0.0625 * (0.75 * 0.5 + 1)))
    many = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(adapted.Unit(0.0625)))
    variables = variables_of_keras(keras, parameters())
    train(many, keras, variables, gradients(2))
    assert all(map(is_fused, many.optimizers))


def test_in_compile_and_fit(adapted, keras, backend, tmp_path):
    if backend == "numpy":
        pytest.skip("Keras has no fit on its NumPy backend")
    inputs, targets = np.eye(8, dtype=np.float32), np.ones((8, 1), np.float32)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    model.compile(optimizer=adapted.Push(0.0625, use_ema=True), loss="mse")
    rate = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5)
    model.fit(inputs, targets, epochs=2, verbose=0, callbacks=[rate])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is adapted.Push
    assert float(loaded.optimizer.learning_rate.numpy()) == 0.0625 / 4
    for one in (model, loaded):
        one.fit(inputs, targets, epochs=3, verbose=0)
    for one, two in zip(model.variables, loaded.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), two.numpy())


def test_an_optimizer_of_an_era_in_compile_and_fit(keras, fast, backend, tmp_path):
    if backend == "numpy":
        pytest.skip("Keras has no fit on its NumPy backend")
    from fastopt.keras.compat import keras_2_2 as era

    options = {"lr": 0.0625, "decay": 0.25, "momentum": 0.5, "nesterov": True}
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones", use_bias=False)])
    model.compile(optimizer=era.SGD(**options), loss="mse")
    weights, plain = [np.ones((2, 1), np.float32)], keras_2_2.SGD(**options)
    plain.build(weights)
    inputs, targets = np.array([[1, 2]], np.float32), np.zeros((1, 1), np.float32)
    for _ in range(5):
        model.fit(inputs, targets, epochs=1, verbose=0)
        plain.apply([2 * inputs.T @ (inputs @ weights[0])])
    np.testing.assert_allclose(model.get_weights()[0], weights[0], **CLOSE)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is era.SGD and loaded.optimizer.get_config() == model.optimizer.get_config()


# -- objectives --------------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs():
    rng = np.random.default_rng(4)
    targets, outputs = rng.random((6, 5)).astype(np.float32), rng.random((6, 5)).astype(np.float32)
    return targets, outputs


def _value(keras, function, pairs):
    return keras.ops.convert_to_numpy(function(*map(keras.ops.convert_to_tensor, pairs)))


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("kullback_leibler_divergence", "kl_divergence"),
        ("kld", "kl_divergence"),
        ("KLD", "kl_divergence"),
        ("logcosh", "log_cosh"),
        ("cosine_proximity", "cosine_similarity"),
        ("cosine", "cosine_similarity"),
    ],
)
def test_renamed_objectives(name, reference, keras, fast, pairs):
    found = _value(keras, getattr(fast.losses, name), pairs)
    np.testing.assert_allclose(found, _value(keras, getattr(keras.losses, reference), pairs), **CLOSE)


def test_the_mean_cosine_proximity(keras, fast, pairs):
    targets, outputs = (array / np.linalg.norm(array, axis=-1, keepdims=True) for array in pairs)
    found = _value(keras, fast.losses.mean_cosine_proximity, pairs)
    np.testing.assert_allclose(found, -np.mean(targets * outputs, axis=-1), **CLOSE)


@pytest.mark.parametrize(
    "name", ["kullback_leibler_divergence", "logcosh", "cosine_proximity", "mean_cosine_proximity"]
)
def test_objectives_are_found_again(name, keras, fast):
    function = getattr(fast.losses, name)
    assert keras.losses.get(function) is function
    assert keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(function)) is function
    assert keras.saving.get_registered_object(f"fastopt>{name}") is function


@pytest.mark.parametrize("name", ["logcosh", "mean_cosine_proximity"])
def test_objectives_in_compile_and_fit(name, keras, fast, backend, pairs, tmp_path):
    if backend == "numpy":
        pytest.skip("Keras has no fit on its NumPy backend")
    targets, inputs = pairs
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(5)])
    model.compile(optimizer=fast.Adam(0.05), loss=getattr(fast.losses, name))
    history = model.fit(inputs, targets, epochs=20, verbose=0).history["loss"]
    assert history[-1] < history[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.loss is getattr(fast.losses, name)
    expected = model.evaluate(inputs, targets, verbose=0)
    assert loaded.evaluate(inputs, targets, verbose=0) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["Muon", "LossScaleOptimizer"])
def test_what_has_several_rules_or_none_is_refused(name, fast):
    with pytest.raises(TypeError, match=f"{name} is not of one rule"):
        fast.adapt(getattr(fastopt, name), "tests", __name__)


def test_skipping_steps_is_left_to_keras(fast, adapted):
    kind = next(iter(vars(adapted).values()))
    with pytest.raises(ValueError, match="LossScaleOptimizer"):
        kind(nonfinite="skip")
