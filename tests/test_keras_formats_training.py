"""Half precision in compile and fit: policies of Keras's, scaled losses, saved and loaded; the torch backend."""

import copy
import itertools

import numpy as np
import pytest
from keras_cases import CLOSE, COPY_KEYWORD, NAMES, TORCH_SCHEDULE_FREE, is_fused
from rows import rows

pytestmark = [
    pytest.mark.keras_backend("torch"),
    pytest.mark.xdist_group("keras-training"),
    pytest.mark.filterwarnings(COPY_KEYWORD),
]

ROWS, BATCH = 64, 16
TAKEN = [name for name in NAMES if name not in ("Lamb", "Adafactor", "Muon", "ScheduleFreeAdamW")]
RATES = {"Adadelta": 1.0, "Ftrl": 0.05, "SGD": 0.05, "Adafactor": 0.01}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(ROWS, 4)).astype(np.float32)
    return inputs, (inputs[:, :1] * 0.5 + np.sin(inputs[:, 1:2])).astype(np.float32)


@pytest.fixture
def policy(keras):
    """Sets a dtype policy until the test has ended."""
    before = keras.config.dtype_policy()
    yield keras.mixed_precision.set_global_policy
    keras.mixed_precision.set_global_policy(before)


@pytest.fixture
def new_model(keras, policy):
    """Makes models of a policy, with the same weights, names and seeds; ``last`` is the last layer's policy."""

    def make(name, last=None):
        policy(name)
        keras.utils.set_random_seed(3)
        hidden = keras.layers.Dense(32, activation="tanh", name="in")
        return keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dense(1, dtype=last, name="out")])

    return make


def fit(model, data, epochs=1, **options):
    return model.fit(*data, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, **options)


def trained(model, optimizer, data, epochs=1, **options):
    model.compile(optimizer=optimizer, loss="mse")
    fit(model, data, epochs, **options)
    return model


