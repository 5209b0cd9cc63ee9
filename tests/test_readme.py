"""The README's code runs as it stands."""

import re
from pathlib import Path

import numpy as np
from keras_reference import import_keras

README = Path(__file__).parents[1] / "README.md"


def test_the_readme_runs(tmp_path, monkeypatch):
    import_keras()
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 9
    namespace = {"__name__": "readme"}
    exec("\n".join(blocks), namespace)
    assert namespace["opt"].get_config()["global_clipnorm"] == 1.0
    assert np.array_equal(np.load(tmp_path / "run.npz")["kernel"], namespace["kernel"])
    assert np.any(namespace["kernel"])
