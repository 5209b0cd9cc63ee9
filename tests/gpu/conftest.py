"""Settings of the tests on a GPU, before any framework loads."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX would take three quarters of the GPU's memory

# These tests run with whatever frameworks a machine has: what those warn of among themselves is no failure of ours.
FOREIGN = (
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::UserWarning:torch",
    "ignore::UserWarning:cupy",
    "ignore::UserWarning:jax",
)


def pytest_collection_modifyitems(items):
    """Mark all tests of this folder."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.gpu)
            for warning in FOREIGN:
                item.add_marker(pytest.mark.filterwarnings(warning))
