"""The moving average of the parameters in the parameters' place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .flat import flatten
from .plan import AVERAGE_SLOT

if TYPE_CHECKING:
    from .parameters import Parameter
    from .plan import Plan


class Averages:
    """The part of an optimizer that exchanges parameters for their averages; steps keep these."""

    use_ema: bool
    _evaluating: bool
    _gradients: Any
    _parameters: list[Parameter]
    _place: Any
    _plans: list[Plan]
    _read_stand_ins: Callable[[], None]
    _require_built: Callable[[str], None]
    _steps: Any
    _write_back: Callable[[], None]

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Context in which the parameters hold the averaged weights; afterwards the training weights, bit for bit.

        Raises
        ------
        RuntimeError
            If the optimizer keeps no average (``use_ema=False``), is not built, or is in such a context already.
        """
        self._require_built("evaluation_weights()")
        if self._evaluating:
            raise RuntimeError("evaluation_weights() does not nest")
        self._check_averages()
        self._gradients.check_parameters()
        place = self._place
        with self._steps.in_order():
            self._read_stand_ins()
            training = [(p.array, place.clone(p.array)) for plan in self._plans for p in plan.parameters]
        self._evaluating = True
        try:
            with self._steps.in_order():
                self._load_averages()
                self._write_back()
            yield
        finally:
            with self._steps.in_order():
                for array, values in training:
                    place.copy(array, values)
                self._write_back()
            self._evaluating = False

    def _check_averages(self) -> None:
        if not self.use_ema:
            raise RuntimeError("there are no averaged weights: make the optimizer with use_ema=True")

    def _load_averages(self) -> None:
        for plan in self._plans:
            for parameter, average in zip(plan.parameters, plan.slots[AVERAGE_SLOT], strict=True):
                self._place.copy(parameter.array, average)

    def finalize_variable_values(self, var_list: Any = None) -> None:
        """Replace the parameters by their averages, for good; nothing without ``use_ema``, as in Keras.

        Raises
        ------
        RuntimeError
            If the optimizer is not built.
        ValueError
            If ``var_list`` is given and is not what the optimizer was built with.
        """
        self._require_built("finalize_variable_values()")
        if var_list is not None:
            arrays = flatten(var_list)[1]
            if len(arrays) != len(self._parameters):
                raise ValueError(f"var_list: expected the {len(self._parameters)} parameters built, got {len(arrays)}")
            if not all(array is p.given for array, p in zip(arrays, self._parameters, strict=True)):
                raise ValueError("var_list must be the parameters that the optimizer was built with")
        if self.use_ema:
            self._gradients.check_parameters()
            with self._steps.in_order():
                self._load_averages()
                self._write_back()