def in_float32(keras, variable):
    return np.array(keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32")), np.float32)


def everything(keras, model):
    return [in_float32(keras, each) for each in (*model.variables, *model.optimizer.variables)]


def assert_equal_bits(keras, model, other):
    for one, its in zip(everything(keras, model), everything(keras, other), strict=True):
        np.testing.assert_array_equal(one, its)


def inner(model):
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


# -- mixed policies: variables of float32 ------------------------------------------------------------------------------


class _Recorded:
    """Has an optimizer keep the gradients that `fit` gives it."""

    def __init__(self, optimizer):
        self.grads, self._apply = [], optimizer.apply
        optimizer.apply = self

    def __call__(self, grads, *variables, **named):
        self.grads.append([grad.clone() for grad in grads])
        self._apply(grads, *variables, **named)


@pytest.mark.parametrize("mixed", ["mixed_bfloat16", "mixed_float16"])
@rows("name", [name for name in NAMES if name != "ScheduleFreeAdamW"])
def test_mixed_policies_step_as_keras_does(name, mixed, new_model, data, keras, fast):
    """A hundred steps of fit: Keras's own optimizer, given the same gradients, does the same."""
    rate = RATES.get(name, 1e-3)
    model = new_model(mixed)
    starts = [in_float32(keras, each) for each in model.trainable_variables]
    model.compile(optimizer=getattr(fast, name)(learning_rate=rate), loss="mse")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (mixed == "mixed_float16")
    recorded = _Recorded(inner(model))
    history = fit(model, data, epochs=25).history["loss"]
    assert is_fused(inner(model)) and history[-1] < history[0]
    assert all(variable.dtype == "float32" for variable in model.trainable_variables)
    theirs = getattr(keras.optimizers, name)(learning_rate=rate)
    variables = [keras.Variable(start, name=f"v{k}") for k, start in enumerate(starts)]
    theirs.build(variables)
    assert len(recorded.grads) == int(inner(model).iterations) > 90
    for grads in recorded.grads:
        theirs.apply(grads)
    for ours, its in zip(model.trainable_variables, variables, strict=True):
        np.testing.assert_allclose(ours.numpy(), its.numpy(), **CLOSE)


@pytest.mark.parametrize("mixed", ["mixed_bfloat16", "mixed_float16"])
@rows(
    "options",
    [
        {},
        {"global_clipnorm": 0.1, "use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 5},
        {"gradient_accumulation_steps": 4, "weight_decay": 0.01},
        {"slot_dtype": "bfloat16", "master_weights": "split"},
    ],
    ids=str,
)
def test_fit_with_a_mixed_policy_is_near_that_of_keras(options, mixed, new_model, data, keras, fast):
    """What 16 bits between the layers make of a difference in the last place of float32."""
    ours = trained(new_model(mixed), fast.Adam(1e-3, **options), data, 10)
    others = {key: value for key, value in options.items() if key not in ("slot_dtype", "master_weights")}
    theirs = trained(new_model(mixed), keras.optimizers.Adam(1e-3, **others), data, 10)
    assert is_fused(inner(ours))
    for one, other in zip(ours.trainable_variables, theirs.trainable_variables, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=5e-3, atol=2e-3)


@rows("name", ["Adam", "Lamb"])
def test_steps_that_overflow_are_skipped_and_the_scale_moves_as_keras_has_it(name, new_model, data, keras, fast):
    found = []
    for module in (fast, keras.optimizers):
        scaled = keras.optimizers.LossScaleOptimizer(
            getattr(module, name)(1e-3), initial_scale=2.0**24, dynamic_growth_steps=5
        )
        scales = []
        seen = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs, scaled=scaled, scales=scales: scales.append(
                (float(scaled.dynamic_scale.numpy()), int(scaled.step_counter.numpy()), int(scaled.iterations))
            )
        )
        model = trained(new_model("mixed_float16"), scaled, data, 10, callbacks=[seen])
        found.append((model, scales))
    (ours, our_scales), (theirs, their_scales) = found
    assert is_fused(inner(ours))
    assert our_scales == their_scales
    factors = {after[0] / before[0] for before, after in itertools.pairwise(our_scales)}
    assert factors == {0.5, 1.0, 2.0} and our_scales[-1][2] < 40
    for one, other in zip(ours.trainable_variables, theirs.trainable_variables, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=5e-3, atol=2e-3)


def test_scaled_models_go_on_bit_for_bit(new_model, data, keras, fast, tmp_path):
    model = trained(new_model("mixed_float16"), fast.AdamW(1e-3, use_ema=True), data, 2)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(inner(loaded)) is fast.AdamW
    assert_equal_bits(keras, loaded, model)
    for each in (model, loaded):
        fit(each, data, 2)
    assert is_fused(inner(loaded))
    assert_equal_bits(keras, loaded, model)


# -- variables of 16 bits ----------------------------------------------------------------------------------------------

OPTIONS = {
    "none": {},
    "at random": {"stochastic_rounding": True, "seed": 3},
    "master": {"master_weights": "float32", "slot_dtype": "float32"},
    "Kahan": {"compensation": "kahan", "use_ema": True, "slot_dtype": {"velocity": "float32"}},
    "accumulated": {"gradient_accumulation_steps": 3, "clipnorm": 1.0},
}
EVERY_OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@pytest.mark.parametrize("half", ["bfloat16", pytest.param("float16", marks=pytest.mark.full)])
@rows("name", TAKEN)
def test_fit_of_a_model_in_16_bits(name, half, new_model, data, keras, fast):
    """With masters its loss is that of the model in float32, as far as layers of 16 bits go."""
    rate, losses = RATES.get(name, 1e-3), []
    for dtype, module, options in (
        (half, fast, {"master_weights": "float32"}),
        ("float32", keras.optimizers, {}),
    ):
        model = new_model(dtype)
        optimizer = getattr(module, name)(learning_rate=rate, **options)
        model.compile(optimizer=optimizer, loss="mse", auto_scale_loss=False)
        losses.append(fit(model, data, 20).history["loss"])
        assert {variable.dtype for variable in model.trainable_variables} == {dtype}
        assert module is not fast or is_fused(optimizer)
    assert losses[0][-1] < losses[0][0]
    np.testing.assert_allclose(losses[0][-1], losses[1][-1], rtol=0.05)


@EVERY_OPTION
def test_a_saved_model_goes_on_bit_for_bit(options, new_model, data, keras, fast, tmp_path):
    """One layer of bfloat16, and one of float32; in a window of gradients, where they are accumulated."""
    model = trained(new_model("bfloat16", last="float32"), fast.Adam(1e-3, **options), data, 1)
    assert {variable.dtype for variable in model.trainable_variables} == {"bfloat16", "float32"}
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is fast.Adam
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert [each.dtype for each in loaded.optimizer.variables] == [each.dtype for each in model.optimizer.variables]
    filled = new_model("bfloat16", last="float32")
    filled.compile(optimizer=fast.Adam(1e-3, **options), loss="mse")
    filled.optimizer.build(filled.trainable_variables)
    filled.load_weights(tmp_path / "model.weights.h5")
    for each in (loaded, filled):
        assert_equal_bits(keras, each, model)
    for each in (model, loaded, filled):
        fit(each, data, 2)
        assert is_fused(each.optimizer)
    assert_equal_bits(keras, loaded, model)
    assert_equal_bits(keras, filled, model)


def test_a_copied_model_goes_on_bit_for_bit(new_model, data, keras, fast):
    model = trained(new_model("bfloat16"), fast.AdamW(1e-3, master_weights="split"), data, 2)
    other = copy.deepcopy(model)
    for each in (model, other):
        fit(each, data, 2)
    assert is_fused(other.optimizer)
    assert_equal_bits(keras, other, model)


@rows("direction", ["to fastopt", "to Keras"])
def test_weights_files_move_between_keras_and_fastopt(direction, new_model, data, keras, fast, tmp_path):
    giver, receiver = (keras.optimizers, fast) if direction == "to fastopt" else (fast, keras.optimizers)
    model = trained(new_model("bfloat16"), giver.RMSprop(1e-3, use_ema=True), data, 2)
    model.save_weights(tmp_path / "model.weights.h5")
    other = new_model("bfloat16")
    other.compile(optimizer=receiver.RMSprop(1e-3, use_ema=True), loss="mse")
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "model.weights.h5")
    assert_equal_bits(keras, other, model)
    fit(other, data)
    assert int(other.optimizer.iterations) == 3 * ROWS // BATCH


