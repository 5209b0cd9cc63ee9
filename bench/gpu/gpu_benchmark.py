"""fastopt against torch on one GPU: every case is first checked to compute the same on all sides, then timed.

    python bench/gpu/gpu_benchmark.py --result FILE                  # a step of `make gpu`
    python bench/gpu/gpu_benchmark.py --result FILE --device cpu     # tries the program out; its figures mean nothing

Sides take turns, round by round; medians count. "kernel" is the time between two CUDA events around many steps, "wall"
that of the wall clock with one synchronisation at the end.
"""

import argparse
import re
import time

import torch
from gpu_cases import FLOAT32, RECIPES, TAIL, bytes_needed, models, sides
from gpu_machine import MACHINES
from gpu_result import Result

from fastopt.bench.measure import interleaved

TOLERANCE = 1e-5
CHECKED_STEPS = 3
CAPTURED = ", captured graph"
SLICE = 2**26  # elements compared at a time: a difference of 1e9 needs no 4 GB of its own
COPIED_BYTES = 2**32


def drawn(machine):
    """A function that draws a model's parameters and gradients, the same ones whenever it is called."""

    def draw(model):
        generator = torch.Generator(machine.device).manual_seed(0)
        make = {"generator": generator, "device": machine.device}
        return tuple([torch.randn(shape, **make) for shape in model.shapes] for _ in range(2))

    return draw


# -- the same result first ---------------------------------------------------------------------------------------------


def check(built, steps, recipe):
    """Let every side take some steps from the same gradients; the largest difference from fastopt's.

    torch clips gradients in place: each step finds them as they were drawn. Raises RuntimeError where sides disagree.
    """
    ours = built["fastopt"]
    for _ in range(CHECKED_STEPS):
        for name, side in built.items():
            if name != "fastopt":
                torch._foreach_copy_(side.grads, ours.grads)
            steps[name]()
    return max(_compare(name, ours, side, recipe) for name, side in built.items() if name != "fastopt")


def _compare(name, ours, side, recipe):
    pairs = [*zip(ours.tensors, side.tensors, strict=True)]
    if recipe.ema:
        pairs += zip(ours.averages(), side.averages(), strict=True)
    worst, beyond, count = 0.0, 0, 0
    for one, other in pairs:
        for a, b in zip(_slices(one), _slices(other), strict=True):
            difference = (a - b).abs()
            worst = max(worst, float(difference.max()))
            beyond += int((~(difference <= TOLERANCE)).sum())
            count += difference.numel()
    if beyond > recipe.may_differ * count or worst != worst:
        raise RuntimeError(
            f"fastopt and {name} disagree by {worst:g}, in {beyond} of {count} numbers; nothing was timed"
        )
    return worst


def _slices(tensor):
    return tensor.detach().reshape(-1).split(SLICE)


# -- then the time -----------------------------------------------------------------------------------------------------


def run_case(machine, recipe, model, rounds, captured=False):
    """What was measured of one recipe on one model."""
    built = sides(machine, recipe, model, drawn(machine), capturable=captured and machine.device == "cuda")
    if captured:
        built = {name: built[name] for name in ("fastopt", "torch")}
    steps = {name: side.step for name, side in built.items()}
    worst = check(built, steps, recipe)
    if captured:
        steps = {name: side.captured() for name, side in built.items()}
        worst = max(worst, check(built, steps, recipe))
    clocks = interleaved(steps, rounds, machine.seconds)
    ours = clocks["fastopt"]
    return {
        "parameters": model.size,
        "tensors": len(model.shapes),
        "largest_difference": worst,
        "sides": {name: _figures(side, clocks[name]) for name, side in built.items()},
        "ratios": {
            name: {"kernel": clock.kernel / ours.kernel, "wall": clock.wall / ours.wall}
            for name, clock in clocks.items()
            if name != "fastopt"
        },
        "torch_is_fused": recipe.fused,
    }


def _figures(side, clock):
    return {
        "kernel_us": 1e6 * clock.kernel,
        "wall_us": 1e6 * clock.wall,
        "bytes_per_parameter": FLOAT32 * side.passes,
    }


