"""A step of fastopt.torch against the fastest of torch's fused, foreach and for-loop, interleaved, on the CPU.

Prints ratios of medians, torch's over ours: above 1 fastopt is faster. Both sides are first shown to compute the same.
They are interleaved in two ways: in turns of some steps each, and step by step, where either finds the caches full of
the other's data. ``with everything`` is clipping by the global norm, an average of the weights and zeroed gradients:
for torch `clip_grad_norm_`, `AveragedModel`'s multi-tensor update and `zero_grad`, for fastopt keywords.

    python bench/torch_step.py [--rounds 30] [--threads 2] [--only gpt2 …]
"""

import argparse
import os
import statistics
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rounds", type=int, default=30)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--only", nargs="*", default=())
arguments = parser.parse_args()
os.environ["NUMBA_NUM_THREADS"] = str(arguments.threads)

import torch  # noqa: E402

import fastopt.torch  # noqa: E402

torch.set_num_threads(arguments.threads)
KWARGS = {"lr": 1e-3, "weight_decay": 0.01}


def gpt2(width=768, layers=12):
    """Shapes of GPT-2 small, 124 million parameters."""
    block = [(width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,), (width,), (width,)]
    block += [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(50257, width), (1024, width), *block * layers, (width,), (width,)]


def resnet50():
    """Shapes of ResNet-50: 161 tensors, 25.6 million parameters."""
    shapes, channels = [(64, 3, 7, 7), (64,), (64,)], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            kernels = [(width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            kernels += [(4 * width, channels, 1, 1)] if block == 0 else []
            shapes += [shape for kernel in kernels for shape in (kernel, kernel[:1], kernel[:1])]
            channels = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


MODELS = {
    "gpt2": (gpt2, False, 1.0),
    "resnet50": (resnet50, False, 3.0),
    "400 tensors": (lambda: [(64,)] * 400, False, 10.0),
    "465 groups": (lambda: [(64,)] * 465, True, 20.0),
}


def drawn(shapes):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    for p in params:
        p.grad = 0.01 * torch.randn_like(p)
    return params


def optimizer_of(module, shapes, grouped, **kwargs):
    params = drawn(shapes)
    groups = [{"params": [p]} for p in params] if grouped else params
    return params, module.AdamW(groups, **KWARGS, **kwargs)


def torch_with_everything(params, optimizer):
    averages = [p.detach().clone() for p in params]

    def step():
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        torch._foreach_lerp_(averages, [p.detach() for p in params], 0.01)
        optimizer.zero_grad(set_to_none=False)

    return step


WAYS = {"fused": {"fused": True}, "foreach": {"foreach": True}, "for-loop": {"foreach": False}}


def contestants(shapes, grouped, everything):
    """Name → (parameters, step)."""
    options = {"clip_norm": 1.0, "ema": 0.99, "fused_zero_grad": True} if everything else {}
    params, optimizer = optimizer_of(fastopt.torch, shapes, grouped, **options)
    found = {"fastopt": (params, optimizer.step)}
    for name, kwargs in WAYS.items():
        params, optimizer = optimizer_of(torch.optim, shapes, grouped, **kwargs)
        found[name] = params, torch_with_everything(params, optimizer) if everything else optimizer.step
    return found


TURN_SECONDS = 0.02
"""A turn of several steps lasts about this long."""


def medians(steps, rounds, seconds=0.0):
    """Median time of a step, in turns that last so many seconds, after a step that is not timed; at least one step."""
    repeats = {name: max(1, round(seconds / seconds_of(step, 1))) if seconds else 1 for name, step in steps.items()}
    times = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            if repeats[name] > 1:
                step()
            times[name].append(seconds_of(step, repeats[name]))
    return {name: statistics.median(own) for name, own in times.items()}


def seconds_of(step, repeats):
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats


def compare(shapes, grouped, everything):
    """Who of torch's is fastest, and its median over ours, in turns and step by step; after all were found to agree."""
    found = contestants(shapes, grouped, everything)
    for _, step in found.values():
        step()
    for name, (params, _) in found.items():
        for p, q in zip(params, found["fastopt"][0], strict=True):
            torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-6, msg=f"fastopt and {name} differ")
    steps = {name: step for name, (_, step) in found.items()}
    first = medians(steps, 7)
    fastest = min(WAYS, key=first.__getitem__)
    steps = {name: steps[name] for name in ("fastopt", fastest)}
    found = (medians(steps, arguments.rounds, seconds) for seconds in (TURN_SECONDS, 0.0))
    return fastest, *(times[fastest] / times["fastopt"] for times in found)


def main():
    print(f"torch {torch.__version__}, {arguments.threads} threads, median of {arguments.rounds} rounds")
    for name, (shapes, grouped, wanted) in MODELS.items():
        if arguments.only and name not in arguments.only:
            continue
        for everything in (False, True):
            fastest, in_turns, by_step = compare(shapes(), grouped, everything)
            what = "with everything" if everything else "the step alone"
            aim = 1.8 if everything and name == "gpt2" else wanted
            print(
                f"{name:12} {what:16} {in_turns:6.2f}x torch's {fastest}, step by step {by_step:6.2f}x (wanted {aim}x)",
                flush=True,
            )


if __name__ == "__main__":
    main()
