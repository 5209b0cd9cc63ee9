"""Which parameters lose weight, and how much."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

from . import state
from .device import is_array
from .parameters import Parameter, check_pattern


class Decay:
    """The part of an optimizer that excludes parameters from weight decay."""

    weight_decay: float | None
    _built: bool
    _excluded: dict[str, list[str]]
    _excluded_arrays: list[Any]
    _one_at_a_time: Callable[[], AbstractContextManager[Any]]
    _parameters: list[Parameter]
    _plan: Callable[..., None]
    _unchanged_by_failure: Callable[[], AbstractContextManager[None]]

    def exclude_from_weight_decay(
        self, var_list: Iterable[Any] | None = None, var_names: Iterable[str] | None = None
    ) -> None:
        """Spare parameters from weight decay. Each call replaces what the last one said.

        Parameters
        ----------
        var_list : iterable of ndarray, optional
            The parameters themselves, by identity.
        var_names : iterable of str, optional
            Regular expressions, searched in the whole path (Keras searches the variable's short name only).

        Raises
        ------
        TypeError, ValueError
            If a name is no regular expression, or an array is none of the parameters built.
        """
        if isinstance(var_names, str):
            raise TypeError(f"var_names must be a list of regular expressions, got the str {var_names!r}")
        if is_array(var_list):
            raise TypeError("var_list must be a list of arrays, got one array")
        names = list(var_names or [])
        for name in names:
            check_pattern("var_names", name)
        arrays = list(var_list or [])
        paths = self._paths_of(arrays) if self._built else []
        with self._one_at_a_time(), self._unchanged_by_failure():
            self._excluded = {"paths": paths, "names": names}
            self._excluded_arrays = [] if self._built else arrays
            if self._built:
                self._plan(keep=state.snapshot(self))

    def _paths_of(self, arrays: list[Any]) -> list[str]:
        by_identity = {id(parameter.given): parameter.path for parameter in self._parameters}
        unknown = [k for k, array in enumerate(arrays) if id(array) not in by_identity]
        if unknown:
            raise ValueError(f"var_list[{unknown[0]}] is none of the parameters that the optimizer was built with")
        return [by_identity[id(array)] for array in arrays]

    def _decay_of(self, parameter: Parameter) -> float | None:
        """Weight decay of one parameter: an exclusion counts most, then its override; None: the optimizer's own."""
        patterns = self._excluded["names"]
        if parameter.path in self._excluded["paths"] or any(re.search(name, parameter.path) for name in patterns):
            return 0.0
        if "weight_decay" in parameter.settings:
            return float(parameter.settings["weight_decay"] or 0.0)
        return None

    def _branch_decay(self, branch: str) -> float | None:
        return self.weight_decay
