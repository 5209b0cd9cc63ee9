"""What parameter groups and state were after a step: whether anyone has changed them since is asked once."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from operator import is_
from typing import Any

import torch

from . import reading
from .memory import is_distributed, local
from .rule import Owner


class Contents:
    """What was in dicts of state: objects by their names, and where the tensors among them had their memory.

    Parameters
    ----------
    dicts : sequence
    numbers : list of int
        Those of the dicts that count; the others may be anything.
    """

    def __init__(self, dicts: Sequence[Any], numbers: Iterable[int]) -> None:
        numbers = list(numbers)
        self._empty = [k for k in numbers if not dicts[k]]
        self._held = [(k, each) for k in numbers for each in _placed(list(dicts[k].items()))]
        values = [value for _, (_, value, _) in self._held]
        asked = [True] * len(values)
        self._reader = None
        if not reading.obstacle() and all(isinstance(dicts[k], dict) for k in numbers):
            rows = [
                reading.expected_object(value, holder=k, name=id(name), end=end) for k, (name, value, end) in self._held
            ]
            self._reader = reading.reader(rows, in_dicts=True)
            asked = [not row.kind for row, _, _ in rows]
        self._asked = [value for value in itertools.compress(values, asked) if isinstance(value, torch.Tensor)]
        self._are_whole = not any(map(is_distributed, self._asked))
        self._addresses = self._find_addresses()

    def are_in(self, dicts: tuple[Any, ...]) -> bool:
        """Whether these hold the same objects in the same order, with their memory where it was, and no others."""
        if self._empty and any(dicts[k] for k in self._empty):
            return False
        if self._reader is not None:
            same = self._reader.read(dicts) == self._reader.count
        else:
            same = self._are_in_turn(dicts)
        return same and (not self._asked or self._find_addresses() == self._addresses)

    def _find_addresses(self) -> list[int]:
        tensors = self._asked if self._are_whole else map(local, self._asked)
        return list(map(torch.Tensor.data_ptr, tensors))

    def _are_in_turn(self, dicts: tuple[Any, ...]) -> bool:
        known = [part for _, (name, value, _) in self._held for part in (name, value)]
        numbers = dict.fromkeys(k for k, _ in self._held)
        return are_same([part for k in numbers for item in dicts[k].items() for part in item], known)


def _placed(items: list[tuple[Any, Any]]) -> list[tuple[Any, Any, int]]:
    """Names and values, and what `exchange.Expected` says of their place."""
    last = len(items) - 1
    return [(name, value, (k == 0) + 2 * (k == last)) for k, (name, value) in enumerate(items)]


class Snapshot:
    """Groups, parameters and state of an optimizer.

    Parameters
    ----------
    owner : Owner
    params : list
        All of its parameters.
    stepped : iterable
        Those that are updated: only their state counts.
    """

    def __init__(self, owner: Owner, params: list[Any], stepped: Iterable[Any]) -> None:
        self._params, self._groups, self._keys = params, list(owner.param_groups), list(owner.state)
        numbers = {id(key): number for number, key in enumerate(self._keys)}
        wanted = [numbers[id(tensor)] for tensor in stepped if id(tensor) in numbers]
        self._contents = Contents(list(owner.state.values()), wanted)

    def matches(self, owner: Owner, params: list[Any]) -> bool:
        """Whether they are what they were: the same objects, and the tensors in state have their memory where it was.

        Hyper-parameters, and the memory of parameters, are not looked at. What counts of memory is address, dtype and
        layout: a tensor in state whose ``data`` has become a lazily negated view of itself is not noticed.
        """
        state = owner.state
        return (
            are_same(params, self._params)
            and are_same(owner.param_groups, self._groups)
            and are_same(state, self._keys)
            and self._contents.are_in(tuple(state.values()))
        )


def are_same(found: Any, known: Sequence[Any]) -> bool:
    """Whether these, as many, are the same objects."""
    return len(found) == len(known) and all(map(is_, found, known))
