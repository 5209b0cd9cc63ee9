"""The moving average of the parameters in the parameters' place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from .flat import flatten
from .kernels.cpu.launch import one_call

if TYPE_CHECKING:
    from .parameters import Parameter
    from .plan import Plan
    from .stand_ins import StandIn

LEAVE_FIRST = "leave the context first; if leaving it was interrupted, call leave_evaluation()"


class Averages:
    """The part of an optimizer that exchanges parameters for their averages; steps keep these."""

    use_ema: bool
    _evaluating: bool
    _gradients: Any
    _one_at_a_time: Callable[[], Any]
    _parameters: list[Parameter]
    _place: Any
    _plans: list[Plan]
    _repeated: Any
    _read_stand_ins: Callable[[], None]
    _require_built: Callable[[str], None]
    _stand_ins: list[StandIn]
    _steps: Any
    _training: list[tuple[Any, Any]]
    """While averages are in their place: the parameters' arrays, and what they held."""
    _write_back: Callable[[], None]

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Context in which the parameters hold the averaged weights; afterwards the training weights, bit for bit.

        The optimizer holds the training weights meanwhile. Should leaving be interrupted, `leave_evaluation` does it.

        Raises
        ------
        RuntimeError
            If the optimizer keeps no average (``use_ema=False``), is not built, is in such a context already, or in the
            middle of a step.
        """
        self._require_built("evaluation_weights()")
        if self._evaluating:
            raise RuntimeError(f"evaluation_weights() does not nest: {LEAVE_FIRST}")
        try:
            with self._one_at_a_time():
                self._check_averages()
                self._gradients.check_parameters()
                if self._repeated is not None:
                    self._repeated.forget()
                self._evaluating = True  # from here on steps are refused
            self._enter_evaluation()
            yield
        finally:
            try:
                self.leave_evaluation()
            except BaseException:  # interrupted before it had begun
                self.leave_evaluation()
                raise

    def _enter_evaluation(self) -> None:
        with self._steps.in_order():
            self._read_stand_ins()
            self._training = [(p.array, self._place.clone(p.array)) for plan in self._plans for p in plan.parameters]
        with self._steps.in_order():
            self._load_averages(False)
            self._write_back()

    def leave_evaluation(self) -> None:
        """Put the training weights back, if `evaluation_weights` has taken them away and was interrupted on leaving.

        Does nothing where the parameters are the training weights, so it can be called at any time, and again.
        """
        if not self._training:
            self._evaluating = False
            return
        copying = self._place.copying
        back = [copying(array, values) for array, values in self._training]
        back += [stand_in.writing() for stand_in in self._stand_ins]
        with self._steps.in_order():
            one_call([*back, partial(vars(self).update, _training=[], _evaluating=False)])()

    def _check_averages(self) -> None:
        if not self.use_ema:
            raise RuntimeError("there are no averaged weights: make the optimizer with use_ema=True")

    def _load_averages(self, for_good: bool) -> None:
        for plan in self._plans:
            plan.load_averages(for_good)

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
        if self._evaluating:
            raise RuntimeError(f"finalize_variable_values() inside evaluation_weights(): {LEAVE_FIRST}")
        if var_list is not None:
            arrays = flatten(var_list)[1]
            if len(arrays) != len(self._parameters):
                raise ValueError(f"var_list: expected the {len(self._parameters)} parameters built, got {len(arrays)}")
            if not all(array is p.given for array, p in zip(arrays, self._parameters, strict=True)):
                raise ValueError("var_list must be the parameters that the optimizer was built with")
        if self.use_ema:
            self._gradients.check_parameters()
            with self._one_at_a_time(), self._steps.in_order():
                self._load_averages(True)
                self._write_back()
