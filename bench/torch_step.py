"""A step of fastopt.torch against the fastest of torch's fused, foreach and for-loop, interleaved, on the CPU.

Prints a table of ratios of medians, torch's over ours: above 1 fastopt is faster. All are first shown to compute the
same. They are interleaved in three ways: in turns of some steps each; step by step, where either finds the caches full
of the other's data; and cold, after 64 MB of other memory were read, as between two backward passes. What the same
arrays take without torch, and as one flat buffer, is told as a share of fastopt.torch's time. ``everything`` is
clipping by the global norm, an average of the weights and zeroed gradients: for torch `clip_grad_norm_`,
`AveragedModel`'s multi-tensor update and `zero_grad`, for fastopt keywords.

    python bench/torch_step.py [--rounds 30] [--threads 2] [--only gpt2 …]
"""

import time

from program import Report, parser_of

import fastopt.torch
from fastopt.bench import cases
from fastopt.bench.check import check
from fastopt.bench.measure import interleaved
from fastopt.bench.peers.torch import Foreach, Fused, Loop, OnTensors
from fastopt.bench.problem import Problem
from fastopt.bench.shapes import MODELS
from fastopt.bench.sides import Fastopt, Side, common_options, fill_caches

MODELS |= {"465-vector-groups": lambda: [(64,)] * 465}
WANTED = {"gpt2": 1.0, "resnet50": 3.0, "400-tensors": 5.0, "400-vectors": 10.0, "465-vector-groups": 20.0}
"""Speed-ups of the step alone, in turns; with everything likewise, but for GPT-2."""

WANTED_OF_EVERYTHING = WANTED | {"gpt2": 1.8}
EVERYTHING = cases.Stack(clip=cases.CLIP, ema=cases.EMA, zero_grads=True)


class Adapter(OnTensors):
    """fastopt.torch.AdamW on tensors like torch's."""

    name = "adapter"
    norm_in_float32 = False

    def make(self):
        h, stack = self.case.rule.hyper, self.case.options
        options = {"clip_norm": stack.clip, "ema": stack.ema, "fused_zero_grad": stack.zero_grads}
        betas = h["beta_1"], h["beta_2"]
        given = {"lr": h["learning_rate"], "betas": betas, "eps": h["epsilon"], "weight_decay": h["weight_decay"]}
        return fastopt.torch.AdamW(self.groups(), **given, **options)

    def step(self):
        self.optimizer.step()

    def slots(self):
        return {}


class Flat(Side):
    """fastopt.AdamW on one flat buffer, if no parameter has hyper-parameters of its own."""

    name = "flat"

    def __init__(self, problem):
        super().__init__(problem)
        self.params, self.grads = fastopt.pack(problem.params), fastopt.pack(problem.grads)
        self.optimizer = self.case.rule.make(**common_options(self.case))
        self.optimizer.build(self.params)

    def step(self):
        self.optimizer.apply(self.grads, zero_grads=self.case.options.zero_grads)


def cold_seconds(call, repeats):
    """Seconds per call, each after other memory was read."""
    spent = 0.0
    for _ in range(repeats):
        fill_caches()
        start = time.perf_counter()
        call()
        spent += time.perf_counter() - start
    return spent / repeats


def compare(case, rounds):
    """Who of torch's is fastest, its medians over ours in all three ways, and shares of our cold one."""
    problem = Problem(case)
    sides = {kind.name: kind(problem) for kind in (Adapter, Fused, Foreach, Loop)}
    check(problem, list(sides.values()))
    first = interleaved({name: side.step for name, side in sides.items()}, 7)
    fastest = min(sides.keys() - {"adapter"}, key=first.__getitem__)
    steps = {name: sides[name].step for name in ("adapter", fastest)}
    found = [interleaved(steps, rounds, turn=seconds) for seconds in (0.02, 0.0)]
    steps["arrays"] = Fastopt(problem).step
    if not case.groups:
        steps["flat"] = Flat(problem).step
    cold = interleaved(steps, rounds, cold_seconds, 0.0)
    shares = {name: cold[name] / cold["adapter"] for name in steps.keys() - {"adapter", fastest}}
    return fastest, [times[fastest] / times["adapter"] for times in (*found, cold)], shares


def main():
    parser = parser_of(__doc__, rounds=30, threads=2)
    parser.add_argument("--only", nargs="*", default=list(WANTED), choices=WANTED)
    arguments = parser.parse_args()
    fastopt.set_num_threads(arguments.threads)
    cases.STACKS["everything"] = EVERYTHING
    report = Report("model", "step", "peer", "in turns", "step by step", "cold", "wanted", "arrays", "flat")
    for model in arguments.only:
        for stack, wanted in (("plain", WANTED), ("everything", WANTED_OF_EVERYTHING)):
            case = cases.Case("adamw", model, stack=stack)
            if found := report.attempt(case.id, compare, case, arguments.rounds):
                fastest, ratios, shares = found
                row = {"case": case.id, "peer": fastest, "speedups": ratios, "cold_shares": shares}
                shown = [f"{shares[name]:.2f}" if name in shares else "" for name in ("arrays", "flat")]
                report.add(row, model, stack, fastest, *(f"{ratio:.2f}" for ratio in ratios), wanted[model], *shown)
    report.finish(arguments.results, "torch")


if __name__ == "__main__":
    main()
