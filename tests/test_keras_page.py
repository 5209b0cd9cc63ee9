"""docs/keras.md: its programs run and print what it says."""

import re
from pathlib import Path

import pytest
from keras_cases import COPY_KEYWORD

pytestmark = [
    pytest.mark.keras_backend("torch"),
    pytest.mark.xdist_group("keras-torch"),
    pytest.mark.filterwarnings(COPY_KEYWORD),
]

PAGE = (Path(__file__).parents[1] / "docs" / "keras.md").read_text(encoding="utf-8")


def test_programs_run_and_print_what_the_page_says(keras, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = keras.config.dtype_policy()
    try:
        exec("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)), {})
    finally:
        keras.mixed_precision.set_global_policy(before)
    assert capsys.readouterr().out == "".join(re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL))
