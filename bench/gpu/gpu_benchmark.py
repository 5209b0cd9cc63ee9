"""fastopt against torch on one GPU: every case is first checked to compute the same on all sides, then timed.

    python bench/gpu/gpu_benchmark.py --result FILE                  # a step of `make gpu`
    python bench/gpu/gpu_benchmark.py --result FILE --device cpu     # tries the program out: no figure is a GPU's

Cases, sides and the judge are those of fastopt.bench, on tensors of a GPU. Sides take turns, round by round; medians
count. "kernel" is the time between two CUDA events around many steps, "wall" that of the wall clock with one
synchronisation at the end.
"""

import argparse
import math
import re
import time

import numpy as np
import torch
from gpu_machine import DEVICES, machine_of

from fastopt.bench.cases import Case
from fastopt.bench.check import STEPS, DisagreementError, check
from fastopt.bench.measure import interleaved
from fastopt.bench.peers.torch import Fused, array_of
from fastopt.bench.result import Result
from fastopt.bench.shapes import MODELS as SHAPES
from fastopt.bench.shapes import small_shapes
from fastopt.bench.sides import Traffic

CAPTURED = ", captured graph"
TOLERANCE = 1e-5
COPIED_BYTES = 2**32
FLOAT32 = 4
STEPPED = (("adam", "plain"), ("adamw", "clip-ema"), ("sgd-momentum", "plain"), ("lion", "plain"), ("lamb", "plain"))
"""Recipes with their stacks. torch has no fused form of the last two, which have no peer."""

MODELS = ("1e4", "1e6", "gpt2", "1e9")
SMALL = {"1e4": "1e3", "1e6": "5e3", "gpt2": "4-tensors", "1e9": "1e4"}
"""What stands for a model where the program is only tried out."""

SHAPES |= {"4-tensors": lambda: small_shapes(4)}


