"""Rows that are folded into one test: all run, and all that fail are named."""

import pytest
from rows import RowsFailed, rows


def test_every_row_runs_and_every_failure_is_reported():
    seen = []

    @rows("a, b", [(1, 1), pytest.param(2, 3, id="odd"), (4, 5)])
    @rows("c", [0, 1])
    def check(a, b, c, fixture):
        seen.append((a, b, c))
        assert a == b, fixture
        assert c == 0, fixture

    with pytest.raises(RowsFailed) as caught:
        check(fixture="of all rows")
    assert seen == [(1, 1, 0), (1, 1, 1), (2, 3, 0), (2, 3, 1), (4, 5, 0), (4, 5, 1)]
    assert caught.value.labels == ["a=1, b=1, c=1", "odd, c=0", "odd, c=1", "a=4, b=5, c=0", "a=4, b=5, c=1"]
    assert all("of all rows" in str(error) for error in caught.value.exceptions)
    assert "a=4, b=5, c=1" in str(caught.value)


@pytest.mark.parametrize("name", ["x", "y"])
@rows("number", [1, 2])
def test_rows_leave_other_parameters_to_pytest(name, number, tmp_path):
    assert name in "xy" and number in (1, 2) and tmp_path.is_dir()


def test_failures_that_are_no_exceptions_are_reported():
    @rows("number", [1, 2])
    def check(number):
        pytest.fail(f"on purpose: {number}")

    with pytest.raises(RowsFailed) as caught:
        check()
    assert [str(error) for error in caught.value.exceptions] == ["on purpose: 1", "on purpose: 2"]


def test_skipped_rows_hide_no_failure():
    @rows("number", [1, 2])
    def check(number, fails):
        if number == 1:
            pytest.skip("on purpose")
        assert not fails

    with pytest.raises(RowsFailed):
        check(fails=True)
    with pytest.raises(pytest.skip.Exception, match="1 of 2 rows, the others passed: on purpose"):
        check(fails=False)


@pytest.mark.parametrize(
    ("names", "values", "message"),
    [
        ("number", [], "without rows"),
        ("number", [1, 1], "same name"),
        ("absent", [1], "does not take"),
        ("number", [pytest.param(1, marks=pytest.mark.full)], "marks"),
    ],
)
def test_rows_that_cannot_be_told_are_refused(names, values, message):
    with pytest.raises(AssertionError, match=message):
        rows(names, values)(lambda number: None)
