"""Two schedules of Keras's early days, of which formula, code and practice disagree: every reading has its name."""

import math

from . import checks
from .base import LearningRateSchedule


class TimeBasedDecay(LearningRateSchedule):
    """The rate that the ``decay`` argument of Keras 1 and 2 gave, and the two readings of the formula it is taught by.

    ===============  =======================================================================
    ``variant``      learning rate
    ===============  =======================================================================
    ``"updates"``    ``initial_learning_rate * (1 / (1 + decay * updates))``
    ``"epochs"``     ``initial_learning_rate * (1 / (1 + decay * epoch))``
    ``"recursive"``  ``rate(epoch) = rate(epoch - 1) * (1 / (1 + decay * epoch))``
    ===============  =======================================================================

    "updates" is what Keras did, whatever the tutorials say: ``SGD(lr, decay=decay)`` decays with every batch. They give
    ``LearningRate = LearningRate * 1 / (1 + decay * epoch)``, which is "epochs" if the second ``LearningRate`` is the
    initial one, and "recursive" if it is an assignment. For the common choice ``decay = initial_learning_rate /
    epochs`` the difference is large: from 0.1, after 50 epochs of 100 batches, 0.0091 by updates and 0.091 by epochs.

    Parameters
    ----------
    initial_learning_rate : float
    decay : float
        >= 0 (Keras ignores a negative one).
    variant : {"updates", "epochs", "recursive"}
    steps_per_epoch : float
        > 0. With 1 the schedule is a function of the epoch, fit for `LearningRateScheduler`; with the number of updates
        per epoch it is a function of the step, fit for an optimizer, and constant within an epoch. The variant
        "updates" knows no epochs and takes 1 only.

    Notes
    -----
    "updates" equals ``InverseTimeDecay(initial_learning_rate, 1, decay)`` to the last bit or the one before.

    Source: ``keras/optimizers.py`` of Keras 1.0 to 2.3.1, https://github.com/keras-team/keras/tree/2.3.1.

    Examples
    --------
    >>> for variant in ("epochs", "recursive"):
    ...     schedule = TimeBasedDecay(0.1, 0.001, variant)
    ...     print([round(schedule(epoch), 7) for epoch in range(4)])
    [0.1, 0.0999001, 0.0998004, 0.0997009]
    [0.1, 0.0999001, 0.0997007, 0.0994025]
    >>> TimeBasedDecay(0.1, 0.001)(1000)
    0.05
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay: float,
        variant: str = "updates",
        steps_per_epoch: float = 1,
        name: str | None = "TimeBasedDecay",
    ) -> None:
        self.initial_learning_rate = checks.finite("initial_learning_rate", initial_learning_rate)
        self.decay = checks.at_least(0, "decay", decay)
        self._product = _Products(self.decay)
        self.variant = checks.choice("variant", variant, ("updates", "epochs", "recursive"))
        self.steps_per_epoch = checks.positive("steps_per_epoch", steps_per_epoch)
        self.name = checks.label(name)
        if self.variant == "updates" and self.steps_per_epoch != 1:
            raise ValueError(
                f'steps_per_epoch must be 1 for the variant "updates", which knows no epochs, got {steps_per_epoch}: '
                'choose the variant "epochs" or "recursive"'
            )

    def __call__(self, step: float) -> float:
        if self.variant == "updates":
            return self.initial_learning_rate * (1.0 / (1.0 + self.decay * checks.elapsed(step)))
        epoch = _epoch(step, self.steps_per_epoch)
        if self.variant == "epochs":
            return self.initial_learning_rate * (1.0 / (1.0 + self.decay * epoch))
        return self.initial_learning_rate / self._product(epoch)


class StepDecay(LearningRateSchedule):
    """Multiplies the rate by ``drop`` every ``epochs_drop`` epochs ("drop-based").

    =============  ====================================================================  =======================
    ``variant``    learning rate                                                         drops if epochs_drop=10
    =============  ====================================================================  =======================
    ``"formula"``  ``initial_learning_rate * drop ** floor(epoch / epochs_drop)``        at epochs 10, 20, 30
    ``"code"``     ``initial_learning_rate * drop ** floor((1 + epoch) / epochs_drop)``  at epochs 9, 19, 29
    =============  ====================================================================  =======================

    Epochs count from 0. Tutorials print the formula, and below it code that counts from 1 and drops one epoch earlier.

    Parameters
    ----------
    initial_learning_rate : float
    drop : float
        Factor, >= 0.
    epochs_drop : float
        Epochs between drops, > 0.
    variant : {"formula", "code"}
    steps_per_epoch : float
        > 0. With 1 the schedule is a function of the epoch, fit for `LearningRateScheduler`; with the number of updates
        per epoch it is a function of the step, fit for an optimizer.

    Raises
    ------
    OverflowError
        ``drop > 1`` has grown the rate past float64.

    Notes
    -----
    "formula" equals ``ExponentialDecay(initial_learning_rate, epochs_drop, drop, staircase=True)`` per epoch.

    Examples
    --------
    >>> for variant in ("formula", "code"):
    ...     schedule = StepDecay(0.1, drop=0.5, epochs_drop=10, variant=variant)
    ...     print([schedule(epoch) for epoch in (8, 9, 10, 19, 20)])
    [0.1, 0.1, 0.05, 0.05, 0.025]
    [0.1, 0.05, 0.05, 0.025, 0.025]
    """

    def __init__(
        self,
        initial_learning_rate: float,
        drop: float,
        epochs_drop: float,
        variant: str = "formula",
        steps_per_epoch: float = 1,
        name: str | None = "StepDecay",
    ) -> None:
        self.initial_learning_rate = checks.finite("initial_learning_rate", initial_learning_rate)
        self.drop = checks.at_least(0, "drop", drop)
        self.epochs_drop = checks.positive("epochs_drop", epochs_drop)
        self.variant = checks.choice("variant", variant, ("formula", "code"))
        self.steps_per_epoch = checks.positive("steps_per_epoch", steps_per_epoch)
        self.name = checks.label(name)

    def __call__(self, step: float) -> float:
        epoch = _epoch(step, self.steps_per_epoch)
        counted = epoch + 1 if self.variant == "code" else epoch
        return self.initial_learning_rate * math.pow(self.drop, math.floor(counted / self.epochs_drop))


def _epoch(step: float, steps_per_epoch: float) -> int:
    """Number of the epoch, from 0, that a step falls into."""
    return int(checks.elapsed(step) // steps_per_epoch)


class _Products:
    """``(1 + decay) * (1 + 2 * decay) * … * (1 + epoch * decay)``; goes on from the epoch that was asked for last."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._reached = 0, 1.0

    def __call__(self, epoch: int) -> float:
        if not self._decay:
            return 1.0
        last, product = self._reached if self._reached[0] <= epoch else (0, 1.0)
        for number in range(last + 1, epoch + 1):
            if math.isinf(product):
                break
            product *= 1.0 + number * self._decay
        self._reached = epoch, product
        return product
