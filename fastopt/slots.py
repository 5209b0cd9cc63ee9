"""The state arrays of an optimizer: which there are, in which formats, how much memory they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .formats import formats_of, shown
from .kernels.registry import Slot
from .memory import Memory, memory_of
from .parameters import Array, Parameter
from .plan import ACCUMULATOR_SLOT, AVERAGE_SLOT, Plan


class Slots:
    """The part of an optimizer that knows its state; `plan.Plan` makes the arrays."""

    gradient_accumulation_steps: int | None
    seed: int
    use_ema: bool
    _branch: Callable[[Parameter], str]
    _parameters: list[Parameter]
    _plans: list[Plan]
    _require_built: Callable[[str], None]

    def _find_formats(self) -> None:
        """Choose the format of everything, for good."""
        self._kept_as = [formats_of(self, p, self._branch(p)) if p.trainable else () for p in self._parameters]
        self._kept_seed = self.seed

    def _extra_slots(self) -> dict[str, Slot]:
        """The state that belongs to the step, not to a rule."""
        extra = {AVERAGE_SLOT: Slot(copies_parameter=True)} if self.use_ema else {}
        return extra | ({ACCUMULATOR_SLOT: Slot()} if self.gradient_accumulation_steps else {})

    def memory(self, params: Any = None, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> Memory:
        """Count the bytes of parameters, gradients and state.

        Parameters
        ----------
        params : as of `build`, or list of shapes, optional
            What would be built; shapes are those of float32, and take no memory, however large. None: what is built.
        overrides : dict, optional
            As of `build`. Shapes are of the ``dtype`` of 16 bits that they say.

        Returns
        -------
        fastopt.memory.Memory
            ``bytes`` and ``per_element``, by what they are for; ``state`` and ``total`` in bytes.

        Raises
        ------
        RuntimeError
            If nothing is given, and the optimizer is not built.
        TypeError, ValueError
            If it could not be built with these; a shape's extent is negative.

        Examples
        --------
        >>> import fastopt
        >>> fastopt.Adam(slot_dtype="8bit").memory([(1024, 1024)]).state / 1024**2
        2.03125
        >>> halves = {".": {"dtype": "bfloat16"}}
        >>> fastopt.Adam(master_weights="split").memory([(70_000, 1_000_000)], halves).total / 1e12
        0.98
        """
        return memory_of(self, params, overrides)

    @property
    def slots(self) -> dict[str, list[Array | None]]:
        """State arrays by slot name: for each parameter, in order, a live view; None where it has none.

        Averages follow, at a step with a `RowGradient`, in the rows that it names; those of all other rows do when they
        are read here.

        Raises
        ------
        RuntimeError
            If the optimizer is not built.
        """
        self._require_built("slots")
        return self._slots_in_memory(shown)

    def _slots_in_memory(self, view: Callable[..., Any] = lambda array, *_: array) -> dict[str, list[Array | None]]:
        """The same, each array as ``view`` has it, of the array, its name and what its plan says of formats."""
        found: dict[str, list[Array | None]] = {}
        for plan in self._plans:
            plan.follow_averages()
            for name, arrays in plan.slots.items():
                row = found.setdefault(name, [None] * len(self._parameters))
                for k, array in zip(plan.indices, arrays, strict=True):
                    row[k] = view(array, name, plan.kept)
        return found
