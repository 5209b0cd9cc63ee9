"""Every row is answered by a test that names its oracle, every mark names rows, and the page says the same."""

import re

import pytest
from documents import checklist, report

pytestmark = pytest.mark.xdist_group("documents checklist")
ABOUT_THE_TESTS = ("test_bite.py", "test_checklist.py", "test_legacy.py")


@pytest.fixture(scope="module")
def tests():
    collected, _ = checklist.pytest_in_a_child("--collect-only")
    return collected


def test_every_row_that_asks_for_something_has_a_test(tests):
    answered = {row for test in tests for row in test.rows}
    asking = {number for number, row in checklist.rows().items() if not row.asks_for_nothing_because}
    assert asking == answered


def test_every_test_of_a_document_names_its_rows_and_oracle(tests):
    assert tests
    for test in tests:
        if test.module in ABOUT_THE_TESTS or test.id.endswith("::test_every_example_is_here"):
            continue
        assert test.marks, f"{test.id} answers no row"
        assert all(rows and oracle for rows, oracle in test.marks), f"{test.id}: rows and oracle are both needed"


def test_tests_of_one_document_answer_its_rows(tests):
    documents = {number: row.document for number, row in checklist.rows().items()}
    for test in tests:
        of_one = re.match(r"test_(\d{3})_", test.module)
        assert not of_one or {documents[row] for row in test.rows} == {of_one[1]}, test.id


def test_the_page_is_up_to_date(tests):
    assert [line[:5] for line in report.read_table()] == [line[:5] for line in report.table(tests)]


def test_no_row_of_the_page_is_open():
    states = {line[5] for line in report.read_table()}
    assert not states & {"not done", "fails"}
