"""The README's code runs as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest
from keras_cases import COPY_KEYWORD
from keras_reference import import_keras

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.filterwarnings(COPY_KEYWORD)
def test_the_readme_runs(tmp_path, monkeypatch):
    _save_a_model(import_keras(), tmp_path / "model.keras")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 10
    namespace = {"__name__": "readme"}
    exec("\n".join(blocks), namespace)
    turned = namespace["model"].optimizer
    assert type(turned).__module__ == "fastopt.keras.optimizers" and int(turned.iterations) == 1
    assert namespace["opt"].get_config()["global_clipnorm"] == 1.0
    assert np.array_equal(namespace["params"]["0"], namespace["kernel"]) and namespace["extra"] == {"epoch": 3}
    assert np.any(namespace["kernel"])


def _save_a_model(keras, path):
    """A model of Keras's own, after a step."""
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.Adam(), loss="mse")
    variables = model.trainable_variables
    model.optimizer.apply([keras.ops.ones(variable.shape) for variable in variables], variables)
    model.save(path)
