"""The scalars table of a plan, written anew for every step."""

from __future__ import annotations

from collections.abc import Hashable
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from ..counts import Call
from ..plan import Plan
from ..scalars import Decision, Scalars
from .cohorts import Cohort


class Row(NamedTuple):
    """What parameters have in common that share a row of the scalars table."""

    group: int
    cohort: Cohort
    extra: Hashable


class Rows:
    """A row per parameter group and cohort; of those with the same hyper-parameters one is worked out.

    Parameters
    ----------
    owner : Owner
        Or a weak reference to it.
    plan : Plan
        Connected; its groups are `Row`.
    """

    def __init__(self, owner: Any, plan: Plan) -> None:
        self._rule, self._plan = owner.rule, plan
        self._values_of = itemgetter(*owner.rule.reads)
        self._rows: list[Any] = list(plan.groups)
        self._groups = [owner.param_groups[row.group] for row in self._rows]
        self._values: list[Any] = []
        self._leaders: list[int] = []  # rows that are worked out
        self._followed = np.zeros(0, np.int64)  # for each row its leader's place
        self._worked_out: Any = None

    def work_out(self, limit: float, keep: float) -> bool:
        """Find what `write` will write; whether the hyper-parameters select the plan's rule.

        ``keep`` is the share of itself that an average keeps, once it has begun.

        Raises
        ------
        ValueError
            If a number does not fit the parameters' dtype.
        """
        values = list(map(self._values_of, self._groups))
        if values != self._values:
            self._find_leaders(values)
        return all(self._write_row(place, k, limit, keep) for place, k in enumerate(self._leaders))

    def write(self) -> None:
        """Fill the table."""
        self._worked_out.take(self._followed, 0, self._plan.work.table)

    def _find_leaders(self, values: list[Any]) -> None:
        places: dict[Hashable, int] = {}
        keys = [
            (_hashable(own, k), row.cohort, row.extra)
            for k, (own, row) in enumerate(zip(values, self._rows, strict=True))
        ]
        self._followed = np.array([places.setdefault(key, len(places)) for key in keys], np.int64)
        self._leaders = np.unique(self._followed, return_index=True)[1].tolist()
        table = self._plan.work.table
        self._worked_out = np.zeros((len(self._leaders), table.shape[1]), table.dtype)
        self._values = values

    def _write_row(self, place: int, k: int, limit: float, keep: float) -> bool:
        row, group, plan = self._rows[k], self._groups[k], self._plan
        cohort = row.cohort
        scalars, decay = self._rule.scalars(group, cohort.count + 1, cohort, row.extra)
        if type(scalars) is not plan.scalars:
            return False
        control = -1.0 if group.get("maximize") else 1.0, 1.0, limit, decay, keep if cohort.averages else 0.0
        try:
            plan.pack(self._worked_out, place * self._worked_out.strides[0], *control, *scalars)
        except OverflowError:
            raise ValueError(f"one of {scalars}, or of the options, does not fit {plan.dtype}") from None
        return True


class DeviceScalars(Scalars):
    """Scalars that `DeviceOptimizer.prepare_step` has worked out, from the owner's hyper-parameters."""

    def write(self, unscale: float, decision: Decision, ask: bool = True) -> None:
        """See `Scalars.write`."""
        self._optimizer.write()
        if unscale != 1.0:
            self._optimizer.scale_gradients(unscale)

    def rounded(self) -> int:
        """See `Scalars.rounded`."""
        return self._optimizer.rounded

    def recording(self) -> list[Call]:
        """See `Scalars.recording`."""
        return self._optimizer._recording()


def _hashable(values: Any, otherwise: int) -> Hashable:
    """Return what rows with the same hyper-parameters have in common."""
    try:
        hash(values)
    except TypeError:  # a list among them
        return otherwise
    return values
