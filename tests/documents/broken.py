"""Features that can be broken on purpose, and the rows whose tests must then fail."""

import contextlib
import io
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
from documents import checklist


class Feature(NamedTuple):
    """What is broken, how, and the rows that notice."""

    what: str
    patch: Callable[[], AbstractContextManager]
    rows: tuple


def _clipnorm():
    from fastopt.compat.base import LegacyOptimizer

    return mock.patch.object(LegacyOptimizer, "_clipping", LegacyOptimizer.__mro__[1]._clipping)


def _decay():
    from fastopt.compat.base import LegacyOptimizer

    right = LegacyOptimizer._rate

    def by_epochs_of_100_updates(self):
        updates = self._iterations
        try:
            self._iterations = updates // 100
            return right(self)
        finally:
            self._iterations = updates

    return mock.patch.object(LegacyOptimizer, "_rate", by_epochs_of_100_updates)


def _epsilon_of_rmsprop():
    from fastopt.compat.keras_2_2 import optimizers

    return mock.patch.object(optimizers.RMSprop, "_epsilon_inside_root", True)


def _schedule_decay():
    from fastopt.compat import algorithms

    right = algorithms.Nadam._bind

    def bind(self, signature, args, kwargs):
        return right(self, signature, args, kwargs) | {"schedule_decay": 1.0}

    return mock.patch.object(algorithms.Nadam, "_bind", bind)


def _ema_momentum():
    from fastopt.scalars import Scalars

    right = Scalars.write

    def with_the_default(self, *arguments):
        with mock.patch.object(self._optimizer, "ema_momentum", 0.99):
            return right(self, *arguments)

    return mock.patch.object(Scalars, "write", with_the_default)


def _accumulation():
    from fastopt.scalars import Scalars

    right = Scalars.write

    def with_the_sum(self, unscale, decision):
        return right(self, unscale, decision._replace(window=1))

    return mock.patch.object(Scalars, "write", with_the_sum)


def _hard_sigmoid():
    from fastopt import activations
    from fastopt.compat.keras_1_0 import activations as of_the_era

    return mock.patch.object(of_the_era, "hard_sigmoid", activations.hard_sigmoid)


def _cosine_proximity():
    from fastopt import losses
    from fastopt.compat.keras_1_0 import objectives

    return mock.patch.object(objectives, "cosine_proximity", losses.cosine_similarity)


def _scheduler():
    from fastopt import callbacks

    right = callbacks.LearningRateScheduler.on_epoch_begin

    def a_late_epoch(self, epoch, *arguments):
        return right(self, max(0, epoch - 1), *arguments)

    return mock.patch.object(callbacks.LearningRateScheduler, "on_epoch_begin", a_late_epoch)


FEATURES = {
    "clipnorm": Feature(
        "`clipnorm` of Keras 1 and 2 limits each gradient by itself, as in Keras 3",
        _clipnorm,
        (6, 7, 80, 108),
    ),
    "decay": Feature(
        "`decay` counts epochs (of 100 updates), as the article's formula reads",
        _decay,
        (2, 11, 17, 20, 22, 23, 27, 31, 65, 67, 68, 69, 78, 81, 83, 86, 90, 110),
    ),
    "epsilon": Feature(
        "epsilon of Keras 2.2's RMSprop inside the root, as in Keras 3",
        _epsilon_of_rmsprop,
        (6, 7, 13, 14, 15, 16, 17),
    ),
    "schedule_decay": Feature(
        "Nadam's `schedule_decay` is 1, as in Keras 3",
        _schedule_decay,
        (6, 7, 32, 33, 34, 80, 89, 90),
    ),
    "ema_momentum": Feature(
        "`ema_momentum` is ignored",
        _ema_momentum,
        (53, 54, 55, 56, 61),
    ),
    "accumulation": Feature(
        "accumulated gradients are summed, not averaged",
        _accumulation,
        (60, 61, 62),
    ),
    "hard_sigmoid": Feature(
        "`hard_sigmoid` of Keras 1.0 has the slope of Keras 3",
        _hard_sigmoid,
        (117, 126),
    ),
    "cosine_proximity": Feature(
        "`cosine_proximity` of Keras 1.0 is a sum, as in Keras 3",
        _cosine_proximity,
        (92, 93, 106),
    ),
    "scheduler": Feature(
        "`LearningRateScheduler` is an epoch late",
        _scheduler,
        (72, 73, 74),
    ),
}


def rows_that_fail(name):
    """The rows with a failing test while a feature is broken, in this process."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), FEATURES[name].patch():
        found = Path(folder) / "tests.json"
        # Without the outer conftest: what it sets, this process has from its parent.
        options = ["-q", "-p", "no:cacheprovider", f"--confcutdir={checklist.HERE}", f"--tests-to={found}"]
        status = pytest.main([*options, *map(str, sorted(checklist.HERE.glob("test_00*.py")))])
        assert status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED), f"pytest stopped with {status!r}"
        return sorted({row for test in checklist.read(found) if test.outcome == "failed" for row in test.rows})


def main():
    """In a child: break one after the other."""
    import children

    children.report(rows={name: rows_that_fail(name) for name in FEATURES})
