"""torch, for test modules that need it here and there: where there is none, tests that call it are skipped."""

import pytest


class _Absent:
    """Stands for torch, or for anything in it. Tables may name it; whoever calls it is skipped."""

    def __init__(self, name):
        self.__name__ = name  # which pytest makes a test's id of

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(name)

    def __call__(self, *args, **kwargs):
        pytest.importorskip("torch")


try:
    import torch
except ModuleNotFoundError:
    torch = _Absent("torch")
