"""Interrupts steps at random moments, and checks that each was done as a whole or not at all.

    python tests/torture.py --seconds 60

A subject is an optimizer with its parameters, whose gradients are those of its own count, so that everything it holds
depends on that count alone. What it holds after each count is recorded in a run that nothing interrupts. Then a timer's
signal comes within steps: its handler raises, as Ctrl-C does, or looks at everything, as one that saves a checkpoint
does. Each time all that the subject holds must be what was recorded for the count that it shows.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

STEPS = 40
"""After so many a subject begins anew."""


class Interrupted(BaseException):
    """What the handler raises: nobody catches it on the way."""


class Subject(NamedTuple):
    """An optimizer at work.

    ``step`` does the next step, ``count`` says how many have been done, ``held`` gives all that depends on it.
    """

    step: Callable[[], Any]
    count: Callable[[], int]
    held: Callable[[], Iterable[Any]]


class Tally(NamedTuple):
    """What happened to the subjects of one kind."""

    name: str
    interrupts: int
    torn: int


def digest(subject: Subject) -> bytes:
    """Stand for all that a subject holds."""
    found = hashlib.blake2b(digest_size=16)
    for value in subject.held():
        found.update(np.ascontiguousarray(value).tobytes())
    return found.digest()


class Torture:
    """Interrupts the steps of subjects that ``make`` makes, all of them alike.

    Parameters
    ----------
    name : str
    make : function
        Without arguments; gives a `Subject` that has done nothing yet.
    looks : bool
        Whether the handler looks at the subject instead of raising.
    """

    def __init__(self, name: str, make: Callable[[], Subject], looks: bool) -> None:
        self.name, self._make, self._looks = f"{name}, {'looked at' if looks else 'interrupted'}", make, looks
        self._random = random.Random(name)
        self._interrupts = self._torn = 0
        self._armed = False
        subject = make()
        self._whole = [digest(subject)]
        for _ in range(STEPS):
            subject.step()
            self._whole.append(digest(subject))
        subject = make()
        began = time.perf_counter()
        for _ in range(STEPS):
            subject.step()
        self._duration = (time.perf_counter() - began) / STEPS

    def run(self, until: float) -> Tally:
        """Go on until a time of `time.perf_counter`."""
        before = signal.signal(signal.SIGALRM, self._handle)
        try:
            while time.perf_counter() < until:
                self._subject = self._make()
                while self._subject.count() < STEPS and time.perf_counter() < until:
                    self._attempt()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        return Tally(self.name, self._interrupts, self._torn)

    def _attempt(self) -> None:
        delay = max(self._random.random() * 1.2 * self._duration, 1e-6)
        try:
            self._armed = True
            signal.setitimer(signal.ITIMER_REAL, delay)
            self._subject.step()
            self._armed = False
        except Interrupted:
            self._check()
        self._armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _handle(self, *_: Any) -> None:
        if not self._armed:
            return
        self._armed = False
        self._interrupts += 1
        if not self._looks:
            raise Interrupted
        self._check()

    def _check(self) -> None:
        """Count it where the subject is not as it was after as many steps as it counts."""
        self._torn += self._whole[self._subject.count()] != digest(self._subject)


# -- subjects ----------------------------------------------------------------------------------------------------------


def gradients_like(arrays: list[Any], count: int = 4) -> list[list[Any]]:
    """So many lists of gradients for arrays."""
    rng = np.random.default_rng(7)
    return [[rng.normal(size=a.shape).astype(a.dtype) for a in arrays] for _ in range(count)]


SMALL = (((7, 5), "f4"), ((33,), "f4"))
LARGE = (((600, 500), "f4"), ((33,), "f4"))
MIXED = (((400, 300), "f4"), ((300, 200), "f8"), ((9,), "f4"))


def core(name: str, shapes: Any, order: str = "C", scaled: bool = False, **options: Any) -> Callable[[], Subject]:
    """Make subjects of a class of `fastopt.optimizers`."""
    import fastopt

    start = [np.full(shape, 0.5, dtype, order=order) for shape, dtype in shapes]
    grads = gradients_like(start)

    def make() -> Subject:
        params = [array.copy(order="K") for array in start]
        optimizer: Any = getattr(fastopt, name)(**options)
        if scaled:
            optimizer = fastopt.LossScaleOptimizer(optimizer, 4.0, dynamic_growth_steps=3)
        optimizer.build(params)
        calls = [0]

        def count() -> int:
            state = optimizer.state_dict()
            return int(state["micro_steps"])

        def held() -> list[Any]:
            return [*params, *optimizer.state_dict().values()]

        def step() -> None:
            calls[0] += 1
            optimizer.apply(grads[count() % len(grads)])

        return Subject(step, count, held)

    return make


def torch_subject(name: str, shapes: Any, **options: Any) -> Callable[[], Subject]:
    """Make subjects of a class of `fastopt.torch`."""
    import torch

    import fastopt.torch

    kind = getattr(fastopt.torch, name)
    start = [torch.full(shape, 0.5, dtype=getattr(torch, f"float{8 * int(dtype[1])}")) for shape, dtype in shapes]
    grads = [[torch.from_numpy(g) for g in each] for each in gradients_like([p.numpy() for p in start])]

    def make() -> Subject:
        params = [torch.nn.Parameter(p.clone()) for p in start]
        optimizer = kind(params, **options)

        def count() -> int:
            return int(optimizer.state[params[0]].get("step", 0)) if params[0] in optimizer.state else 0

        def held() -> list[Any]:
            counts = [count()] * len(params)
            states = [optimizer.state.get(p, {}) for p in params]
            assert [int(state.get("step", 0)) for state in states] == counts
            arrays = [s[key].numpy() for s in states for key in sorted(s) if count() and s[key] is not None]
            return [*(p.detach().numpy() for p in params), *arrays]

        def step() -> None:
            torch.set_grad_enabled(True)  # an interrupt at the end of `torch.no_grad` leaves it off
            for p, g in zip(params, grads[count() % len(grads)], strict=True):
                p.grad = g
            optimizer.step()

        return Subject(step, count, held)

    return make


def keras_subject(name: str, shapes: Any, **options: Any) -> Callable[[], Subject]:
    """Make subjects of a class of `fastopt.keras`, on the backend that Keras has."""
    if os.environ["KERAS_BACKEND"] == "numpy":
        from keras_reference import import_keras

        import_keras()
    import keras

    import fastopt.keras

    kind = getattr(fastopt.keras, name)
    start = [np.full(shape, 0.5, dtype) for shape, dtype in shapes]
    grads = gradients_like(start)

    def make() -> Subject:
        variables = [keras.Variable(array, dtype=array.dtype.name) for array in start]
        optimizer = kind(**options)
        optimizer.build(variables)
        converted = [[keras.ops.convert_to_tensor(g) for g in each] for each in grads]

        def count() -> int:
            return int(optimizer._iterations.value)

        def held() -> list[Any]:
            values = [variable.value for variable in (*variables, *optimizer.variables)]
            return [value.detach().numpy() if hasattr(value, "detach") else np.asarray(value) for value in values]

        def step() -> None:
            optimizer.apply(converted[count() % len(grads)])

        return Subject(step, count, held)

    return make


CORE = {
    "SGD": lambda: core("SGD", LARGE),
    "SGD, small": lambda: core("SGD", SMALL, momentum=0.9),
    "Adam, two dtypes": lambda: core("Adam", MIXED, use_ema=True),
    "Adam, clipped": lambda: core("Adam", LARGE, global_clipnorm=1.0, nonfinite="skip"),
    "Adam, accumulating": lambda: core("Adam", LARGE, gradient_accumulation_steps=3, use_ema=True),
    "Nadam": lambda: core("Nadam", LARGE),
    "Nadam, small": lambda: core("Nadam", SMALL),
    "Lamb": lambda: core("Lamb", LARGE),
    "Adafactor": lambda: core("Adafactor", LARGE),
    "Adafactor, Fortran order": lambda: core("Adafactor", LARGE, order="F"),
    "Muon": lambda: core("Muon", LARGE),
    "ScheduleFreeAdamW": lambda: core("ScheduleFreeAdamW", LARGE),
    "LossScaleOptimizer": lambda: core("AdamW", LARGE, scaled=True),
}
TORCH = {
    "AdamW": lambda: torch_subject("AdamW", LARGE),
    "AdamW, two dtypes": lambda: torch_subject("AdamW", MIXED, clip_norm=1.0),
    "AdamW, averaged": lambda: torch_subject("AdamW", LARGE, ema=0.9),
    "NAdam": lambda: torch_subject("NAdam", LARGE),
    "Adafactor": lambda: torch_subject("Adafactor", LARGE),
}
KERAS = {
    "Adam": lambda: keras_subject("Adam", LARGE),
    "Nadam, averaged": lambda: keras_subject("Nadam", LARGE, use_ema=True),
    "SGD, accumulating": lambda: keras_subject("SGD", LARGE, gradient_accumulation_steps=2),
}


def torture(subjects: dict[str, Callable[[], Any]], seconds: float) -> Iterator[Tally]:
    """Interrupt each of some subjects for its share of the time, in both ways."""
    for name, make_maker in subjects.items():
        make = make_maker()
        for looks in (False, True):
            yield Torture(name, make, looks).run(time.perf_counter() + seconds / (2 * len(subjects)))


GROUPS = {
    "core": (CORE, {}),
    "torch": (TORCH, {}),
    "keras on torch": (KERAS, {"KERAS_BACKEND": "torch"}),
    "keras on NumPy": (KERAS, {"KERAS_BACKEND": "numpy"}),
}


def main() -> int:
    """Torture every group in a process of its own, and print what happened."""
    parser = argparse.ArgumentParser(description="Interrupt steps, and check that each was whole or not done at all.")
    parser.add_argument("--seconds", type=float, default=60.0, help="of interrupting, all groups together")
    parser.add_argument("--group", choices=[*GROUPS])
    arguments = parser.parse_args()
    if arguments.group is None:
        return _all_groups(arguments.seconds)
    tallies = []
    for tally in torture(GROUPS[arguments.group][0], arguments.seconds):
        tallies.append(tally)
        print(f"{arguments.group}: {tally.name:40} {tally.interrupts:6} interrupts, {tally.torn} torn", flush=True)
    print(f"{arguments.group}: {sum(t.interrupts for t in tallies)} interrupts, {sum(t.torn for t in tallies)} torn")
    return int(any(tally.torn for tally in tallies))


def _all_groups(seconds: float) -> int:
    shares = {name: len(subjects) for name, (subjects, _) in GROUPS.items()}
    worst = 0
    for name, (_, environment) in GROUPS.items():
        own = seconds * shares[name] / sum(shares.values())
        command = [sys.executable, str(Path(__file__)), "--group", name, "--seconds", str(own)]
        worst = max(worst, subprocess.run(command, env=os.environ | environment, check=False).returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())
