"""docs/embeddings.md: its programs run and print what it says, and its table is what optimizers do."""

import re
from pathlib import Path

import numpy as np
import pytest
from rows import rows

import fastopt

PAGE = (Path(__file__).parents[1] / "docs" / "embeddings.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
TABLE = re.search(r"\| a step by rows \|\n\|---\|---\|\n(.*?)\n\n", PAGE, re.DOTALL)[1].splitlines()


def what_the_table_says():
    """By optimizer, without momentum and weight decay."""
    said = {}
    for _, who, answer, _ in (line.split("|") for line in TABLE if "weight_decay" not in line):
        kind = next((kind for kind in ("refused", "lazy") if answer.startswith(f" is {kind}")), "the same")
        for name in re.findall(r"`([A-Z]\w+)`", who):
            said.setdefault(name, kind)  # SGD stands there twice, the second time with momentum
    return said


SAID = what_the_table_says()


def test_programs_run_and_print_what_the_page_says(capsys):
    namespace = {}
    exec("\n".join(block for block in BLOCKS if "torch" not in block), namespace)
    assert capsys.readouterr().out == re.search(r"```text\n(.*?)```", PAGE, re.DOTALL)[1]
    assert np.flatnonzero(namespace["table"].any(axis=1)).tolist() == [3, 7]


def test_the_program_for_torch_runs():
    torch = pytest.importorskip("torch")
    namespace = {}
    exec(next(block for block in BLOCKS if "torch" in block), namespace)
    state = namespace["optimizer"].state[namespace["table"].weight]
    assert state["step"] == 1 and torch.count_nonzero(state["exp_avg"].any(dim=1)) == 2


def table_after(name, by_rows, start=0.0, **options):
    """A table of four rows, of which the last never has a gradient."""
    random = np.random.default_rng(0)
    table = np.full((4, 3), start, np.float32)
    optimizer = getattr(fastopt, name)(**options)
    optimizer.build([table])
    for _ in range(12):
        gradient = fastopt.RowGradient(random.integers(0, 3, 2), random.normal(size=(2, 3)).astype(np.float32))
        optimizer.apply([gradient if by_rows else gradient.to_dense(table.shape)])
    return table


def answer_of(name, **options):
    try:
        found = table_after(name, True, **options)
    except TypeError as refusal:
        assert "needs whole gradients" in str(refusal)
        return "refused"
    assert np.all(found[3] == options.get("start", 0.0)) and np.all(found[:3] != found[3])
    return "the same" if np.array_equal(found, table_after(name, False, **options)) else "lazy"


def test_the_table_is_about_all_optimizers():
    assert {*SAID} == {*fastopt.optimizers.__all__} - {"LossScaleOptimizer"}


@rows("name", SAID)
def test_each_optimizer_does_what_the_table_says(name):
    assert answer_of(name) == SAID[name]


@rows(
    "expected, name, options",
    [
        ("lazy", "SGD", {"momentum": 0.9}),
        ("lazy", "SGD", {"weight_decay": 0.1}),
        ("lazy", "Adagrad", {"weight_decay": 0.1}),
        ("lazy", "RowwiseAdagrad", {"weight_decay": 0.1}),
        ("the same", "Ftrl", {"weight_decay": 0.1}),
        ("the same", "Ftrl", {"l1_regularization_strength": 0.01, "l2_regularization_strength": 0.01}),
        ("lazy", "Ftrl", {"l2_shrinkage_regularization_strength": 0.01}),
        ("lazy", "Ftrl", {"learning_rate": fastopt.schedules.InverseTimeDecay(0.1, 1, 0.5)}),
        ("lazy", "Ftrl", {"start": 1.0}),
    ],
)
def test_exceptions_that_the_table_makes(expected, name, options):
    assert answer_of(name, **options) == expected


def test_ftrl_moves_rows_that_never_had_a_gradient_to_zero():
    assert np.all(table_after("Ftrl", False, start=1.0)[3] == 0)


@rows("name, expected", [("Adam", 512), ("Adagrad", 256), ("RowwiseAdagrad", 4)])
def test_what_state_takes(name, expected):
    optimizer = getattr(fastopt, name)()
    optimizer.build([np.zeros((1000, 64), np.float32)])
    assert sum(array.nbytes for arrays in optimizer.slots.values() for array in arrays) == 1000 * expected
    assert f"| {expected} MB |" in PAGE
