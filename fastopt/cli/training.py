"""The training loop: batches, steps, evaluation, and what was measured on the way."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import fastopt
from fastopt.callbacks import Callback, LearningRateScheduler, ReduceLROnPlateau, SwapEMAWeights
from fastopt.schedules import LearningRateSchedule

from . import objective
from .data import CLASSES, Digits
from .mlp import Perceptron
from .runs import Run, UsageError

REFUSALS = (ValueError, ArithmeticError)
"""What a step raises for hyper-parameters and gradients that it cannot work with."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 + SIGINT."""


@dataclass(frozen=True)
class Settings:
    """What all runs of one command share.

    A ``batch_size`` of None means: all samples at once; ``epoch_schedule`` gives each epoch's learning rate;
    ``patience`` is that of a rate which falls tenfold when the training loss has stopped falling.
    """

    epochs: int = 30
    batch_size: int | None = 32
    seed: int = 0
    hidden: tuple[int, ...] = (128, 64)
    dtype: str = "float32"
    activation: str = "relu"
    loss: str = objective.DEFAULT
    epoch_schedule: LearningRateSchedule | None = None
    patience: int | None = None

    def callbacks(self, optimizer: fastopt.Optimizer) -> list[Callback]:
        """Make the callbacks that accompany the training of an optimizer."""
        found: list[Callback] = [SwapEMAWeights()] if keeps_average(optimizer) else []
        if self.epoch_schedule is not None:
            found.append(LearningRateScheduler(self.epoch_schedule))
        if self.patience is not None:
            found.append(ReduceLROnPlateau("loss", patience=self.patience))
        return found


class Point(NamedTuple):
    """Loss and accuracy after an epoch, over all samples of each split."""

    epoch: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float


class Watch:
    """Follows trainings as they go on. This one shows nothing."""

    def begin(self, training: Training) -> None:
        """Before the first step."""

    def step(self, training: Training) -> None:
        """After every step."""

    def epoch(self, training: Training) -> None:
        """After every epoch, evaluated."""


