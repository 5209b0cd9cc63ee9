"""Evaluation with averaged parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from .._torch import without_modes
from ..averages import LEAVE_FIRST
from ..counts import Call
from ..kernels.cpu.launch import one_call
from ..kernels.locks import Lock
from ..steps.alone import alone
from .memory import few_threads, local
from .several import RESHARD, check_sharded, check_zero


class Averages:
    """Exchanges parameters for ``state[p]["ema"]``."""

    ema: Any
    param_groups: list[dict[str, Any]]
    state: Any
    _stepping: Lock
    _evaluating = False
    _training: list[tuple[Any, Any]] = []  # noqa: RUF012
    """While averages are in their place: the parameters, and what they held."""

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Context in which the parameters hold their moving average; afterwards they are as before, bit for bit.

        Parameters that have none yet, as they never had a gradient, stay as they are.

        Raises
        ------
        RuntimeError
            If there is none: ``ema=None``, or no step yet; or if the context is entered twice. With FSDP2, if the model
            would go on with weights that it has gathered: call its ``reshard()`` before the context. At its end that
            is done.
        """
        if self.ema is None:
            raise RuntimeError("there are no averaged weights: make the optimizer with ema=0.99, for example")
        alone(self._stepping)
        if self._evaluating:
            raise RuntimeError(f"evaluation_weights() does not nest: {LEAVE_FIRST}")
        pairs = [
            (p, self.state[p]["ema"])
            for group in self.param_groups
            for p in group["params"]
            if "ema" in self.state.get(p, ())
        ]
        if not pairs:
            raise RuntimeError("there are no averaged weights before the first step")
        own: Any = self
        check_zero(own, "there are averages of", "average the model by torch.optim.swa_utils.AveragedModel")
        averaged = [p for p, _ in pairs]
        modules = check_sharded(averaged, RESHARD.format("evaluation_weights()"))
        try:
            self._evaluating = True
            with few_threads():
                self._training = [(p, local(p).detach().clone()) for p, _ in pairs]
                one_call(_copying(pairs))()
            yield
        finally:
            try:
                self.leave_evaluation()
            except BaseException:  # interrupted before it had begun
                self.leave_evaluation()
                raise
            finally:
                for module in modules:  # which may have gathered averages
                    module.reshard()
                check_sharded(averaged, "model.reset_iter_state(): a forward pass has failed in evaluation_weights()")

    @few_threads()
    @torch.no_grad()
    def leave_evaluation(self) -> None:
        """Put the training weights back, if `evaluation_weights` has taken them away and was interrupted on leaving.

        Does nothing where the parameters are the training weights, so it can be called at any time, and again.
        """
        left = partial(vars(self).update, _training=[], _evaluating=False)
        with without_modes():  # see `device_optimizer.DeviceOptimizer.run`
            one_call([*_copying(self._training), left])()

    def _refuse_to_step_while_evaluating(self) -> None:
        if self._evaluating:
            raise RuntimeError(f"a step inside evaluation_weights(): {LEAVE_FIRST}")


def _copying(pairs: list[tuple[Any, Any]]) -> list[Call]:
    """Return what copies into each parameter; autograd notices."""
    return [partial(torch.Tensor.copy_, local(p).detach(), local(values)) for p, values in pairs]
