"""torch, for test modules that are all about it: where there is none, importing this skips the module."""

import pytest

torch = pytest.importorskip("torch")