def copy_bandwidth(machine, small, rounds):
    """Bytes per second, read and written, of one large copy within the device's memory."""
    size = (2**22 if small else min(COPIED_BYTES, machine.free_bytes() // 4)) // FLOAT32
    source, target = (torch.empty(size, device=machine.device).fill_(value) for value in (1.0, 0.0))
    clocks = interleaved({"copy": lambda: target.copy_(source)}, rounds, machine.seconds)
    return 2 * FLOAT32 * size / clocks["copy"].kernel


def fractions(cases, bandwidth):
    """Add to every side which part of the copy's bandwidth it reached, counting the bytes that it has to move."""
    for case in cases.values():
        for side in case.get("sides", {}).values():
            moved = case["parameters"] * side["bytes_per_parameter"]
            side["fraction_of_copy"] = moved / (side["kernel_us"] * 1e-6) / bandwidth


# -- what was aimed at -------------------------------------------------------------------------------------------------


def targets(cases):
    """The aims of the project, each with what was measured; `met` is None where that was nothing."""
    timed = {name: case for name, case in cases.items() if "sides" in case}
    adam, graph = timed.get("Adam, 1e9"), timed.get(f"Adam, 1e4{CAPTURED}")
    fused = _least_ratio(timed, lambda name, case: case["torch_is_fused"])
    tail = _least_ratio(timed, lambda name, case: name.startswith(TAIL))
    return [
        _target(
            "Adam at 1e9 parameters, fraction of the copy's bandwidth",
            adam and adam["sides"]["fastopt"]["fraction_of_copy"],
            at_least=0.92,
        ),
        _target("least speed-up over torch fused, all sizes, kernel and wall time", fused, at_least=1.0),
        _target("least speed-up of clip + AdamW + EMA over torch's, all sizes", tail, at_least=1.5),
        _target(
            "Adam at 1e4 parameters as a captured graph, microseconds per step",
            graph and graph["sides"]["fastopt"]["wall_us"],
            below=15.0,
        ),
    ]


def _least_ratio(cases, chosen):
    found = [
        ratio
        for name, case in cases.items()
        if chosen(name, case)
        for ratios in case["ratios"].values()
        for ratio in ratios.values()
    ]
    return min(found, default=None)


def _target(name, value, at_least=None, below=None):
    met = None if value is None else (value >= at_least if below is None else value < below)
    return {"target": name, "at_least": at_least, "below": below, "measured": value, "met": met}


# -- all of it ---------------------------------------------------------------------------------------------------------


def listed(small):
    """(name, recipe, model, captured) of every case, what matters most first."""
    found = models(small)
    graphs = [(recipe, found["1e4"], True) for recipe in RECIPES[:3]]
    plain = [(recipe, model, False) for recipe in RECIPES for model in found.values()]
    return [
        (f"{recipe.name}, {model.name}{CAPTURED * captured}", recipe, model, captured)
        for recipe, model, captured in graphs + plain
    ]


def attempt(machine, recipe, model, captured, rounds, deadline):
    """`run_case`, or why there is nothing. A failure is the case's own: the others still run."""
    needed, free = bytes_needed(recipe, model), machine.free_bytes()
    if time.monotonic() > deadline:
        return {"skipped": "out of time"}
    if needed > free:
        return {"skipped": f"needs {needed / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free"}
    try:
        return run_case(machine, recipe, model, rounds, captured)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def show(name, case):
    """One line on the terminal."""
    if "sides" not in case:
        print(f"{name}: {case.get('skipped') or case['error']}", flush=True)
        return
    sides = ", ".join(f"{side} {figures['kernel_us']:.1f} µs" for side, figures in case["sides"].items())
    fraction = case["sides"]["fastopt"]["fraction_of_copy"]
    print(f"{name}: {sides}; {fraction:.2f} of the copy's bandwidth", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--result", required=True, help="the JSON file whose section `benchmark` is written")
    parser.add_argument("--device", choices=MACHINES, default="cuda")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=240, help="no case is begun later")
    parser.add_argument("--only", default="", help="a regular expression that the names of cases match")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.seconds
    machine, result, small = MACHINES[arguments.device](), Result(arguments.result), arguments.device == "cpu"
    bandwidth, cases = copy_bandwidth(machine, small, arguments.rounds), {}
    for name, recipe, model, captured in listed(small):
        if re.search(arguments.only, name):
            machine.release()
            cases[name] = attempt(machine, recipe, model, captured, arguments.rounds, deadline)
            fractions({name: cases[name]}, bandwidth)
            show(name, cases[name])
            _write(result, bandwidth, cases, finished=False)
    machine.release()
    again = copy_bandwidth(machine, small, arguments.rounds)
    fractions(cases, max(bandwidth, again))
    _write(result, max(bandwidth, again), cases, finished=True)
    raise SystemExit(any("error" in case for case in cases.values()))


def _write(result, bandwidth, cases, finished):
    section = {"copy_bytes_per_second": bandwidth, "cases": cases, "targets": targets(cases), "finished": finished}
    result.update(benchmark=section)


if __name__ == "__main__":
    main()
