"""Builds that are interrupted at random moments, and built again: a child process per round must always get there.

    python tests/interrupted_build.py --seconds 60 --seed 1

Each child interrupts its own first builds with a signal handler that raises, as Ctrl-C's does: in the compiler, while
code is loaded or written, in between. Then it builds once more, steps, and says what came of it. `tests/test_cache.py`
runs a few; this says how many builds were cut short.
"""

import argparse
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import children

CHILD = """
    import random, signal
    import children, fastopt

    class Interrupt(Exception):
        pass

    def interrupt(number, frame):
        raise Interrupt

    signal.signal(signal.SIGALRM, interrupt)
    rng, interrupts = random.Random({seed}), 0
    for _ in range({attempts}):
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.001, {longest}))
            children.few_steps(fastopt.{name}(), steps=1)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Interrupt:
            interrupts += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    children.report(interrupts=interrupts, digest=children.few_steps(fastopt.{name}()))
"""

NAMES = ("Adam", "SGD", "Lamb", "Lion")


def interrupted(name, seed, cache, attempts=8, longest=0.5):
    """What a child says that is interrupted as often, at moments drawn from ``seed``, at most ``longest`` seconds in.

    It fails as `children.run` does if the child dies or hangs.
    """
    code = CHILD.format(name=name, seed=seed, attempts=attempts, longest=longest)
    return children.run(code, FASTOPT_CACHE_DIR=cache)


def torture(seconds, seed):
    """Counts of children, builds, and interrupts, after so many seconds."""
    rng, counts, end = random.Random(seed), Counter(), time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        expected = {name: children.run(_alone(name), FASTOPT_CACHE_DIR=folder)["digest"] for name in NAMES}
        filled = Path(folder)
        while counts["children"] == 0 or time.monotonic() < end:
            name, attempts = rng.choice(NAMES), rng.randint(1, 12)
            with tempfile.TemporaryDirectory() as own:
                if rng.random() < 0.5:  # code is loaded, not compiled
                    shutil.copytree(filled, own, dirs_exist_ok=True)
                found = interrupted(name, rng.random(), own, attempts, longest=rng.choice((0.05, 0.5, 2.0)))
                left = [path.name for path in Path(own).iterdir() if path.suffix != ".fastopt"]
            assert found["digest"] == expected[name], f"{name}: other numbers after interrupts"
            assert not left, f"left in the cache: {left}"
            counts.update(children=1, builds=attempts + 1, interrupts=found["interrupts"])
    return counts


def _alone(name):
    return f"import children; children.report(digest=children.steps_of({name!r}))"


def main():
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not hasattr(signal, "setitimer"):
        parser.error("this platform has no timer that signals")
    counts = torture(arguments.seconds, arguments.seed)
    print(
        ", ".join(f"{number} {what}" for what, number in counts.items()) + "; none died, none hung, all numbers right"
    )


if __name__ == "__main__":
    main()
