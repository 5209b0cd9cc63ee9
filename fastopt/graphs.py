"""Steps captured to a CUDA graph."""

from __future__ import annotations

from typing import Any

from .optimizer import Optimizer


class CapturedStep:
    """One step of an optimizer as a CUDA graph, for gradients that stay where they are. Made by `capture`."""

    def __init__(self, optimizer: Optimizer, grads: Any, zero_grads: bool) -> None:
        self._optimizer = optimizer
        self._gpu = optimizer._capturing_steps()
        self._grads = grads  # whose memory the graph reads
        optimizer.prepare(1)
        self._step = self._gpu.captured(lambda: optimizer.apply(grads, zero_grads=zero_grads))

    def replay(self) -> None:
        """Do the step again, with what the gradients now are, on the caller's stream; waits for nothing.

        Learning rate, schedule and all other settings are those of the moment, as in `Optimizer.apply`.

        Raises
        ------
        RuntimeError
            If the optimizer has been rebuilt since.
        """
        if self._optimizer._capturing_steps() is not self._gpu:
            raise RuntimeError("the optimizer has been rebuilt since this step was captured: capture it again")
        self._optimizer._replay(self._step)


def capture(optimizer: Optimizer, grads: Any, zero_grads: bool = False) -> CapturedStep:
    """Capture a step to a CUDA graph, without doing it.

    Replaying it costs less of the host's time than `Optimizer.apply`, which reads and checks the gradients. To capture
    the step together with a model's own work, call ``optimizer.prepare(steps)``, then ``optimizer.apply(grads)`` inside
    ``torch.cuda.graph``.

    Parameters
    ----------
    optimizer : Optimizer
        Built, its parameters on a GPU.
    grads : list, tuple, mapping, nested, FlatBuffer, or one flat array
        As for `Optimizer.apply`. Each replay reads them where they are now.
    zero_grads : bool
        Zero the gradients in the same pass.

    Returns
    -------
    CapturedStep

    Raises
    ------
    TypeError, ValueError
        If the gradients do not fit.
    RuntimeError
        If the optimizer is not built, its parameters are not on a GPU, or ``nonfinite="raise"``.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be an Optimizer, got {type(optimizer).__name__}")
    return CapturedStep(optimizer, grads, zero_grads)
