"""fastopt against torch's fused optimizers on the CPU, and against the memory's speed. Figures are ratios of one run.

    python bench/compare_torch.py            # everything, some five minutes
    python bench/compare_torch.py --quick    # small sizes, few rounds
    python bench/compare_torch.py --json results.json

Each pair is first checked to compute the same, then timed in turn, round by round; the median counts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

import numpy as np
import torch
from ceiling import plain_kernel
from rich.console import Console
from rich.table import Table

import fastopt
from fastopt.bench.measure import interleaved
from fastopt.bench.shapes import gpt2_shapes

THREADS = 2
GOALS = {1_000: 8.0, 10_000: 5.0, 100_000: 2.5, 1_000_000: 1.2, 32_000_000: 1.0}
CEILING_GOAL = 0.88

ELEMENTWISE = {
    "SGD": {},
    "SGD momentum": {"momentum": 0.9},
    "SGD nesterov": {"momentum": 0.9, "nesterov": True},
    "RMSprop": {},
    "RMSprop centered momentum": {"centered": True, "momentum": 0.9},
    "Adagrad": {},
    "Adadelta": {},
    "Adam": {},
    "Adam amsgrad": {"amsgrad": True},
    "AdamW": {},
    "Adamax": {},
    "Nadam": {},
    "Lion": {},
    "Ftrl": {},
    "ScheduleFreeAdamW": {},
}


class Pair:
    """The same parameters and gradients for fastopt and torch, and a step of each."""

    def __init__(self, shapes, clip=None, ema=None):
        rng = np.random.default_rng(0)
        self.arrays = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
        self.grads = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
        self.tensors = [torch.from_numpy(array.copy()).requires_grad_() for array in self.arrays]
        for tensor, grad in zip(self.tensors, self.grads, strict=True):
            tensor.grad = torch.from_numpy(grad.copy())
        options = {"global_clipnorm": clip} if clip else {}
        if ema:
            options |= {"use_ema": True, "ema_momentum": ema}
        self.ours = fastopt.AdamW(1e-3, weight_decay=1e-2, epsilon=1e-18, **options)
        self.ours.build(self.arrays)
        self.theirs = torch.optim.AdamW(self.tensors, lr=1e-3, weight_decay=1e-2, eps=1e-18, fused=True)
        self.averages = [tensor.detach().clone() for tensor in self.tensors] if ema else None
        self.clip, self.ema = clip, ema

    def step(self):
        self.ours.apply(self.grads)

    def torch_step(self):
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.tensors, self.clip)
        self.theirs.step()
        if self.averages:
            with torch.no_grad():
                torch._foreach_lerp_(self.averages, self.tensors, 1 - self.ema)

    def check(self):
        """Three steps of each; torch clips in place, so its gradients are restored."""
        for _ in range(3):
            self.step()
            for tensor, grad in zip(self.tensors, self.grads, strict=True):
                tensor.grad.copy_(torch.from_numpy(grad))
            self.torch_step()
        worst = max(
            float(np.max(np.abs(array - tensor.detach().numpy())))
            for array, tensor in zip(self.arrays, self.tensors, strict=True)
        )
        if not worst < 1e-5:
            raise SystemExit(f"fastopt and torch disagree by {worst}: nothing was timed")


def compare(name, pair, goal, rounds):
    pair.check()
    seconds = interleaved({"ours": pair.step, "torch": pair.torch_step}, rounds)
    ratio = seconds["torch"] / seconds["ours"]
    return {
        "case": name,
        "ours_us": 1e6 * seconds["ours"],
        "peer_us": 1e6 * seconds["torch"],
        "ratio": ratio,
        "goal": goal,
    }


def against_torch(quick):
    rounds = 7 if quick else 31
    for size, goal in GOALS.items():
        if not (quick and size > 1_000_000):
            yield compare(f"AdamW, {size:,} elements", Pair([(size,)]), goal, rounds)
    small = [(64, 64)] * 200 + [(64,)] * 200
    yield compare("AdamW, 400 tensors, clip", Pair(small, clip=1.0), 15.0, rounds)
    if not quick:
        yield compare("AdamW, GPT-2 small, clip and EMA", Pair(gpt2_shapes(), clip=1.0, ema=0.99), 1.6, 9)


def against_ceiling(quick):
    size = 1_000_000 if quick else 32_000_000
    rng = np.random.default_rng(0)
    grad = rng.standard_normal(size, dtype=np.float32)
    for name, kwargs in ELEMENTWISE.items():
        array = rng.standard_normal(size, dtype=np.float32)
        optimizer = getattr(fastopt, name.split()[0])(**kwargs)
        optimizer.build([array])
        state = [array, *(slot[0] for slot in optimizer.slots.values())]
        plain = plain_kernel(len(state), THREADS)
        copies = [np.zeros_like(array) for _ in state]
        calls = {
            "ours": lambda optimizer=optimizer: optimizer.apply([grad]),
            "plain": lambda plain=plain, copies=copies: plain(grad, *copies),
        }
        seconds = interleaved(calls, 5 if quick else 15)
        moved = 4 * size * (1 + 2 * len(state))
        yield {
            "case": f"{name}, {size:,} elements",
            "ours_us": 1e6 * seconds["ours"],
            "peer_us": 1e6 * seconds["plain"],
            "ratio": seconds["plain"] / seconds["ours"],
            "goal": CEILING_GOAL,
            "gb_per_s": moved / seconds["ours"] / 1e9,
        }


FIRST_STEP = """
import time; start = time.perf_counter()
import numba; numba_seconds = time.perf_counter() - start
import fastopt, numpy as np; import_seconds = time.perf_counter() - start - numba_seconds
w = np.ones(1000, np.float32); opt = fastopt.Adam()
start = time.perf_counter(); opt.build([w]); opt.apply([w.copy()]); print(import_seconds, time.perf_counter() - start)
"""


def in_new_processes():
    """Seconds of the import above numba's own, and of build and first step, with a cold and with a warm cache."""
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for _ in range(6):
            environment = {**os.environ, "FASTOPT_CACHE_DIR": folder}
            output = subprocess.run(
                [sys.executable, "-c", FIRST_STEP], env=environment, capture_output=True, check=True
            )
            runs.append([float(part) for part in output.stdout.split()])
    imports, steps = zip(*runs[1:], strict=True)
    warm = {"import_above_numba_s": statistics.median(imports), "first_step_warm_s": statistics.median(steps)}
    return {**warm, "first_step_cold_s": runs[0][1]}


def show(console, title, peer, rows):
    table = Table(title=title)
    for column in ("case", "fastopt µs", f"{peer} µs", "ratio", "goal", ""):
        table.add_column(column, justify="left" if column == "case" else "right")
    for row in rows:
        met = "[green]met" if row["ratio"] >= row["goal"] else "[red]short"
        numbers = f"{row['ours_us']:.1f}", f"{row['peer_us']:.1f}", f"{row['ratio']:.2f}", f"{row['goal']:g}"
        table.add_row(row["case"], *numbers, met)
    console.print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    fastopt.set_num_threads(THREADS)
    console = Console()
    with console.status("against torch …"):
        peers = list(against_torch(arguments.quick))
    show(console, f"speed-up over torch {torch.__version__} fused=True, {THREADS} threads", "torch", peers)
    with console.status("against the memory …"):
        limits = list(against_ceiling(arguments.quick))
    show(console, "fraction of a plain in-place kernel over as many arrays", "plain", limits)
    start = in_new_processes()
    console.print("in a new process: " + ", ".join(f"{key} {value:.3f}" for key, value in start.items()))
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"torch": peers, "ceiling": limits, "start": start}, file, indent=1)


if __name__ == "__main__":
    main()
