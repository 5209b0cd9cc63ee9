"""Kills a process that trains and saves, at random moments, and has it go on: it must end as if nothing had happened.

    python tests/torture_checkpoints.py --kills 300

A child trains by itself: it loads what is at its path, takes steps whose gradients are those of its own count, saves
after each, now and then in the background, and keeps the last three. It is killed by SIGKILL after a random time, and
another takes its place. At the end everything that is held has the bits of a run that was never killed. After every
kill each file that is there loads, and is one of a moment of that run.
"""

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

SHAPES = {"w": (300, 200), "b": (33,)}


class Tally(NamedTuple):
    """What happened: kills, how many came while a file was being written, wrong files, whether the end was right."""

    kills: int
    within: int
    wrong: int
    is_equal: bool


def new():
    """An optimizer and its parameters, at the start."""
    import fastopt

    params = {name: np.full(shape, 0.5, np.float32) for name, shape in SHAPES.items()}
    optimizer = fastopt.AdamW(1e-2, use_ema=True, gradient_accumulation_steps=2)
    optimizer.build(params)
    return optimizer, params


def digest(optimizer, params, extra):
    """Stand for all that is held."""
    found = hashlib.blake2b(repr(extra).encode(), digest_size=16)
    for value in (*params.values(), *optimizer.state_dict().values()):
        found.update(np.ascontiguousarray(value).tobytes())
    return found.hexdigest()


def step(optimizer, params, own):
    """The next step; its gradients come from a generator whose state is the loop's own."""
    rng = np.random.default_rng()
    rng.bit_generator.state = own["rng"]
    optimizer.apply({name: rng.normal(size=array.shape).astype(np.float32) for name, array in params.items()})
    return {"rng": rng.bit_generator.state, "step": own["step"] + 1}


START = {"rng": np.random.default_rng(0).bit_generator.state, "step": 0}


def train(path, steps):
    """What a child does."""
    optimizer, params = new()
    own = optimizer.load(path) if os.path.exists(path) else START
    print("ready", flush=True)
    while own["step"] < steps:
        own = step(optimizer, params, own)
        optimizer.save(path, params=True, extra=own, keep=3, background=own["step"] % 5 == 0)


def whole_run(steps):
    """Digests of every moment of a run that nothing kills."""
    (optimizer, params), own = new(), START
    found = [digest(optimizer, params, own)]
    for _ in range(steps):
        own = step(optimizer, params, own)
        found.append(digest(optimizer, params, own))
    return found


def torture(kills, seconds, folder, steps=200, seed=0):
    """Kill so many times, or for so long, whichever is first.

    Where the run ends before that, another begins.
    """
    whole, rng, until = whole_run(steps), random.Random(seed), time.monotonic() + seconds
    path, (optimizer, params) = Path(folder) / "run", new()
    killed = within = wrong = 0
    while killed < kills and time.monotonic() < until:
        child = start(path, steps)
        ready = child.stdout.readline()
        try:
            child.wait(rng.random() ** 2 * 0.6)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            killed += 1
        errors = child.communicate()[1]
        assert ready and child.returncode in (0, -signal.SIGKILL), errors
        files = list(Path(folder).iterdir())
        within += any(file.suffix == ".tmp" for file in files)
        for file in files:
            if file.suffix != ".tmp":
                own = optimizer.load(file)
                wrong += digest(optimizer, params, own) != whole[own["step"]]
        if child.returncode == 0:
            wrong += optimizer.load(path)["step"] != steps
            for file in files:
                file.unlink(missing_ok=True)
    errors = start(path, steps).communicate()[1]
    own = optimizer.load(path)
    is_equal = not errors and digest(optimizer, params, own) == whole[-1]
    left = sorted(file.name for file in Path(folder).iterdir() if file.name not in ("run", "run.1", "run.2"))
    return Tally(killed, within, wrong, is_equal and not left)


def start(path, steps):
    """A child that trains."""
    command = [sys.executable, __file__, "--train", str(path), "--steps", str(steps)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def main():
    """Kill, and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--train", metavar="PATH", help="be a child")
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    if arguments.train:
        return train(arguments.train, arguments.steps)
    with tempfile.TemporaryDirectory() as folder:
        tally = torture(arguments.kills, arguments.seconds, folder, arguments.steps)
    print(
        f"checkpoints: {tally.kills} kills, {tally.within} while a file was written, {tally.wrong} wrong files, "
        f"the end is {'the same' if tally.is_equal else 'another'}"
    )
    return int(tally.wrong > 0 or not tally.is_equal)


if __name__ == "__main__":
    sys.exit(main())
