"""The optimizers of `fastopt.keras` under Keras's JAX backend, in processes of their own."""

import importlib.util

import children
import pytest

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not among the test dependencies"),
]

TRAINS = """
    import warnings

    import children
    import keras
    import numpy as np

    import fastopt.keras

    def trained(kind, options):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(300, "tanh"), keras.layers.Dense(300, "tanh"),
                                  keras.layers.Dense(1)])
        model.compile(optimizer=kind(**options), loss="mse", jit_compile=True)
        inputs = np.random.default_rng(0).standard_normal((320, 8)).astype("float32")
        history = model.fit(inputs, inputs[:, :1], batch_size=32, epochs=5, shuffle=False, verbose=0)
        state = [variable.numpy() for variable in (*model.variables, *model.optimizer.variables)]
        return state, history.history["loss"]

    options = {options!r}
    expected, losses = trained(getattr(keras.optimizers, {name!r}), options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        given, _ = trained(getattr(fastopt.keras, {name!r}), options)
    assert keras.backend.backend() == "jax" and losses[-1] < losses[0]
    for array, other in zip(given, expected, strict=True):
        np.testing.assert_allclose(array, other, rtol=0, atol=1e-6)
    children.report(said=[str(w.message) for w in caught if "Keras's own update" in str(w.message)])
"""


@pytest.mark.parametrize("options", [{}, {"global_clipnorm": 0.1, "use_ema": True}], ids=["plain", "clip, ema"])
def test_fit_runs_the_update_that_keras_gives_to_xla_and_says_so_once(options):
    code = TRAINS.format(name="Adam", options=options)
    # Warnings are no errors there: not all are ours.
    said = children.run(code, KERAS_BACKEND="jax", JAX_PLATFORMS="cpu", PYTHONWARNINGS="default")["said"]
    assert len(said) == 1
    assert "jax" in said[0]