def test_averages_in_the_place_of_weights_while_evaluating(new_model, data, keras, fast):
    """The callback swaps them for validation: training is what it is without."""
    found = []
    for callbacks in ([], [keras.callbacks.SwapEMAWeights()]):
        optimizer = fast.Adam(1e-3, use_ema=True, ema_momentum=0.9, master_weights="split")
        model = new_model("bfloat16")
        model.compile(optimizer=optimizer, loss="mse")
        fit(model, data, 3, callbacks=callbacks, validation_data=data)
        found.append(model)
    averages = [in_float32(keras, each) for each in found[0].optimizer._model_variables_moving_average]
    for model in found:
        for variable, average in zip(model.trainable_variables, averages, strict=True):
            np.testing.assert_array_equal(in_float32(keras, variable), average)


def test_schedule_free_under_a_mixed_policy(new_model, data, fast):
    """The one optimizer that Keras has wrong on torch: `TORCH_SCHEDULE_FREE`."""
    assert "Keras" in TORCH_SCHEDULE_FREE
    model = new_model("mixed_bfloat16")
    model.compile(optimizer=fast.ScheduleFreeAdamW(0.01), loss="mse")
    history = fit(model, data, 20).history["loss"]
    assert is_fused(model.optimizer) and history[-1] < 0.5 * history[0]
