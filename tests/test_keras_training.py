"""fastopt.keras in compile and fit, with callbacks, saved and loaded: the torch backend, which has a fit."""

import copy
import functools
import pickle

import children
import numpy as np
import pytest
from keras_cases import CLOSE, COPY_KEYWORD, NAMES, TORCH_SCHEDULE_FREE, is_fused, values

import fastopt

pytestmark = [
    pytest.mark.keras_backend("torch"),
    pytest.mark.xdist_group("keras-training"),
    pytest.mark.filterwarnings(COPY_KEYWORD),
]

RATES = {"Adadelta": 1.0, "Ftrl": 0.05, "SGD": 0.05, "Adafactor": 0.01}
ROWS, BATCH = 64, 16


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    words, numbers = rng.integers(0, 10, (ROWS, 3)), rng.normal(size=(ROWS, 4)).astype(np.float32)
    targets = (numbers[:, :1] * 0.5 + np.sin(words[:, 1:2])).astype(np.float32)
    return [words, numbers], targets


@pytest.fixture
def new_model(keras):
    """Makes models with the same weights, names and seeds: embedding, batch normalisation, constraints."""

    def make():
        keras.utils.set_random_seed(3)
        words, numbers = keras.Input((3,), dtype="int32", name="words"), keras.Input((4,), name="numbers")
        embedded = keras.layers.Flatten()(keras.layers.Embedding(12, 2, name="embedding")(words))
        joined = keras.layers.Concatenate()([embedded, numbers])
        hidden = keras.layers.Dense(8, activation="tanh", kernel_constraint=keras.constraints.MaxNorm(0.9), name="in")
        normal = keras.layers.BatchNormalization(name="normal")
        output = keras.layers.Dense(1, kernel_constraint=keras.constraints.NonNeg(), name="out")
        return keras.Model([words, numbers], output(normal(hidden(joined))))

    return make


def fit(model, data, epochs=1, **options):
    return model.fit(*data, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, **options)


def assert_same_weights(model, other, **tolerance):
    for a, b in zip(model.variables, other.variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), err_msg=a.path, **(tolerance or CLOSE))


def assert_equal_bits(model, other):
    ours, theirs = [*model.variables, *model.optimizer.variables], [*other.variables, *other.optimizer.variables]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


def trained(model, optimizer, data, epochs=1, loss="mse", **options):
    model.compile(optimizer=optimizer, loss=loss)
    fit(model, data, epochs, **options)
    return model


# -- fit ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_hundred_steps_of_fit_are_those_of_keras(name, new_model, data, keras, fast):
    if name == "ScheduleFreeAdamW":
        pytest.skip(TORCH_SCHEDULE_FREE)
    rate = RATES.get(name, 1e-3)
    ours = trained(new_model(), getattr(fast, name)(learning_rate=rate), data, epochs=25)
    theirs = trained(new_model(), getattr(keras.optimizers, name)(learning_rate=rate), data, epochs=25)
    assert is_fused(ours.optimizer) and int(ours.optimizer.iterations) == 100
    assert_same_weights(ours, theirs)


@pytest.mark.parametrize(
    "options",
    [
        {"global_clipnorm": 0.1, "weight_decay": 0.01},
        {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 5},
        {"gradient_accumulation_steps": 4, "clipnorm": 0.1},
        {"loss_scale_factor": 1024.0, "clipvalue": 0.01},
    ],
    ids=lambda options: "-".join(options),
)
def test_fit_with_options_of_the_base_class(options, new_model, data, keras, fast):
    ours = trained(new_model(), fast.Adam(1e-3, **options), data, epochs=10)
    theirs = trained(new_model(), keras.optimizers.Adam(1e-3, **options), data, epochs=10)
    assert is_fused(ours.optimizer)
    assert_same_weights(ours, theirs)


def test_an_identifier_in_compile(new_model, data, keras, fast):
    ours = trained(new_model(), "fastopt>SGD", data)
    assert type(ours.optimizer) is fast.SGD and is_fused(ours.optimizer)
    assert_same_weights(ours, trained(new_model(), "sgd", data))


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")  # torch.compile's own
def test_a_compiled_training_step(new_model, data, fast, monkeypatch):
    """What torch.compile traces, it would translate, kernels' tables included; without its C++ compiler here."""
    import torch

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    ours, eager = new_model(), new_model()
    ours.compile(optimizer=fast.Adam(1e-3), loss="mse", jit_compile=True)
    fit(ours, data)
    assert is_fused(ours.optimizer)
    assert_same_weights(ours, trained(eager, fast.Adam(1e-3), data))


