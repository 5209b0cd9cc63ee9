"""Keras's own optimizers turned into fastopt's: the authority is training that goes on in Keras's."""

import types

import numpy as np
import pytest
from keras_cases import (
    COPY_KEYWORD,
    NAMES,
    ON_BOTH_BACKENDS,
    TORCH_SCHEDULE_FREE,
    assert_same_state,
    assert_same_variables,
    gradients,
    is_fused,
    parameters,
    train,
    values,
    variables_of,
)

pytestmark = [pytest.mark.filterwarnings(COPY_KEYWORD), *ON_BOTH_BACKENDS]

FEW, MORE = gradients(3), gradients(5, seed=3)
KERNELS_OF_OTHER_TESTS = ("SGD", "Adam", "Nadam", "Lamb")
"""The optimizers of which `make test` turns one; the others are in `make test-all`."""


def _trained(keras, optimizer):
    variables = variables_of(keras, parameters())
    train(optimizer, keras, variables, FEW)
    return optimizer, variables


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.full] * (name not in KERNELS_OF_OTHER_TESTS)) for name in NAMES]
)
def test_training_goes_on(name, keras, fast, backend):
    """With averages, of which Keras 3.15's schedule-free optimizer is wrong on torch."""
    if name == "ScheduleFreeAdamW" and backend == "torch":
        pytest.skip(TORCH_SCHEDULE_FREE)
    options = {"learning_rate": 0.01, "use_ema": True, "ema_momentum": 0.5, "name": "same"}
    theirs, ours = (_trained(keras, getattr(keras.optimizers, name)(**options)) for _ in range(2))
    turned = fast.from_keras(ours[0])
    assert type(turned) is getattr(fast, name) and turned.get_config() == theirs[0].get_config()
    for a, b in zip(turned.variables, theirs[0].variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    train(turned, keras, ours[1], MORE)
    train(theirs[0], keras, theirs[1], MORE)
    assert is_fused(turned) and int(turned.iterations) == len(FEW) + len(MORE)
    assert_same_variables(ours[1], theirs[1])
    assert_same_state(turned, theirs[0])


def _rate():
    return 0.1


def test_what_configs_leave_out(keras, fast):
    """Exclusions from weight decay; a rate that is a function, which cannot be read back from a config."""
    pairs = []
    for turn in (fast.from_keras, lambda optimizer: optimizer):
        optimizer = keras.optimizers.AdamW(_rate, weight_decay=0.5)
        variables = variables_of(keras, parameters())
        optimizer.exclude_from_weight_decay([variables[0]], ["v2"])
        optimizer.build(variables)
        turned = turn(optimizer)
        train(turned, keras, variables, MORE)
        pairs.append((turned, variables))
    assert is_fused(pairs[0][0])
    assert_same_variables(pairs[0][1], pairs[1][1])


def test_an_optimizer_that_is_not_built(keras, fast):
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    turned = fast.from_keras(keras.optimizers.SGD(rate, momentum=0.5, name="mine"))
    assert not turned.built and turned._learning_rate is rate
    ours, theirs = (_trained(keras, each) for each in (turned, keras.optimizers.SGD(rate, momentum=0.5)))
    assert is_fused(turned) and turned.name == "mine"
    assert_same_variables(ours[1], theirs[1])


def test_loss_scale(keras, fast):
    pairs = []
    for turn in (fast.from_keras, lambda optimizer: optimizer):
        inner = keras.optimizers.Adam(0.01)
        optimizer, variables = _trained(keras, keras.optimizers.LossScaleOptimizer(inner, dynamic_growth_steps=4))
        assert turn(optimizer) is optimizer
        train(optimizer, keras, variables, MORE)
        pairs.append((optimizer, variables))
    assert is_fused(pairs[0][0].inner_optimizer)
    assert_same_variables(pairs[0][1], pairs[1][1])
    assert_same_state(pairs[0][0], pairs[1][0])


def test_what_is_ours_already(fast):
    optimizer = fast.Adam()
    assert fast.from_keras(optimizer) is optimizer


def test_what_would_lose_something_is_refused(keras, fast):
    class Mine(keras.optimizers.Adam):
        pass

    with pytest.raises(TypeError, match=r"Mine is not one of Keras's optimizers.*derive"):
        fast.from_keras(Mine())
    many = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(keras.optimizers.Adam()))
    with pytest.raises(TypeError, match="MultiOptimizer is not one of"):
        fast.from_keras(many)
    changed = keras.optimizers.Adam()
    changed._clip_gradients = types.MethodType(lambda self, grads: grads, changed)
    with pytest.raises(TypeError, match="has _clip_gradients of its own"):
        fast.from_keras(changed)
    with pytest.raises(TypeError, match="str is not one of"):
        fast.from_keras("adam")


# -- files -------------------------------------------------------------------------------------------------------------

INPUTS = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
TARGETS = np.sin(INPUTS[:, :1])


def _saved(keras, optimizer, path):
    """A model that has been trained with an optimizer."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="tanh"), keras.layers.Dense(1)])
    model.compile(optimizer=optimizer, loss="mse", metrics=["mae"])
    _fit(model, 3)
    model.save(path)
    return model


def _fit(model, epochs):
    return model.fit(INPUTS, TARGETS, batch_size=8, epochs=epochs, shuffle=False, verbose=0).history


@pytest.fixture
def path(backend, tmp_path):
    """Where a model is saved."""
    if backend == "numpy":
        pytest.skip("Keras has no fit on its NumPy backend")
    return tmp_path / "model.keras"


@pytest.mark.parametrize("name", ["Adam", "Lamb"])
def test_a_loaded_model(name, keras, fast, path):
    rate = keras.optimizers.schedules.CosineDecay(0.01, 20)
    model = _saved(keras, getattr(keras.optimizers, name)(rate), path)
    loaded = keras.models.load_model(path)
    loaded.compile(optimizer=fast.from_keras(loaded.optimizer), loss="mse", metrics=["mae"])
    histories = _fit(loaded, 3), _fit(model, 3)
    assert is_fused(loaded.optimizer) and int(loaded.optimizer.iterations) == 12
    for metric in ("loss", "mae"):
        np.testing.assert_allclose(*(history[metric] for history in histories), rtol=1e-5)
    assert_same_variables(loaded.variables, model.variables)
    assert_same_state(loaded.optimizer, model.optimizer)
    loaded.save(path)
    again = keras.models.load_model(path)
    assert type(again.optimizer) is getattr(fast, name)
    assert values(again.optimizer.variables)[0] == 12


def test_custom_objects(keras, fast, path):
    """What Keras 3.15 looks up there: on torch its Adam has a registered name, its Lamb has none."""
    model = _saved(keras, keras.optimizers.Adam(0.01), path)
    loaded = keras.models.load_model(path, custom_objects={"Adam": fast.Adam})
    assert type(loaded.optimizer) is fast.Adam
    _fit(loaded, 3), _fit(model, 3)
    assert is_fused(loaded.optimizer)
    assert_same_variables(loaded.variables, model.variables)
    assert_same_state(loaded.optimizer, model.optimizer)
    _saved(keras, keras.optimizers.Lamb(0.01), path)
    assert type(keras.models.load_model(path, custom_objects={"Lamb": fast.Lamb}).optimizer) is keras.optimizers.Lamb
