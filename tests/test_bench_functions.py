"""The table of losses and activations that `make bench` times against torch."""

import pytest

functions = pytest.importorskip("fastopt.bench.functions", exc_type=ImportError, reason="they need torch")


def test_both_sides_compute_the_same_and_are_found_by_their_names(monkeypatch):
    monkeypatch.setattr(functions, "SHAPE", (7, 40))
    made = list(functions.functions())
    assert [function.name for function in made] == functions.names()
    wrong = []
    for function in made:
        try:
            functions.check(function)
        except AssertionError as error:
            wrong.append(f"{function.name}: {error}")
    assert not wrong, "\n".join(wrong)


def test_the_check_tells_who_differs(monkeypatch):
    monkeypatch.setattr(functions, "SHAPE", (7, 40))
    function = next(functions.functions())
    with pytest.raises(AssertionError, match="celu/forward"):
        functions.check(function._replace(theirs=lambda: function.theirs() + 1e-4))
