"""Adafactor: what its kernels, in ``kernels/adafactor.py``, receive."""

from typing import NamedTuple


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
