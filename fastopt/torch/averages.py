"""Evaluation with averaged parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .memory import few_threads, local
from .several import check_sharded


class Averages:
    """Exchanges parameters for ``state[p]["ema"]``."""

    ema: Any
    param_groups: list[dict[str, Any]]
    state: Any
    _evaluating = False

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Context in which the parameters hold their moving average; afterwards they are as before, bit for bit.

        Parameters that have none yet, as they never had a gradient, stay as they are.

        Raises
        ------
        RuntimeError
            If there is none: ``ema=None``, or no step yet; or if the context is entered twice. With FSDP2, if the model
            would go on with other weights: call its ``reshard()`` before the context and at its end.
        """
        if self.ema is None:
            raise RuntimeError("there are no averaged weights: make the optimizer with ema=0.99, for example")
        if self._evaluating:
            raise RuntimeError("evaluation_weights() does not nest")
        pairs = [
            (p, self.state[p]["ema"])
            for group in self.param_groups
            for p in group["params"]
            if "ema" in self.state.get(p, ())
        ]
        if not pairs:
            raise RuntimeError("there are no averaged weights before the first step")
        averaged = [p for p, _ in pairs]
        check_sharded(averaged, "before evaluation_weights()")
        with few_threads():
            training = [(p, local(p).detach().clone()) for p, _ in pairs]
        self._evaluating = True
        try:
            _copy(pairs)
            yield
        finally:
            _copy(training)
            self._evaluating = False
        check_sharded(averaged, "at the end of evaluation_weights()")

    def _refuse_to_step_while_evaluating(self) -> None:
        if self._evaluating:
            raise RuntimeError("a step inside evaluation_weights(): leave the context first")


@few_threads()
@torch.no_grad()
def _copy(pairs: list[tuple[Any, Any]]) -> None:
    """Copy into each parameter; autograd notices."""
    for p, values in pairs:
        local(p).copy_(local(values))
