"""Adafactor: its slots, and what its kernels, in ``kernels/cpu/adafactor.py``, receive."""

import math
from typing import NamedTuple

import numpy as np

from ..registry import Slot, scalars_for

STATE = {
    "row": Slot(without=-1, axes=range(2, 65)),
    "column": Slot(without=-2, axes=range(2, 65)),
    "velocity": Slot(axes=range(2)),
}
"""Factors of arrays of two or more axes; of others all second moments."""


class AdafactorSettings(NamedTuple):
    """Hyper-parameters of Adafactor."""

    learning_rate: float
    beta_2_decay: float
    epsilon_1: float
    epsilon_2: float
    clip_threshold: float


class AdafactorScalars(NamedTuple):
    """Scalars of a step.

    For a parameter of two or more axes, with q = g² + ε₁ and rms(x) = √(mean of x²):

    r ← b r + (1 − b) mean(q, last axis);  c ← b c + (1 − b) mean(q, last but one);  v = r c / mean(r)
    u = g / √v;  u ← u / max(1, rms(u) / d);  p ← p − max(ε₂, rms(p)) ρ u

    With fewer axes v ← b v + (1 − b) q is kept in full.

    Source: Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235, algorithms 4 and 5, without momentum. Keras stores v
    as a variable besides r and c; here it exists only inside a register. As √v = √(r / mean(r)) √c is never formed as a
    product of tiny numbers before the root, rows and columns of zeros give zero steps where Keras gives NaN.
    """

    keep: float  # b = 1 − t ** beta_2_decay
    take: float  # 1 − b
    relative_step: float  # ρ = min(learning_rate, 1 / √t)
    epsilon_1: float
    epsilon_2: float
    clip_threshold: float  # d
    least_root: float  # least √v that counts: 0; in torch ε₁, which is not added to g² there
    least_mean: float  # least mean(r) that counts: 0; in torch ε₁
    decayed: float  # 1: rms(p) is that of the decayed parameter; 0, as in torch: of the one before


@scalars_for(AdafactorSettings)
def adafactor_scalars(s, t):
    """The means keep more and more of themselves, and steps are at most 1 / √t."""
    keep = 1.0 - t**s.beta_2_decay
    relative_step = np.minimum(s.learning_rate, 1.0 / math.sqrt(t))
    return AdafactorScalars(keep, 1.0 - keep, relative_step, s.epsilon_1, s.epsilon_2, s.clip_threshold, 0.0, 0.0, 1.0)


class CoupledAdafactorSettings(NamedTuple):
    """Hyper-parameters of Adafactor as torch has it."""

    learning_rate: float
    beta_2_decay: float
    least: float  # torch's ε₁
    epsilon_2: float
    clip_threshold: float


@scalars_for(CoupledAdafactorSettings)
def coupled_adafactor_scalars(s, t):
    """Compute `adafactor_scalars` with ε₁ as a lower bound of means, not added to squares."""
    take = float(t) ** s.beta_2_decay
    relative_step = np.minimum(s.learning_rate, 1.0 / math.sqrt(t))
    floors = s.least, s.least, 0.0
    return AdafactorScalars(1.0 - take, take, relative_step, 0.0, s.epsilon_2, s.clip_threshold, *floors)
