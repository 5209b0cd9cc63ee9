"""Muon."""

from __future__ import annotations

import re
from typing import Annotated

from ..kernels.cpu.muon import MuonScalars
from ..kernels.rules.adam import AdamSettings
from ..optimizer import Optimizer
from ..parameters import Parameter, check_pattern
from ..signatures import Coefficient, Fraction, NotNegative, Number, Range, Rate, Share, hyper_parameters

_Size = Annotated[float, Range(0.0)]


class Muon(Optimizer):
    """Momentum made orthogonal, for matrices; Adam for everything else.

    See `fastopt.kernels.cpu.muon`. Matrices are those parameters of two axes whose path neither contains "embedding"
    (unless ``exclude_embeddings`` is off) nor matches a pattern of ``exclude_layers``. The products of matrices
    with a side over 512, or both over 128, run in NumPy's BLAS: results of these parameters are reproducible with one
    BLAS and one number of BLAS threads, not across them.

    Parameters
    ----------
    learning_rate : float, schedule, or function of the step or of nothing
    adam_beta_1, adam_beta_2 : float in [0, 1), or callable
    epsilon : float >= 0, or callable
        Of the Adam branch.
    adam_weight_decay, weight_decay : float >= 0 or None
        Of the Adam branch, and of the matrices.
    exclude_layers : list of str, optional
        Regular expressions, searched in the path: Adam for these.
    exclude_embeddings : bool
    muon_a, muon_b, muon_c : float
        Coefficients of the Newton–Schulz iteration X ← a X + b A X + c A² X with A = X Xᵀ.
    adam_lr_ratio : float
        Learning rate of the Adam branch relative to the matrices'.
    momentum : float in [0, 1], or callable
    ns_steps : int >= 1
        Newton–Schulz iterations.
    nesterov : bool
    rms_rate : float or None
        Scale updates by ``rms_rate * √max(rows, columns)``; None: not at all.

    Slots: ``momentum``, in the Adam branch ``velocity``; zeros like the parameter.
    """

    @hyper_parameters
    def __init__(
        self, learning_rate: Rate = 0.001, adam_beta_1: Fraction = 0.9, adam_beta_2: Fraction = 0.999,
        adam_weight_decay: _Size | None = 0.004, epsilon: NotNegative = 1e-7, weight_decay: float | None = 0.004,
        clipnorm: float | None = None, clipvalue: float | None = None, global_clipnorm: float | None = None,
        use_ema: bool = False, ema_momentum: float = 0.99, ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None, gradient_accumulation_steps: int | None = None,
        name: str | None = None, exclude_layers: list[str] | None = None, exclude_embeddings: bool = True,
        muon_a: Number = 3.4445, muon_b: Number = -4.7750, muon_c: Number = 2.0315, adam_lr_ratio: Number = 1,
        momentum: Share = 0.95, ns_steps: Annotated[int, Range(1)] = 5, nesterov: bool = True,
        rms_rate: _Size | None = 0.2,
        *, nonfinite: str = "propagate",
    ) -> None: ...  # fmt: skip

    adam_beta_1: Coefficient
    adam_beta_2: Coefficient
    adam_weight_decay: float | None
    epsilon: Coefficient
    exclude_layers: list[str] | None
    exclude_embeddings: bool
    muon_a: float
    muon_b: float
    muon_c: float
    adam_lr_ratio: float
    momentum: Coefficient
    ns_steps: int
    nesterov: bool
    rms_rate: float | None

    def _check(self) -> None:
        super()._check()
        if isinstance(self.exclude_layers, str):
            raise TypeError(f"exclude_layers must be a list of regular expressions, got {self.exclude_layers!r}")
        for pattern in self.exclude_layers or []:
            check_pattern("exclude_layers", pattern)

    def _branch(self, parameter: Parameter) -> str:
        path = parameter.path
        embedding = self.exclude_embeddings and "embedding" in path.lower()
        excluded = any(re.search(pattern, path) for pattern in self.exclude_layers or [])
        return "adam" if parameter.array.ndim != 2 or embedding or excluded else "matrix"

    def _branch_decay(self, branch: str) -> float | None:
        return self.adam_weight_decay if branch == "adam" else self.weight_decay

    def _settings(self, branch: str, learning_rate: float) -> tuple[float, ...]:
        if branch == "adam":
            betas = self._value("adam_beta_1"), self._value("adam_beta_2")
            return AdamSettings(learning_rate * self.adam_lr_ratio, *betas, self._value("epsilon"))
        momentum = self._value("momentum")
        lookahead = (1.0, momentum) if self.nesterov else (0.0, 1.0)
        steps = self.muon_a, self.muon_b, self.muon_c, self.ns_steps
        return MuonScalars(
            learning_rate,
            1.0,
            1.0 - momentum,
            *lookahead,
            -1.0 if self.rms_rate is None else self.rms_rate,
            *steps,
            0.0,
            1e-7,
        )
