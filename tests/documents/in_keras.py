"""What runs in one child process on Keras 3 with its torch backend: the documents' examples, and training runs.

A test asks `outcome(NAME)` for what a function of `RUNS`, or an example, gave.
"""

import functools
import runpy
import traceback
import warnings
from pathlib import Path

EXAMPLES = sorted((Path(__file__).parent / "examples").glob("*.py"))


# -- in the tests' process ---------------------------------------------------------------------------------------------


def outcome(name):
    """What a run or example gave; an AssertionError with the child's traceback where it failed."""
    found = _all_outcomes()[name]
    assert "error" not in found, f"in the child process:\n{found['error']}"
    return found["result"]


@functools.cache
def _all_outcomes():
    import children
    import pytest

    pytest.importorskip("torch")
    return children.run("from documents import in_keras; in_keras.main()", KERAS_BACKEND="torch")


# -- in the child ------------------------------------------------------------------------------------------------------


def main():
    import children

    examples = {path.stem: functools.partial(run_example, path) for path in EXAMPLES}
    children.report(**{name: _outcome(function) for name, function in (examples | RUNS).items()})


def _outcome(function):
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Do not pass an `input_shape`")  # as the documents do
            warnings.filterwarnings("ignore", "__array__ implementation")  # of Keras's variables, under NumPy 2
            return {"result": function()}
    except Exception:
        return {"error": traceback.format_exc()}


def run_example(path):
    """What an example left behind."""
    left = runpy.run_path(str(path))
    found = {}
    if "sgd" in left:
        found["config"] = left["sgd"].get_config()
    if "model" in left and left["model"].input_shape[-1] == 10:
        found["outputs"] = _array(left["model"](_inputs(10))).tolist()
    if "history" in left:
        found["history"] = {key: _floats(values) for key, values in left["history"].items()}
    if "values" in left:
        found["values"] = left["values"].tolist()
    return found


RUNS = {}


def run(function):
    """Registers a function whose result the tests ask for."""
    RUNS[function.__name__] = function
    return function


def _inputs(width, samples=32, seed=0):
    import numpy as np

    return np.random.default_rng(seed).normal(size=(samples, width)).astype("float32")


def _floats(values):
    import numpy as np

    return np.asarray([_array(value) for value in values], dtype=float).tolist()


def _array(value):
    from keras import ops

    return ops.convert_to_numpy(value)


def _model_of_the_documents(seed=1):
    import keras

    keras.utils.set_random_seed(seed)
    model = keras.Sequential()
    model.add(keras.layers.Dense(64, kernel_initializer="uniform", input_shape=(10,)))
    model.add(keras.layers.Activation("softmax"))
    return model


def _trained(optimizer, epochs=2, **options):
    """The documents' model after training: its weights, one row each, and the losses."""
    import numpy as np

    model = _model_of_the_documents()
    model.compile(**{"loss": "mean_squared_error", "optimizer": optimizer} | options)
    targets = np.eye(64, dtype="float32")[np.arange(32)]
    history = model.fit(_inputs(10), targets, epochs=epochs, batch_size=8, shuffle=False, verbose=0).history
    return {
        "weights": [_array(weight).ravel().tolist() for weight in model.weights],
        "losses": _floats(history["loss"]),
    }


def _era(name):
    import importlib

    return importlib.import_module(f"fastopt.keras.compat.{name}")


# -- document 000 and 003: a compiled model trains ---------------------------------------------------------------------


@run
def instances_against_keras():
    """The documents' instance, in both eras, and the same rule in Keras 3's words."""
    import keras

    settings = {"lr": 0.5, "decay": 0.1, "momentum": 0.9, "nesterov": True}
    schedule = keras.optimizers.schedules.InverseTimeDecay(0.5, decay_steps=1, decay_rate=0.1)
    return {
        "keras": _trained(keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True)),
        **{era: _trained(_era(era).optimizers.SGD(**settings)) for era in ("keras_2_2", "keras_2_3")},
    }


@run
def sgd_of_keras():
    """What names are to give."""
    import keras

    return _trained(keras.optimizers.SGD())


@run
def sgd_by_name():
    """The name in `compile`."""
    return _trained("sgd")


@run
def sgd_by_the_lookup_of_an_era():
    """What an era's own `get` makes of the name."""
    return {era: _trained(_era(era).optimizers.get("sgd")) for era in ("keras_1_0", "keras_2_2", "keras_2_3")}


# -- document 001: what only `fit` shows -------------------------------------------------------------------------------


@run
def average_after_fit():
    """Each weight after `fit`, and its moving average."""
    from fastopt import keras as fused

    optimizer = fused.Adam(0.05, use_ema=True, ema_momentum=0.5)
    model = _model_of_the_documents()
    model.compile(loss="mean_squared_error", optimizer=optimizer)
    before = [_array(weight).ravel().tolist() for weight in model.weights]
    model.fit(_inputs(10), _inputs(64, seed=2), epochs=1, batch_size=8, verbose=0)
    averages = [variable for variable in optimizer.variables if variable.name.endswith("_average")]
    return {
        "before": before,
        "weights": [_array(weight).ravel().tolist() for weight in model.weights],
        "averages": [_array(average).ravel().tolist() for average in averages],
    }


