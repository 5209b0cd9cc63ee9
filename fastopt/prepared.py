"""Steps on a GPU that are worked out in advance, for CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable

from .parameters import check_count
from .scalars import Scaling
from .steps.gpu import Captured, GpuSteps


class Prepared:
    """The part of an optimizer that serves graphs; they are captured in `graphs`."""

    nonfinite: str
    _gpu: GpuSteps | None
    _refuse_while_evaluating: Callable[[], None]
    _require_built: Callable[[str], None]
    _unscale: Callable[[], float]

    def prepare(self, steps: int) -> None:
        """Work out the next steps in advance, so that a captured step can be replayed so often without the host.

        Only for parameters on a GPU. A step captured by ``torch.cuda.graph`` reads learning rate, bias correction and
        all else that changes from step to step in GPU memory; this puts it there, for so many replays. Setting
        ``learning_rate`` puts the rest of it there anew; after setting anything else call this again. Replays beyond
        the last prepared step do nothing, and the next reading of a counter says so.

        Parameters
        ----------
        steps : int
            At least 1.

        Raises
        ------
        TypeError, ValueError
            If ``steps`` is no such number.
        RuntimeError
            If the optimizer is not built, or its parameters are not on a GPU.
        """
        self._prepare(steps)

    def _prepare(self, steps: int, nonfinite: str | None = None, scaling: Scaling | None = None) -> None:
        check_count("steps", steps, 1)
        self._capturing_steps().prepare(steps, self._unscale(), nonfinite or self.nonfinite, scaling)

    def _capturing_steps(self) -> GpuSteps:
        """The steps on a GPU, for a graph."""
        self._require_built("capture() and prepare()")
        if self._gpu is None:
            raise RuntimeError("capture() and prepare() are for steps on a GPU; there is no parameter to update on one")
        return self._gpu

    def _replay(self, captured: Captured, nonfinite: str | None = None, scaling: Scaling | None = None) -> None:
        self._refuse_while_evaluating()
        self._capturing_steps().replay(captured, self._unscale(), nonfinite or self.nonfinite, scaling)