class Flat(Fused):
    """torch's on flat copies, as apex and others keep them: separate gradients are copied into one tensor first."""

    name = "torch, flat copies"

    def make(self):
        self._separate = self.grads
        flat, grad = (
            torch.cat([each.detach().flatten() for each in tensors]) for tensors in (self.tensors, self.grads)
        )
        self._pieces, self._copies = self._cut(flat), self._cut(grad)
        self.tensors, self.grads = [flat.requires_grad_()], [grad]
        flat.grad = grad
        return super().make()

    def _cut(self, flat):
        """Views of one flat tensor in the parameters' shapes."""
        shapes = self.case.shapes
        parts = torch.as_tensor(flat).split([math.prod(shape) for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def step(self):
        torch._foreach_copy_(self._copies, self._separate)
        super().step()

    def params(self):
        return [array_of(piece) for piece in self._pieces]

    def slots(self):
        return {name: list(map(array_of, self._cut(flat))) for name, (flat,) in super().slots().items()}


def sides_of(machine, problem):
    """fastopt, torch fused where it has the rule, and that on flat copies where there are several tensors."""
    case = problem.case
    peers = [] if Fused.lacks(case) else [Fused, Flat][: 1 + (len(case.shapes) > 1)]
    return [kind(problem) for kind in (machine.fastopt, *peers)]


def bytes_needed(case):
    """Memory that all sides of a case and what they start from occupy, at most."""
    arrays = 2 + len(case.rule.slots) + (case.options.ema is not None)
    sides = 1 + (0 if Fused.lacks(case) else 1 + 2 * (len(case.shapes) > 1))
    return FLOAT32 * case.parameters * (sides * arrays + 3)


# -- a case ------------------------------------------------------------------------------------------------------------


def capture(machine, sides):
    """Replace steps by replays of graphs, which have to compute the same."""
    for side in sides:
        side.step = machine.captured(side)
    for k in range(STEPS):
        for side in sides:
            side.renew(k)
            side.step()
    ours, *others = ([side.problem.sample(param) for param in side.params()] for side in sides)
    for other in others:
        for one, two in zip(ours, other, strict=True):
            if not np.allclose(one, two, rtol=TOLERANCE, atol=TOLERANCE):
                raise DisagreementError("captured graphs of fastopt and torch disagree; nothing was timed")


def run_case(machine, case, rounds, captured=False):
    """What was measured of one case."""
    problem = machine.problem(case)
    sides = sides_of(machine, problem)
    check(problem, sides)
    if captured:
        sides = sides[:2]
        capture(machine, sides)
    clocks = interleaved({side.name: side.step for side in sides}, rounds, machine.seconds)
    ours = clocks["fastopt"]
    return {
        "parameters": case.parameters,
        "tensors": len(case.shapes),
        "bytes_per_parameter": Traffic(sides[0]).bytes_per_parameter,
        "sides": {name: {"kernel_us": 1e6 * each.kernel, "wall_us": 1e6 * each.wall} for name, each in clocks.items()},
        "ratios": {
            name: {"kernel": clock.kernel / ours.kernel, "wall": clock.wall / ours.wall}
            for name, clock in clocks.items()
            if name != "fastopt"
        },
    }


def copy_bandwidth(machine, small, rounds):
    """Bytes per second, read and written, of one large copy within the device's memory."""
    size = (2**22 if small else min(COPIED_BYTES, machine.free_bytes() // 4)) // FLOAT32
    source, target = (torch.empty(size, device=machine.device).fill_(value) for value in (1.0, 0.0))
    clocks = interleaved({"copy": lambda: target.copy_(source)}, rounds, machine.seconds)
    return 2 * FLOAT32 * size / clocks["copy"].kernel


def fractions(cases, bandwidth):
    """Add to every case which part of the copy's bandwidth fastopt reached, counting the bytes that it has to move."""
    for case in cases.values():
        if "sides" in case:
            moved = case["parameters"] * case["bytes_per_parameter"]
            case["fraction_of_copy"] = moved / (case["sides"]["fastopt"]["kernel_us"] * 1e-6) / bandwidth


# -- what was aimed at -------------------------------------------------------------------------------------------------


def targets(cases):
    """The aims of the project, each with what was measured; `met` is None where that was nothing."""
    timed = {name: case for name, case in cases.items() if "sides" in case}
    adam, graph = timed.get("adam/float32/1e9/plain/cuda"), timed.get(f"adam/float32/1e4/plain/cuda{CAPTURED}")
    fraction = adam and adam["fraction_of_copy"]
    wall = graph and graph["sides"]["fastopt"]["wall_us"]
    all_of_it = "least speed-up of clip + AdamW + EMA over torch's, all sizes"
    return [
        _target("Adam at 1e9 parameters, fraction of the copy's bandwidth", fraction, at_least=0.92),
        _target("least speed-up over torch fused, all sizes, kernel and wall time", _least(timed), at_least=1.0),
        _target(all_of_it, _least(timed, "adamw/"), at_least=1.5),
        _target("Adam at 1e4 parameters as a captured graph, microseconds per step", wall, below=15.0),
    ]


def _least(cases, start=""):
    ratios = [ratio for name, case in cases.items() if name.startswith(start) for ratio in case["ratios"].values()]
    return min((value for ratio in ratios for value in ratio.values()), default=None)


def _target(name, value, at_least=None, below=None):
    met = None if value is None else (value >= at_least if below is None else value < below)
    return {"target": name, "at_least": at_least, "below": below, "measured": value, "met": met}


# -- all of it ---------------------------------------------------------------------------------------------------------


def listed(small):
    """(name, case, captured) of every case, what matters most first."""
    graphs = [(recipe, stack, "1e4", True) for recipe, stack in STEPPED[:3]]
    plain = [(recipe, stack, model, False) for recipe, stack in STEPPED for model in MODELS]
    for recipe, stack, model, captured in graphs + plain:
        name = Case(recipe, model, stack=stack, device="cuda").id
        case = Case(recipe, SMALL.get(model, model) if small else model, stack=stack, device="cuda")
        if case.rule.elementwise or model != "1e9":  # the judge, on the host, takes whole arrays of the others
            yield name + CAPTURED * captured, case, captured


def attempt(machine, case, captured, rounds, deadline):
    """`run_case`, or why there is nothing. A failure is the case's own: the others still run."""
    needed, free = bytes_needed(case), machine.free_bytes()
    if time.monotonic() > deadline:
        return {"skipped": "out of time"}
    if needed > free:
        return {"skipped": f"needs {needed / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free"}
    try:
        return run_case(machine, case, rounds, captured)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def show(name, case, note):
    """One line on the terminal."""
    if "sides" not in case or note:
        print(f"{name}: {case.get('skipped') or case.get('error') or f'all sides agree; {note}'}", flush=True)
        return
    sides = ", ".join(f"{side} {figures['kernel_us']:.1f} µs" for side, figures in case["sides"].items())
    print(f"{name}: {sides}; {case['fraction_of_copy']:.2f} of the copy's bandwidth", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--result", required=True, help="the JSON file whose section `benchmark` is written")
    parser.add_argument("--device", choices=DEVICES, default="cuda")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=240, help="no case is begun later")
    parser.add_argument("--only", default="", help="a regular expression that the names of cases match")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.seconds
    machine, result, small = machine_of(arguments.device), Result(arguments.result), arguments.device == "cpu"
    bandwidth, cases = copy_bandwidth(machine, small, arguments.rounds), {}
    for name, case, captured in listed(small):
        if re.search(arguments.only, name):
            machine.release()
            cases[name] = attempt(machine, case, captured, arguments.rounds, deadline)
            fractions({name: cases[name]}, bandwidth)
            show(name, cases[name], machine.note)
            _write(result, machine, bandwidth, cases, finished=False)
    machine.release()
    bandwidth = max(bandwidth, copy_bandwidth(machine, small, arguments.rounds))
    fractions(cases, bandwidth)
    _write(result, machine, bandwidth, cases, finished=True)
    raise SystemExit(any("error" in case for case in cases.values()))


def _write(result, machine, bandwidth, cases, finished):
    aims = targets({} if machine.note else cases)
    section = {"copy_bytes_per_second": bandwidth, "cases": cases, "targets": aims, "finished": finished}
    result.update(benchmark=section | ({"note": machine.note} if machine.note else {}))


if __name__ == "__main__":
    main()
