"""The documents' code examples run, with nothing changed but imports, placeholders and typos."""

import numpy as np
import pytest
from documents import in_keras

RAN = "the document's code, as printed"
KERAS_3 = "Keras 3's optimizer on the same model and data"
pytestmark = pytest.mark.xdist_group("documents in keras")

EXAMPLES = {
    "000_instance": (1, 2, 4, 5),
    "000_by_name": (1, 3, 5),
    "000_clipnorm": (4, 6),
    "000_clipvalue": (4, 7),
    "000_signatures": (4, 8, 13, 18, 21, 24, 29, 32),
    "001_adam": (36,),
    "001_adam_in_keras": (36,),
    "002_signature": (65,),
    "002_recipe": (69,),
    "002_step_decay": (72, 73, 74, 75),
    "002_step_decay_without_keras": (72, 73, 74),
    "003_instance": (78,),
    "003_by_name": (79,),
    "003_clipnorm": (80,),
    "003_clipvalue": (80,),
    "003_signatures": (81, 83, 85, 86, 87, 88, 89),
    "004_clipnorm": (107, 108),
    "004_clipvalue": (107, 109),
    "004_signatures": (110, 111, 112, 113, 114),
    "004_sparse_labels": (103,),
    "004_tanh": (117, 118, 119),
}


def test_every_example_is_here():
    assert [path.stem for path in in_keras.EXAMPLES] == sorted(EXAMPLES)


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.row(*rows, oracle=RAN)) for name, rows in EXAMPLES.items()
])  # fmt: skip
def test_example(name):
    in_keras.outcome(name)


@pytest.mark.parametrize("name, expected", [
    pytest.param(name, expected, id=name, marks=pytest.mark.row(*EXAMPLES[name], oracle="the printed arguments"))
    for name, expected in {
        "000_instance": {"lr": 0.01, "decay": 1e-6, "momentum": 0.9, "nesterov": True},
        "000_clipnorm": {"lr": 0.01, "clipnorm": 1.0},
        "000_clipvalue": {"lr": 0.01, "clipvalue": 0.5},
        "002_recipe": {"lr": 0.1, "decay": 0.002, "momentum": 0.9, "nesterov": True},
        "003_instance": {"learning_rate": 0.01, "decay": 1e-6, "momentum": 0.9, "nesterov": True},
        "003_clipnorm": {"learning_rate": 0.01, "clipnorm": 1.0},
        "003_clipvalue": {"learning_rate": 0.01, "clipvalue": 0.5},
        "004_clipnorm": {"lr": 0.01},
        "004_clipvalue": {"lr": 0.01},
    }.items()
])  # fmt: skip
def test_the_optimizer_of_an_example(name, expected):
    config = in_keras.outcome(name)["config"]
    assert {key: config[key] for key in expected} == pytest.approx(expected)


STAIRS = [0.1] * 9 + [0.05] * 10 + [0.025]


@pytest.mark.row(72, 73, 74, 75, oracle="epochs 0-8: 0.1, 9-18: 0.05, 19: 0.025, by hand")
def test_the_rates_and_the_accuracy_of_the_article():
    history = in_keras.outcome("002_step_decay")["history"]
    assert history["learning_rate"] == pytest.approx(STAIRS)
    assert history["loss"][-1] < history["loss"][0]
    assert 0.9 < history["accuracy"][-1] <= 1
    assert in_keras.outcome("002_step_decay_without_keras")["history"]["learning_rate"] == pytest.approx(STAIRS)


@pytest.mark.row(5, oracle="softmax: 64 positive numbers that add up to 1")
def test_the_model_of_the_documents():
    outputs = np.array(in_keras.outcome("000_instance")["outputs"])
    assert outputs.shape == (32, 64)
    assert outputs.min() > 0
    np.testing.assert_allclose(outputs.sum(1), 1, rtol=1e-5)


@pytest.mark.row(118, oracle="values of tanh lie between -1 and 1, and tanh of tanh below tanh(1)")
def test_the_model_of_tanh():
    outputs = np.array(in_keras.outcome("004_tanh")["outputs"])
    assert outputs.shape == (32, 64)
    assert np.abs(outputs).max() <= np.tanh(1.0)


@pytest.mark.row(103, oracle="ln 2 and 3 ln 2 by hand")
def test_the_values_of_sparse_labels():
    assert in_keras.outcome("004_sparse_labels")["values"] == pytest.approx([np.log(2), 3 * np.log(2)])


