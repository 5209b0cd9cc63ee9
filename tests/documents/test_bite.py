"""The tests of the documents bite: features are broken on purpose, and the rows that name them fail."""

import children
import pytest
from documents import broken


@pytest.fixture(scope="module")
def rows_that_fail():
    return children.run("from documents import broken; broken.main()", timeout=600)["rows"]


@pytest.mark.xdist_group("documents bite")
@pytest.mark.parametrize("name", broken.FEATURES)
def test_what_is_broken_fails(name, rows_that_fail):
    assert rows_that_fail[name] == list(broken.FEATURES[name].rows)