class Training:
    """One run, from its first step to its last: the model, the optimizer and the measurements.

    Attributes
    ----------
    history : list of Point
        From before the first step on.
    interrupted : bool
        Whether the user ended it.
    problem : str
        Why the optimizer ended it, in its own words.
    seconds, optimizer_seconds : float
        Spent in steps, and in the optimizer's part of them.
    """

    def __init__(self, run: Run, settings: Settings, digits: Digits) -> None:
        rng = np.random.default_rng(settings.seed)
        self.run = run
        self.digits = digits
        self.epochs = settings.epochs
        self.samples = len(digits.train.labels)
        self.batch_size = settings.batch_size or self.samples
        self.steps_per_epoch = -(-self.samples // self.batch_size)
        self.model = Perceptron(
            (digits.train.inputs.shape[1], *settings.hidden, CLASSES),
            np.dtype(settings.dtype),
            rng,
            settings.activation,
            objective.Objective(settings.loss),
        )
        self.optimizer = run.make()
        self.callbacks = settings.callbacks(self.optimizer)
        self.history: list[Point] = []
        self.steps = 0
        self.batch_loss = np.nan
        self.seconds = self.optimizer_seconds = 0.0
        self.interrupted = False
        self.problem = ""
        self._rng = rng

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self.epochs * self.steps_per_epoch

    @property
    def steps_per_second(self) -> float:
        """Over the steps so far, without evaluations."""
        return self.steps / self.seconds if self.seconds else 0.0

    @property
    def optimizer_share(self) -> float:
        """The optimizer's part of the time of a step."""
        return self.optimizer_seconds / self.seconds if self.seconds else 0.0

    def digest(self) -> str:
        """SHA-256 of the parameters: equal for equal bits."""
        return hashlib.sha256(self.model.params.flat.tobytes()).hexdigest()

    def prepare(self) -> None:
        """Build the optimizer, and compile all that its steps need before any time is measured.

        Raises
        ------
        UsageError
            If the optimizer cannot do a step with its hyper-parameters; the message is its own.
        """
        try:
            _rehearse(self.optimizer, self.model.params)
            inputs, labels = self.digits.train
            self.model.loss_and_gradients(inputs[:1], labels[:1])
            self.optimizer.build(self.model.params)
        except REFUSALS as error:
            raise UsageError(str(error)) from error

    def fit(self, watch: Watch, stopped: Callable[[], bool]) -> None:
        """Train, until the end or until ``stopped()``; the last point of the history is where it ended."""
        from threadpoolctl import threadpool_limits

        # One BLAS thread: matrices this small are no faster with more, and on a busy machine up to 200 times slower.
        # A run that diverges shows it in its loss, hence no warnings.
        with threadpool_limits(1, user_api="blas"), np.errstate(all="ignore"):
            self._evaluate()
            watch.begin(self)
            self._call("on_train_begin", {})
            for epoch in range(self.epochs):
                self._call("on_epoch_begin", epoch, {})
                self._epoch(watch, stopped)
                self._evaluate()
                self._call("on_epoch_end", epoch, {"loss": self.history[-1].train_loss})
                watch.epoch(self)
                if self.interrupted or self.problem:
                    return

    def _call(self, hook: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(*arguments, self.optimizer)

    def _epoch(self, watch: Watch, stopped: Callable[[], bool]) -> None:
        inputs, labels = self.digits.train
        order = self._rng.permutation(self.samples)
        for start in range(0, self.samples, self.batch_size):
            if stopped():
                self.interrupted = True
                return
            batch = order[start : start + self.batch_size]
            self._step(inputs[batch], labels[batch])
            if self.problem:
                return
            watch.step(self)

    def _step(self, inputs: Any, labels: Any) -> None:
        began = time.perf_counter()
        self.batch_loss = self.model.loss_and_gradients(inputs, labels, self.optimizer.scale_loss(1.0))
        handed_over = time.perf_counter()
        try:
            self.optimizer.apply(self.model.grads)
        except REFUSALS as error:
            self.problem = str(error)
            return
        ended = time.perf_counter()
        self.steps += 1
        self.optimizer_seconds += ended - handed_over
        self.seconds += ended - began

    def _evaluate(self) -> None:
        self._call("on_test_begin", {})
        train, test = (self.model.evaluate(*split) for split in self.digits)
        self._call("on_test_end", {})
        self.history.append(Point(self.steps / self.steps_per_epoch, *train, *test))


def keeps_average(optimizer: fastopt.Optimizer) -> bool:
    """Whether there is an average of the weights to evaluate with."""
    return optimizer.use_ema or isinstance(optimizer, fastopt.ScheduleFreeAdamW)


def averaged(optimizer: fastopt.Optimizer) -> contextlib.AbstractContextManager[None]:
    """The weights to evaluate with: an average, where the optimizer keeps one."""
    return optimizer.evaluation_weights() if keeps_average(optimizer) else contextlib.nullcontext()


def _rehearse(optimizer: fastopt.Optimizer, params: fastopt.FlatBuffer) -> None:
    """Update and evaluate once on a copy, so that everything is compiled when the training begins."""
    twin = copy.deepcopy(optimizer)
    scratch, gradients = params.like(), params.like()
    twin.build(scratch)
    for _ in range(optimizer.gradient_accumulation_steps or 1):
        twin.apply(gradients)
    with averaged(twin):
        pass


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """While inside, Ctrl-C raises nothing: the function given tells of it.

    So no step is cut in two, and no exception gets lost in a callback of the compiler. A second Ctrl-C does what it
    always does.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested.is_set
        return

    def request(number: int, frame: object) -> None:
        requested.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = signal.signal(signal.SIGINT, request)
    try:
        yield requested.is_set
    finally:
        signal.signal(signal.SIGINT, previous)
