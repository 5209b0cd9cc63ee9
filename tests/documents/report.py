"""Runs the tests of the documents and writes docs/documents.md: `python tests/documents/report.py`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from documents import broken, checklist

PAGE = Path(__file__).parents[2] / "docs" / "documents.md"
HEAD = """# The five documents, row by row

fastopt builds what five documents describe. This table has a row for each thing that they say, the tests that answer
it and what each test is held against. `python tests/documents/report.py` runs the tests and writes this page;
`pytest tests/documents --row 8` runs those of a row.

| document | what it is |
|---|---|
| 000 | Keras 2.2 documentation, "Usage of optimizers" (Chinese) |
| 001 | Keras 3 documentation, "Adam" (Chinese) |
| 002 | an article on the learning rate of Keras's SGD (Chinese) |
| 003 | Keras 2.3 documentation, "Usage of optimizers" |
| 004 | a blog post on objectives, optimizers and activations of Keras 1.0 (Chinese) |
"""
BITES = """
## Do the tests bite?

Features broken on purpose, and the rows whose tests then fail. `tests/documents/test_bite.py` breaks them anew in every
run and checks the rows.

| broken | rows that fail |
|---|---|
"""


def main():
    tests, output = checklist.pytest_in_a_child(
        f"--ignore={checklist.HERE / 'test_checklist.py'}"
    )  # judges the old page
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(tests), encoding="utf-8")
    print(output, f"wrote {PAGE}", sep="\n")


def page(tests):
    """The whole page."""
    lines = ["", "| row | document | detail | tests | oracle | state |", "|---|---|---|---|---|---|"]
    lines += [f"| {' | '.join(line)} |" for line in table(tests)]
    bites = [f"| {feature.what} | {', '.join(map(str, feature.rows))} |" for feature in broken.FEATURES.values()]
    return HEAD + "\n".join(lines) + "\n" + BITES + "\n".join(bites) + "\n"


def table(tests):
    """(row, document, detail, tests, oracle, state) of each row, as text."""
    return [_line(row, [test for test in tests if row.number in test.rows]) for row in checklist.rows().values()]


def read_table():
    """The table of the committed page."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    cells = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines if line.startswith("| ")]
    return [line for line in cells if len(line) == 6 and line[0].isdigit()]


def _line(row, tests):
    names = "<br>".join(_grouped(tests))
    oracles = {oracle: None for test in tests for rows, oracle in test.marks if row.number in rows}
    return [str(row.number), row.document, row.detail, names, "<br>".join(oracles), _state(row, tests)]


def _grouped(tests):
    """`module::test`, once with all its parameters."""
    functions = {}
    for test in tests:
        name, _, parameters = test.id.partition("[")
        functions.setdefault(name, []).extend([parameters.removesuffix("]")] * bool(parameters))
    return [f"`{name}`" + f" ({', '.join(found)})" * bool(found) for name, found in functions.items()]


def _state(row, tests):
    if row.asks_for_nothing_because:
        return f"asks for nothing: {row.asks_for_nothing_because}"
    if not tests:
        return "not done"
    return "passes" if all(test.outcome == "passed" for test in tests) else "fails"


if __name__ == "__main__":
    main()