def test_frozen_layers(new_model, data, keras, fast):
    found = []
    for module in (fast, keras.optimizers):
        model = trained(new_model(), module.Adam(1e-3), data)
        model.get_layer("in").trainable = False
        frozen = values(model.get_layer("in").weights)
        fit(model, data, epochs=2)
        for variable, before in zip(model.get_layer("in").weights, frozen, strict=True):
            np.testing.assert_array_equal(variable.numpy(), before)
        found.append(model)
    assert is_fused(found[0].optimizer)
    assert_same_weights(*found)


def test_one_optimizer_for_two_models_is_refused_as_by_keras(new_model, data, fast):
    model = trained(new_model(), fast.Adam(1e-3), data)
    with pytest.raises(ValueError, match="Unknown variable"):
        trained(new_model(), model.optimizer, data)


def test_several_optimizers(new_model, data, keras, fast):
    found = []
    for module in (fast, keras.optimizers):
        mapping = keras.optimizers.OptimizerMap(module.Adam(1e-3))
        mapping["out/.*"] = module.SGD(0.01, momentum=0.9)
        model = trained(new_model(), keras.optimizers.MultiOptimizer(mapping), data, epochs=10)
        found.append(model)
    assert all(map(is_fused, found[0].optimizer.optimizers))
    assert_same_weights(*found)


def test_mixed_precision(keras, data, new_model, fast):
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = new_model()
        model.compile(optimizer=fast.Adam(1e-3), loss="mse")
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        before = values(model.trainable_variables)
        history = fit(model, data, epochs=5)
        assert is_fused(model.optimizer.inner_optimizer)
        assert all(variable._value.dtype.is_floating_point for variable in model.variables)
        assert history.history["loss"][-1] < history.history["loss"][0]
        assert any(not np.array_equal(a, b) for a, b in zip(values(model.trainable_variables), before, strict=True))
    finally:
        keras.mixed_precision.set_global_policy("float32")


def test_a_torch_training_loop(new_model, data, keras, fast):
    """The loop of Keras's guide: zero_grad, backward, apply."""
    import torch

    found = []
    for module in (fast, keras.optimizers):
        model, optimizer = new_model(), module.Adam(1e-3)
        for _ in range(10):
            model.zero_grad()
            loss = torch.mean((model(data[0], training=True) - torch.from_numpy(data[1])) ** 2)
            loss.backward()
            trainable = list(model.trainable_weights)
            with torch.no_grad():
                optimizer.apply([variable.value.grad for variable in trainable], trainable)
        found.append(model)
    assert_same_weights(*found)


# -- callbacks ---------------------------------------------------------------------------------------------------------


def _callbacks(keras, name, folder):
    return {
        "scheduler": lambda: keras.callbacks.LearningRateScheduler(lambda epoch, rate: float(rate) * 0.5),
        "plateau": lambda: keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=1, min_delta=10.0, factor=0.5),
        "swap": lambda: keras.callbacks.SwapEMAWeights(),
        "swap on epoch": lambda: keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
        "stopping": lambda: keras.callbacks.EarlyStopping(
            monitor="loss", patience=2, min_delta=10.0, restore_best_weights=True
        ),
        "backup": lambda: keras.callbacks.BackupAndRestore(folder / "backup"),
        "checkpoint": lambda: keras.callbacks.ModelCheckpoint(
            folder / "best.weights.h5", save_weights_only=True, monitor="loss", save_best_only=True
        ),
    }[name]()


@pytest.mark.parametrize("name", ["scheduler", "plateau", "swap", "swap on epoch", "stopping", "backup", "checkpoint"])
def test_callbacks(name, new_model, data, keras, fast, tmp_path):
    found, logs = [], []
    for module in (fast, keras.optimizers):
        folder = tmp_path / module.__name__
        folder.mkdir()
        optimizer = module.Adam(1e-3, use_ema=True, ema_momentum=0.9)
        callbacks = [_callbacks(keras, name, folder)]
        model = new_model()
        model.compile(optimizer=optimizer, loss="mse")
        history = fit(model, data, epochs=6, callbacks=callbacks, validation_data=data)
        found.append(model)
        logs.append(history.history)
    assert is_fused(found[0].optimizer)
    assert_same_weights(*found)
    for key, expected in logs[1].items():
        np.testing.assert_allclose(logs[0][key], expected, rtol=1e-4, atol=1e-5, err_msg=key)