# -- training on real Keras --------------------------------------------------------------------------------------------


def assert_same_training(ours, keras):
    for weight, expected in zip(ours["weights"], keras["weights"], strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours["losses"], keras["losses"], rtol=1e-5)


@pytest.mark.row(1, 2, 11, 78, oracle=KERAS_3 + ", with InverseTimeDecay per step")
@pytest.mark.parametrize("era", ["keras_2_2", "keras_2_3"])
def test_an_instance_trains_as_in_keras(era):
    found = in_keras.outcome("instances_against_keras")
    assert_same_training(found[era], found["keras"])


@pytest.mark.row(3, 79, 107, oracle=KERAS_3)
def test_a_name_trains_with_the_defaults():
    assert_same_training(in_keras.outcome("sgd_by_name"), in_keras.outcome("sgd_of_keras"))


@pytest.mark.row(3, 79, 107, oracle=KERAS_3)
@pytest.mark.parametrize("era", ["keras_1_0", "keras_2_2", "keras_2_3"])
def test_a_name_trains_with_the_defaults_of_an_era(era):
    assert_same_training(in_keras.outcome("sgd_by_the_lookup_of_an_era")[era], in_keras.outcome("sgd_of_keras"))


@pytest.mark.parametrize("way", [
    pytest.param("adam with floats", marks=pytest.mark.row(37, 40, 43, oracle=KERAS_3)),
    pytest.param("adam with functions", marks=pytest.mark.row(42, 43, oracle=KERAS_3)),
    pytest.param("adam with tensors", marks=pytest.mark.row(41, 43, oracle=KERAS_3)),
    pytest.param("adam with a function as rate", marks=pytest.mark.row(39, oracle=KERAS_3)),
])  # fmt: skip
def test_adam_trains_as_in_keras(way):
    assert_same_training(in_keras.outcome(way), in_keras.outcome("adam_of_keras"))


@pytest.mark.row(57, oracle="the optimizer's own averages")
def test_fit_ends_with_the_averages():
    found = in_keras.outcome("average_after_fit")
    assert found["weights"] == found["averages"]
    assert found["weights"] != found["before"]


@pytest.mark.row(47, oracle="Keras 3's naming: optimizer/layer_weight_slot")
def test_the_name_names_the_variables():
    for name, paths in in_keras.outcome("names_of_variables").items():
        assert all(path.startswith(f"{name}/") for path in paths)
        assert sum(path.endswith("_momentum") for path in paths) == 2


@pytest.mark.row(63, oracle="Keras 3: decay warns and is ignored, unknown names and lr are refused")
def test_extra_arguments():
    found = in_keras.outcome("extra_arguments")
    assert found["decay"]["rate"] == pytest.approx(0.001)
    assert any("decay" in message for message in found["decay"]["warnings"])
    for name in ("lr", "unheard_of"):
        assert found[name]["error"] == "ValueError"
        assert name in found[name]["message"]


@pytest.mark.row(59, oracle=KERAS_3)
def test_automatic_loss_scale():
    found = in_keras.outcome("automatic_loss_scale")
    assert_same_training(found["fastopt"], found["keras"])


@pytest.mark.row(76, oracle="32 samples: 32 / batch_size updates")
def test_the_batch_size_sets_the_number_of_updates():
    assert in_keras.outcome("updates_by_batch_size") == {"32": 1, "8": 4, "1": 32}


@pytest.mark.row(92, 93, 94, oracle="NumPy: the mean over data points of one value each")
def test_objectives_in_a_model():
    found = in_keras.outcome("objectives_in_a_model")
    error = np.array(found["predicted"]) - np.array(found["true"])
    for label, power in {"mean_squared_error": 2, "mae": 1, "function": 3}.items():
        assert found[label] == pytest.approx(np.mean(np.mean(np.abs(error) ** power, axis=-1)), rel=1e-5)


@pytest.mark.row(117, 118, 119, oracle="NumPy's tanh of the linear layer")
@pytest.mark.parametrize("how", ["layer", "argument", "function in a layer", "function as an argument"])
def test_ways_to_give_an_activation(how):
    found = in_keras.outcome("activations_by_layer_by_argument_and_by_function")
    np.testing.assert_allclose(found[how], np.tanh(found["linear"]), rtol=1e-5, atol=1e-6)
