"""Learning rates that follow the step: Keras 3's six schedules, by name and signature, and those that it has not.

A schedule maps a step number (0 at the first update) to a learning rate. Pass one as ``learning_rate`` of any
optimizer, or call it yourself. Schedules of epochs (`TimeBasedDecay`, `StepDecay`) serve
`fastopt.callbacks.LearningRateScheduler` too.

All rates are computed in float64 and returned as a Python ``float``; Keras computes in float32, so the two agree to
about 1e-6 relative (less where a cosine cancels) and drift apart beyond step 2**24, which float32 cannot count.

Every class raises TypeError for an argument or step that is not a real number, and ValueError for one that is NaN,
infinite or out of its range; a step is >= 0. Beyond Keras's checks that refuses, when the schedule is made, what could
only give NaN, a complex number or a division by zero later. ``name`` is kept in the config and means nothing else.

Source: https://keras.io/api/optimizers/learning_rate_schedules/
"""

from .base import KNOWN, LearningRateSchedule, deserialize, get, serialize
from .chain import Chain
from .cosine import CosineDecay, CosineDecayRestarts
from .decay import ExponentialDecay, InverseTimeDecay, PiecewiseConstantDecay, PolynomialDecay
from .epochs import StepDecay, TimeBasedDecay
from .phases import LinearWarmup, OneCycle, WarmupCosine, WarmupStableDecay

__all__ = [
    "Chain",
    "CosineDecay",
    "CosineDecayRestarts",
    "ExponentialDecay",
    "InverseTimeDecay",
    "LearningRateSchedule",
    "LinearWarmup",
    "OneCycle",
    "PiecewiseConstantDecay",
    "PolynomialDecay",
    "StepDecay",
    "TimeBasedDecay",
    "WarmupCosine",
    "WarmupStableDecay",
    "deserialize",
    "get",
    "serialize",
]

KNOWN.update(
    (schedule.__name__, schedule)
    for schedule in (
        ExponentialDecay,
        PiecewiseConstantDecay,
        PolynomialDecay,
        InverseTimeDecay,
        CosineDecay,
        CosineDecayRestarts,
        LinearWarmup,
        WarmupCosine,
        WarmupStableDecay,
        OneCycle,
        Chain,
        TimeBasedDecay,
        StepDecay,
    )
)
