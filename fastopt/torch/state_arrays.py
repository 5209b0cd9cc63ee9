"""Where a plan's state arrays come from: tensors in the members' state, made where they are missing."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..device import AnyArray, Place
from ..kernels.registry import Slot
from ..parameters import Parameter
from ..plan import Plan
from .cohorts import Member
from .formats import CODES, TensorFormats, codes_in, forget_stale, name_in_state, numbers_in, scale_in
from .memory import as_array, kept, local, new_state


class StateArrays:
    """The `plan.Storage` of one plan.

    Parameters
    ----------
    names : dict of str to str
        What slots are called in state.
    members : dict of str to Member
        By path.
    place : Place
    formats : TensorFormats or None
        How the plan's numbers are kept.
    """

    def __init__(
        self, names: Mapping[str, str], members: Mapping[str, Member], place: Place, formats: TensorFormats | None
    ) -> None:
        self._names, self._members, self._place, self._formats = names, members, place, formats

    def __call__(
        self, part: str, slot: Slot, parameters: list[Parameter]
    ) -> tuple[list[AnyArray | None], list[AnyArray]]:
        """Return the array of each parameter, None where it has none, and those that there are."""
        arrays = [
            self._array(part, slot, p, k) if p.array.ndim in slot.axes else None for k, p in enumerate(parameters)
        ]
        return arrays, [array for array in arrays if array is not None]

    def forget_stale(self, plan: Plan) -> None:
        """Let go of what state has beside numbers whose format is another one in this plan, which has been made."""
        made = {name_in_state(self._names, part) for part in plan.slots}
        for parameter in plan.parameters:
            forget_stale(self._members[parameter.path].state, self._names.values(), made)

    def _array(self, part: str, slot: Slot, parameter: Parameter, k: int) -> AnyArray:
        """The array of parameter ``k`` of the plan."""
        member, array, formats = self._members[parameter.path], parameter.array, self._formats
        state, name = member.state, name_in_state(self._names, part)
        called = f"state {name!r} of {member.path}"
        if slot.scales:
            state[name] = scale_in(state, name, local(member.tensor), array)
            return as_array(called, state[name], self._place)
        dtype = local(member.tensor).dtype if formats is None else formats.dtype_of(part, parameter)
        if formats is not None and dtype in CODES:
            state[name], numbers = codes_in(called, state, name, member.tensor, parameter, slot, dtype)
            if numbers is not None:
                formats.coming.append((part, k, numbers))
            return as_array(called, state[name], self._place)
        found = numbers_in(called, state, name)
        if found is None or (dtype is torch.int16 and found.dtype is not dtype):  # no numbers to convert
            found = new_state(member.tensor, array, slot, dtype)
        state[name], view = kept(called, found, member.tensor, array, self._place, slot, dtype)
        return view