def adam(**arguments):
    """fastopt's Adam in `fit`."""
    from fastopt import keras as fused

    return _trained(fused.Adam(**{"learning_rate": 0.05, "beta_1": 0.8, "beta_2": 0.9} | arguments))


def tensor(value):
    """A constant tensor of the backend."""
    from keras import ops

    return ops.convert_to_tensor(value)


RUNS |= {
    "adam with floats": adam,
    "adam with functions": lambda: adam(beta_1=lambda: 0.8, beta_2=lambda: 0.9),
    "adam with tensors": lambda: adam(beta_1=tensor(0.8), beta_2=tensor(0.9)),
    "adam with a function as rate": lambda: adam(learning_rate=lambda: 0.05),
}


@run
def adam_of_keras():
    """Keras's Adam in `fit`."""
    import keras

    return _trained(keras.optimizers.Adam(0.05, beta_1=0.8, beta_2=0.9))


@run
def names_of_variables():
    """Paths of the variables that an Adam makes, by its name."""
    from fastopt import keras as fused

    paths = {}
    for name in ("adam", "mine"):
        model, optimizer = _model_of_the_documents(), fused.Adam(name=name)
        optimizer.build(model.trainable_variables)
        paths[name] = [variable.path for variable in optimizer.variables]
    return paths


@run
def extra_arguments():
    """What comes of arguments that Adam does not have."""
    from fastopt import keras as fused

    found = {}
    for name in ("decay", "lr", "unheard_of"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                rate = float(_array(fused.Adam(**{name: 0.5}).learning_rate))
                found[name] = {"warnings": [str(warning.message) for warning in caught], "rate": rate}
            except Exception as error:
                found[name] = {"error": type(error).__name__, "message": str(error)}
    return found


@run
def automatic_loss_scale():
    """Keras's LossScaleOptimizer around fastopt's Adam, and around Keras's."""
    import keras

    from fastopt import keras as fused

    return {
        name: _trained(keras.optimizers.LossScaleOptimizer(kind(0.05), initial_scale=64.0, dynamic_growth_steps=2))
        for name, kind in (("fastopt", fused.Adam), ("keras", keras.optimizers.Adam))
    }


# -- document 002: batches ---------------------------------------------------------------------------------------------


@run
def updates_by_batch_size():
    """Updates that one epoch over 32 samples makes."""
    found = {}
    for size in (32, 8, 1):
        model, sgd = _model_of_the_documents(), _era("keras_2_2").optimizers.SGD()
        model.compile(loss="mean_squared_error", optimizer=sgd)
        model.fit(_inputs(10), _inputs(64, seed=2), batch_size=size, epochs=1, verbose=0)
        found[str(size)] = int(_array(sgd.iterations))
    return found


# -- document 004: objectives and activations in a model ---------------------------------------------------------------


@run
def objectives_in_a_model():
    """Loss over one batch that Keras reports: by name, by a symbolic function, and what went in."""
    from keras import ops

    def by_function(y_true, y_pred):
        return ops.mean(ops.abs(y_true - y_pred) ** 3, axis=-1)

    found = {}
    for label, loss in {"mean_squared_error": "mean_squared_error", "mae": "mae", "function": by_function}.items():
        model = _model_of_the_documents()
        model.compile(loss=loss, optimizer=_era("keras_1_0").optimizers.SGD(lr=0.0))
        targets = _inputs(64, seed=2)
        found[label] = float(model.evaluate(_inputs(10), targets, batch_size=32, verbose=0))
    found["predicted"] = _array(model(_inputs(10))).tolist()
    found["true"] = targets.tolist()
    return found


@run
def activations_by_layer_by_argument_and_by_function():
    """The same weights under `Activation('tanh')`, `Activation(tanh)`, and both as an argument of Dense."""
    from keras import Input, Sequential
    from keras import ops as K
    from keras.layers import Activation, Dense

    def tanh(x):
        return K.tanh(x)

    linear = Sequential([Input((10,)), Dense(4)])
    kernel = linear.get_weights()
    found = {"linear": _array(linear(_inputs(10))).tolist()}
    for label, layers in {
        "layer": [Dense(4), Activation("tanh")],
        "argument": [Dense(4, activation="tanh")],
        "function in a layer": [Dense(4), Activation(tanh)],
        "function as an argument": [Dense(4, activation=tanh)],
    }.items():
        model = Sequential([Input((10,)), *layers])
        model.set_weights(kernel)
        found[label] = _array(model(_inputs(10))).tolist()
    return found
