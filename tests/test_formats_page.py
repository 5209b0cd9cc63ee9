"""docs/formats.md: its programs run and print what it says."""

import re
from pathlib import Path

from test_cli import run

PAGE = (Path(__file__).parents[1] / "docs" / "formats.md").read_text(encoding="utf-8")


def test_programs_run_and_print_what_the_page_says(capsys):
    exec("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)), {})
    assert capsys.readouterr().out == "".join(re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL))


def test_commands_print_what_the_page_says():
    command, table = re.search(r"^    \$ fastopt (.*)\n((?:    .*\n)+)", PAGE, re.MULTILINE).groups()
    result = run(*command.split())
    assert [line.strip() for line in result.stdout.splitlines()] == [line.strip() for line in table.splitlines()]
