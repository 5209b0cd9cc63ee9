"""A step of fastopt.torch against the fastest of torch's fused, foreach and for-loop, interleaved, on the CPU.

Prints a table of ratios of medians, torch's over ours: above 1 fastopt is faster. All are first shown to compute the
same. They are interleaved in two ways: in turns of some steps each, and step by step, where either finds the caches
full of the other's data. ``everything`` is clipping by the global norm, an average of the weights and zeroed gradients:
for torch `clip_grad_norm_`, `AveragedModel`'s multi-tensor update and `zero_grad`, for fastopt keywords.

    python bench/torch_step.py [--rounds 30] [--threads 2] [--only gpt2 …]
"""

from program import Report, parser_of

import fastopt.torch
from fastopt.bench import cases
from fastopt.bench.check import check
from fastopt.bench.measure import interleaved
from fastopt.bench.peers.torch import Foreach, Fused, Loop, OnTensors
from fastopt.bench.problem import Problem
from fastopt.bench.shapes import MODELS

MODELS |= {"400-vectors": lambda: [(64,)] * 400, "465-vector-groups": lambda: [(64,)] * 465}
WANTED = {"gpt2": 1.0, "resnet50": 3.0, "400-vectors": 10.0, "465-vector-groups": 20.0}
"""Speed-ups of the step alone; with everything likewise, but for GPT-2."""

WANTED_OF_EVERYTHING = WANTED | {"gpt2": 1.8}
EVERYTHING = cases.Stack(clip=cases.CLIP, ema=cases.EMA, zero_grads=True)


class Adapter(OnTensors):
    """fastopt.torch.AdamW on tensors like torch's."""

    name = "fastopt"
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


def compare(case, rounds):
    """Who of torch's is fastest, and its median over ours, in turns and step by step; after all were found to agree."""
    problem = Problem(case)
    sides = {kind.name: kind(problem) for kind in (Adapter, Fused, Foreach, Loop)}
    check(problem, list(sides.values()))
    first = interleaved({name: side.step for name, side in sides.items()}, 7)
    fastest = min(sides.keys() - {"fastopt"}, key=first.__getitem__)
    steps = {name: sides[name].step for name in ("fastopt", fastest)}
    found = (interleaved(steps, rounds, turn=seconds) for seconds in (0.02, 0.0))
    return fastest, *(times[fastest] / times["fastopt"] for times in found)


def main():
    parser = parser_of(__doc__, rounds=30, threads=2)
    parser.add_argument("--only", nargs="*", default=list(WANTED), choices=WANTED)
    arguments = parser.parse_args()
    fastopt.set_num_threads(arguments.threads)
    cases.STACKS["everything"] = EVERYTHING
    report = Report("model", "step", "peer", "in turns", "step by step", "wanted")
    for model in arguments.only:
        for stack, wanted in (("plain", WANTED), ("everything", WANTED_OF_EVERYTHING)):
            case = cases.Case("adamw", model, stack=stack)
            if found := report.attempt(case.id, compare, case, arguments.rounds):
                fastest, *ratios = found
                row = {"case": case.id, "peer": fastest, "speedups": ratios}
                report.add(row, model, stack, fastest, *(f"{ratio:.2f}" for ratio in ratios), wanted[model])
    report.finish(arguments.results, "torch")


if __name__ == "__main__":
    main()
