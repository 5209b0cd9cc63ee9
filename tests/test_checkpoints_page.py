"""docs/checkpoints.md: its program runs and prints what it says, and the tests that it names are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")


def test_programs_run_and_print_what_the_page_says(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)), {})
    assert capsys.readouterr().out == "".join(re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL))


def test_the_tests_that_it_names_are_there():
    sources = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").glob("test_checkpoint*.py"))
    named = re.findall(r"`(test_\w+)", PAGE)
    assert len(named) > 10
    for name in named:
        assert f"def {name}" in sources, name
    for name in re.findall(r"`((?:tests|bench|examples)/\S+\.py)`", PAGE):
        assert (ROOT / name).exists(), name