def test_a_restored_backup_goes_on_bit_for_bit(new_model, data, keras, fast, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    broken = new_model()
    broken.compile(optimizer=fast.Adam(1e-3), loss="mse")
    with pytest.raises(KeyboardInterrupt):
        fit(broken, data, 4, callbacks=[keras.callbacks.BackupAndRestore(tmp_path), Stop()])
    resumed = new_model()
    resumed.compile(optimizer=fast.Adam(1e-3), loss="mse")
    fit(resumed, data, 4, callbacks=[keras.callbacks.BackupAndRestore(tmp_path)])
    assert_equal_bits(resumed, trained(new_model(), fast.Adam(1e-3), data, 4))


def test_fit_ends_with_the_averages(new_model, data, fast):
    model = trained(new_model(), fast.Adam(1e-3, use_ema=True, ema_momentum=0.5), data, 3)
    averages = model.optimizer._model_variables_moving_average
    for variable, average in zip(model.trainable_variables, averages, strict=True):
        np.testing.assert_array_equal(variable.numpy(), average.numpy())


# -- saved and loaded --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_goes_on_bit_for_bit(name, new_model, data, keras, fast, tmp_path):
    rate = keras.optimizers.schedules.CosineDecay(1e-3, 30)
    model = trained(new_model(), getattr(fast, name)(learning_rate=rate, use_ema=True), data, 2)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is type(model.optimizer)
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert_equal_bits(loaded, model)
    fit(model, data, 2)
    fit(loaded, data, 2)
    assert is_fused(loaded.optimizer)
    assert_equal_bits(loaded, model)


def test_a_schedule_of_fastopt(new_model, data, keras, fast, tmp_path):
    ours = fast.SGD(fastopt.schedules.CosineDecay(0.1, 100))
    theirs = keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 100))
    model = trained(new_model(), ours, data, epochs=2)
    assert_same_weights(model, trained(new_model(), theirs, data, epochs=2))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer._learning_rate == ours._learning_rate
    with pytest.raises(TypeError, match="follows CosineDecay"):
        ours.learning_rate = 0.1
    for each in (model, loaded):
        fit(each, data)
    assert_equal_bits(model, loaded)


@pytest.mark.parametrize("direction", ["to fastopt", "to Keras"])
def test_weights_files_move_between_keras_and_fastopt(direction, new_model, data, keras, fast, tmp_path):
    giver, receiver = (keras.optimizers, fast) if direction == "to fastopt" else (fast, keras.optimizers)
    model = trained(new_model(), giver.Adam(1e-3), data, 2)
    model.save_weights(tmp_path / "model.weights.h5")
    other = new_model()
    other.compile(optimizer=receiver.Adam(1e-3), loss="mse")
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "model.weights.h5")
    assert_equal_bits(other, model)
    fit(model, data, 5)
    fit(other, data, 5)
    assert_same_weights(other, model)


def test_a_fresh_process_goes_on_bit_for_bit(new_model, data, fast, tmp_path):
    model = trained(new_model(), fast.Lamb(1e-3, global_clipnorm=1.0), data, 2)
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", words=data[0][0], numbers=data[0][1], targets=data[1])
    code = f"""
        import warnings
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        import keras, numpy as np, fastopt.keras
        from children import digest, report
        model = keras.models.load_model({str(tmp_path / "model.keras")!r})
        data = np.load({str(tmp_path / "data.npz")!r})
        inputs = [data["words"], data["numbers"]]
        model.fit(inputs, data["targets"], batch_size={BATCH}, epochs=2, shuffle=False, verbose=0)
        found = [variable.numpy() for variable in (*model.variables, *model.optimizer.variables)]
        report(digest=digest(*found), kind=type(model.optimizer).__module__)
    """
    found = children.run(code, KERAS_BACKEND="torch", PYTHONWARNINGS=None)
    fit(model, data, 2)
    expected = children.digest(*[variable.numpy() for variable in (*model.variables, *model.optimizer.variables)])
    assert found["kind"] == "fastopt.keras.optimizers"
    assert found["digest"] == expected


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copied_model_goes_on_bit_for_bit(way, new_model, data, fast):
    model = trained(new_model(), fast.Adam(1e-3, amsgrad=True), data, 2)
    other = copy.deepcopy(model) if way == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert type(other.optimizer) is fast.Adam and other.optimizer is not model.optimizer
    fit(model, data, 2)
    fit(other, data, 2)
    assert_equal_bits(other, model)


def test_a_cloned_model_is_compiled_anew(new_model, data, keras, fast):
    model = trained(new_model(), fast.Adam(1e-3), data)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    clone.compile_from_config(model.get_compile_config())
    assert type(clone.optimizer) is fast.Adam and int(clone.optimizer.iterations) == 0
    fit(clone, data)
    assert is_fused(clone.optimizer)


def test_excluded_and_accumulating_models_save_and_load(new_model, data, keras, fast, tmp_path):
    """In the middle of a window of gradients: the accumulators are saved, too."""
    optimizer = fast.AdamW(1e-3, gradient_accumulation_steps=3)
    model = trained(new_model(), optimizer, data)
    assert int(optimizer._iterations) % 3 == 1
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    fit(model, data)
    fit(loaded, data)
    assert_equal_bits(loaded, model)
