"""What each of the processes of tests/test_torch_distributed.py runs: every case, in turn, and what it has found.

A case is a function of the mesh and the rank; its name in the report is its own. No case may leave a collective out in
one of the processes.
"""

import contextlib
import copy
import datetime
import io
import math
import runpy
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import fastopt.torch

SHAPES = {"uneven": (5, 3), "empty": (1, 4), "line": (7,), "columns": (3, 5), "whole": (2, 2), "plain": (3,)}
"""On two ranks: 3 rows and 2, 1 row and none, 4 elements and 3, …"""

PLACEMENTS = {"columns": Shard(1), "whole": Replicate(), "plain": None}
"""Where not Shard(0); None: no distributed tensor."""

CASES = []


def case(function):
    CASES.append(function)
    return function


# -- parameters and gradients ------------------------------------------------------------------------------------------


def numbers(seed, shapes=SHAPES):
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def spread(name, tensor, mesh):
    placement = PLACEMENTS.get(name, Shard(0))
    return tensor.clone() if mesh is None or placement is None else distribute_tensor(tensor, mesh, [placement])


def parameters(mesh=None, names=SHAPES):
    return {name: torch.nn.Parameter(spread(name, numbers(0)[name], mesh)) for name in names}


def give(params, seed, mesh=None, change=lambda grads: None):
    """Set gradients, after `change` of the whole ones, which every process knows."""
    grads = numbers(seed)
    change(grads)
    for name, p in params.items():
        p.grad = spread(name, grads[name], mesh)


def whole(tensor):
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()


def distance(ours, theirs):
    return max(float((whole(p) - whole(q)).abs().max()) for p, q in zip(ours, theirs, strict=True))


def bits_of(params):
    return [whole(p).view(torch.int32).tolist() for p in params.values()]


class Sent:
    """Counts what is gathered while it is on, and the bytes that a process gives."""

    def __enter__(self):
        self.calls, self.bytes, self._real = 0, 0, dist.all_gather
        dist.all_gather = self._gather
        return self

    def _gather(self, rows, own, **options):
        self.calls, self.bytes = self.calls + 1, self.bytes + own.nbytes
        return self._real(rows, own, **options)

    def __exit__(self, *error):
        dist.all_gather = self._real


# -- agreement ---------------------------------------------------------------------------------------------------------


@case
def clip_norm(mesh, rank):
    """Against torch.nn.utils.clip_grad_norm_ and torch.optim.AdamW in one process."""
    ours, theirs = parameters(mesh), parameters()
    first, second = (
        fastopt.torch.AdamW(ours.values(), lr=0.1, clip_norm=0.5),
        torch.optim.AdamW(theirs.values(), lr=0.1),
    )
    norms, gap = [], 0.0
    for seed in (1, 2, 3):
        give(ours, seed, mesh)
        give(theirs, seed)
        expected = torch.nn.utils.get_total_norm([p.grad.double() for p in theirs.values()])
        torch.nn.utils.clip_grad_norm_(theirs.values(), 0.5)
        with Sent() as sent:
            first.step()
        second.step()
        norms.append(first.last_grad_norm.hex())
        gap = max(gap, abs(first.last_grad_norm / float(expected) - 1))
    return {
        "gap": distance(ours.values(), theirs.values()),
        "norm": gap,
        "norms": norms,
        "sent": [sent.calls, sent.bytes],
    }


@case
def nothing_is_sent(mesh, rank):
    """Where nothing is distributed, or nothing goes by all gradients."""
    with Sent() as sent:
        for own, options in ((None, {"clip_norm": 1.0, "nonfinite": "skip"}), (mesh, {})):
            params = parameters(own)
            optimizer = fastopt.torch.SGD(params.values(), lr=0.1, **options)
            give(params, 1, own)
            optimizer.step()
    return sent.calls


@case
def elementwise_bits(mesh, rank):
    """Without the gradients' norm, steps are one process's bit for bit: averages, clipping by value, accumulation."""
    found = {}
    for name in ("SGD", "AdamW", "NAdam", "Adagrad", "Lion"):
        both = []
        for own in (mesh, None):
            params = parameters(own)
            optimizer = getattr(fastopt.torch, name)(params.values(), lr=0.1, clip_value=0.7, ema=0.9, nonfinite="skip")
            for seed in range(4):
                give(params, seed, own)
                if seed == 2:  # two gradients are added up
                    for p, more in zip(params.values(), numbers(9).items(), strict=True):
                        p.grad += spread(*more, own)
                optimizer.step()
            both.append([bits_of(params), bits_of({k: optimizer.state[p]["ema"] for k, p in params.items()})])
        found[name] = both[0] == both[1]
    return found


def _with_a_bad_number(name, index, value):
    def change(grads):
        grads[name][index] = value

    return change


BAD = {
    "first": _with_a_bad_number("uneven", (0, 0), math.nan),  # rank 0 has it
    "second": _with_a_bad_number("uneven", (4, 2), math.inf),  # rank 1 has it
    "empty": _with_a_bad_number("empty", (0, 1), math.nan),  # rank 1 has no part of it
    "columns": _with_a_bad_number("columns", (2, 4), -math.inf),  # rank 1 has it
    "plain": _with_a_bad_number("plain", 1, math.nan),  # both have it
}


@case
def skip(mesh, rank):
    """A number that is not finite, with the rank that has it: no rank steps, and all do the next step."""
    found = {}
    for where, change in BAD.items():
        for options in ({}, {"clip_norm": 0.5}):
            params = parameters(mesh)
            optimizer = fastopt.torch.Adam(params.values(), lr=0.1, nonfinite="skip", **options)
            give(params, 1, mesh)
            optimizer.step()
            before = bits_of(params)
            give(params, 2, mesh, change)
            optimizer.step()
            skipped = optimizer.last_step_skipped and bits_of(params) == before
            give(params, 3, mesh)
            optimizer.step()
            steps = [int(optimizer.state[p]["step"]) for p in params.values()]
            goes_on = not optimizer.last_step_skipped and bits_of(params) != before
            found[f"{where} {options}"] = [skipped, goes_on, steps]
    return found


@case
def raises(mesh, rank):
    """Every process raises, and says where; nothing is changed."""
    found = {}
    for where, change in BAD.items():
        params = parameters(mesh)
        optimizer = fastopt.torch.Adam(params.values(), lr=0.1, nonfinite="raise")
        before = bits_of(params)
        give(params, 2, mesh, change)
        try:
            optimizer.step()
        except FloatingPointError as error:
            found[where] = str(error)
        assert bits_of(params) == before
        assert not optimizer.state
    return found


@case
def part_of_nothing(mesh, rank):
    """All that there is lies in rank 0; then rank 1 has no gradient either. Both step, or none."""
    found = []
    for grads_in_both in (True, False):
        for change in (lambda grads: None, BAD["empty"]):
            params = parameters(mesh, ["empty"])
            optimizer = fastopt.torch.SGD(params.values(), lr=1.0, nonfinite="skip", clip_norm=0.5)
            give(params, 1, mesh, change)
            if rank and not grads_in_both:
                params["empty"].grad = None
            before = whole(params["empty"]).clone()
            optimizer.step()
            moved = float((whole(params["empty"]) - before).double().norm())
            found.append([optimizer.last_step_skipped, round(moved, 6)])
    return found


@case
def meshes_of_two_dimensions(mesh, rank):
    """Replicated over one dimension, divided over the other; and a parameter on one dimension's own mesh."""
    world, found = dist.get_world_size(), []
    for shape in [(world, 1), (1, world), *[(2, 2)] * (world == 4)]:
        both = dist.init_device_mesh("cpu", shape, mesh_dim_names=("copies", "parts"))
        for placements in (
            (Replicate(), Shard(0)),
            (Shard(0), Shard(0)),
            (Shard(1), Shard(0)),
            (Shard(0), Replicate()),
        ):
            tensor, grad = numbers(0)["uneven"], numbers(1)["uneven"]
            p = torch.nn.Parameter(distribute_tensor(tensor, both, placements))
            p.grad = distribute_tensor(grad, both, placements)
            q = torch.nn.Parameter(distribute_tensor(tensor[:, 0].clone(), both["parts"], [Shard(0)]))
            q.grad = distribute_tensor(grad[:, 0].clone(), both["parts"], [Shard(0)])
            optimizer = fastopt.torch.SGD([p, q], lr=1.0, clip_norm=math.inf)
            optimizer.step()
            expected = math.hypot(grad.double().norm(), grad[:, 0].double().norm())
            found.append([optimizer.last_grad_norm.hex(), abs(optimizer.last_grad_norm / expected - 1)])
    return found


@case
def scalers(mesh, rank):
    """torch.amp.GradScaler unscales and decides, or hands over; a scaler that has found something in rank 1 alone."""
    found = {}
    for hands_over in (False, True):
        for change in (lambda grads: None, BAD["second"]):
            params = parameters(mesh, ["uneven", "empty", "line", "columns", "whole"])
            optimizer, scaler = fastopt.torch.SGD(params.values(), lr=1.0), torch.amp.GradScaler("cpu", init_scale=4.0)
            optimizer._step_supports_amp_scaling = hands_over
            scaler.scale(torch.zeros(()))
            give(params, 1, mesh, change)
            before = bits_of(params)
            scaler.step(optimizer)
            scaler.update()
            found[f"{hands_over} {change is BAD['second']}"] = [bits_of(params) == before, scaler.get_scale()]
    params = parameters(mesh)
    optimizer = fastopt.torch.SGD(params.values(), lr=1.0)
    give(params, 1, mesh)
    optimizer.found_inf = torch.tensor(float(rank == 1))
    before = bits_of(params)
    optimizer.step()
    found["in one alone"] = [optimizer.last_step_skipped, bits_of(params) == before]
    return found


# -- models ------------------------------------------------------------------------------------------------------------


def model(width=5):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Tanh(), torch.nn.Linear(width, 1))


def batch(step, rank):
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(10 * step + rank))


def one_process(optimizer_of, steps, clip=None, world=None):
    """What one process makes of the batches of all; the norms of the gradients."""
    own, norms, world = model(), [], world or dist.get_world_size()
    optimizer = optimizer_of(own.parameters())
    for step in range(steps):
        optimizer.zero_grad()
        for rank in range(world):
            (own(batch(step, rank)).pow(2).mean() / world).backward()
        if clip is not None:
            norms.append(float(torch.nn.utils.clip_grad_norm_(own.parameters(), clip)))
        optimizer.step()
    return own, norms


def sharded(mesh, **options):
    own = model()
    fully_shard(own[0], mesh=mesh)
    fully_shard(own, mesh=mesh, **options)
    return own


def train(own, optimizer, step, rank):
    optimizer.zero_grad()
    own(batch(step, rank)).pow(2).mean().backward()
    optimizer.step()


@case
def fsdp2(mesh, rank):
    """Against one process, and FSDP2's own norm, by torch.nn.utils.clip_grad_norm_ of DTensors."""
    expected, norms = one_process(lambda params: torch.optim.AdamW(params, lr=0.1), 3, clip=0.1)
    own, gaps = sharded(mesh), [0.0, 0.0]
    optimizer = fastopt.torch.AdamW(own.parameters(), lr=0.1, clip_norm=0.1, nonfinite="raise")
    for step in range(3):
        optimizer.zero_grad()
        own(batch(step, rank)).pow(2).mean().backward()
        total = float(torch.nn.utils.get_total_norm([p.grad for p in own.parameters()]).full_tensor())
        optimizer.step()
        found = optimizer.last_grad_norm
        gaps = [max(gaps[0], abs(found / total - 1)), max(gaps[1], abs(found / norms[step] - 1))]
    gap = distance(own.parameters(), expected.parameters())
    return {"gap": gap, "norms": gaps, "last": optimizer.last_grad_norm.hex()}


@case
def evaluation(mesh, rank):
    """What an FSDP2 model computes inside `evaluation_weights`, and after it, where nobody calls ``reshard``."""
    own, x = sharded(mesh), batch(9, 0)
    optimizer = fastopt.torch.SGD(own.parameters(), lr=0.5, ema=0.5)
    for step in range(3):
        train(own, optimizer, step, rank)
    averages = {name: whole(optimizer.state[p]["ema"]) for name, p in own.named_parameters()}
    trained = {name: whole(p) for name, p in own.named_parameters()}
    expected = [torch.func.functional_call(model(), weights, x) for weights in (averages, trained)]
    with torch.no_grad():
        with optimizer.evaluation_weights():
            inside = own(x)
        after = own(x)
        try:
            optimizer.evaluation_weights().__enter__()
        except RuntimeError as error:
            refused = str(error)
    apart = not torch.allclose(*expected)
    return [apart, torch.allclose(inside, expected[0]), torch.allclose(after, expected[1]), refused]


@case
def tensor_parallel(mesh, rank):
    """Columns, then rows; a bias that every process has whole. Every process has the same batch."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    models = []
    for kind, options in ((torch.optim.AdamW, None), (fastopt.torch.AdamW, {"clip_norm": 0.1, "nonfinite": "skip"})):
        own = model(6)
        if options is not None:
            parallelize_module(own, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
        optimizer = kind(own.parameters(), lr=0.1, **(options or {}))
        for step in range(3):
            optimizer.zero_grad()
            own(batch(step, 0)).pow(2).mean().backward()
            if options is None:
                torch.nn.utils.clip_grad_norm_(own.parameters(), 0.1)
            optimizer.step()
        models.append(own)
    placed = [str(p.placements[0]) for p in models[1].parameters()]
    return {"gap": distance(models[1].parameters(), models[0].parameters()), "placed": placed}


@case
def sequence_parallel(mesh, rank):
    """A norm whose gradient each process has a summand of."""
    from torch.distributed.tensor.parallel import PrepareModuleOutput, SequenceParallel, parallelize_module

    def net():
        torch.manual_seed(0)
        own = torch.nn.Sequential(torch.nn.LayerNorm(3), torch.nn.Identity())
        own[0].weight.data += 0.5
        return own

    models = []
    for kind, options in ((torch.optim.AdamW, None), (fastopt.torch.AdamW, {"clip_norm": 0.1, "nonfinite": "skip"})):
        own = net()
        if options is not None:
            whole_output = PrepareModuleOutput(output_layouts=Shard(1), desired_output_layouts=Replicate())
            parallelize_module(own, mesh, {"0": SequenceParallel(), "1": whole_output})
        optimizer = kind(own.parameters(), lr=0.1, **(options or {}))
        for step in range(3):
            optimizer.zero_grad()
            x = batch(step, 0)[None]
            x = x if options is None else x.chunk(dist.get_world_size(), 1)[rank]  # parts of a sequence
            (own(x).pow(2) * torch.arange(12.0).reshape(1, 4, 3)).mean().backward()
            placed = [str(getattr(p.grad, "placements", ())) for p in own.parameters()]
            if options is None:
                torch.nn.utils.clip_grad_norm_(own.parameters(), 0.1)
            optimizer.step()
        models.append(own)
    return {"gap": distance(models[1].parameters(), models[0].parameters()), "placed": placed}


@case
def parts_that_nothing_names(mesh, rank):
    """ZeRO-1 and FSDP1 hand plain tensors over: what goes by all gradients is refused, the rest is torch's."""
    refused, gaps = [], []
    for options in ({"clip_norm": 1.0}, {"nonfinite": "skip"}, {}):
        wrapped = torch.nn.parallel.DistributedDataParallel(own := model())
        zero = ZeroRedundancyOptimizer(own.parameters(), fastopt.torch.AdamW, lr=0.1, **options)
        flat = FullyShardedDataParallel(model(), device_id=torch.device("cpu"), use_orig_params=True)
        for net, optimizer in ((wrapped, zero), (flat, fastopt.torch.AdamW(flat.parameters(), lr=0.1, **options))):
            try:
                for step in range(3):
                    train(net, optimizer, step, rank)
            except RuntimeError as error:
                refused.append(str(error))
    zero = ZeroRedundancyOptimizer(model().parameters(), fastopt.torch.AdamW, lr=0.1, ema=0.9)
    for p in zero.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    zero.step()
    try:
        zero.optim.evaluation_weights().__enter__()
    except RuntimeError as error:
        refused.append(str(error))
    expected, _ = one_process(lambda params: torch.optim.AdamW(params, lr=0.1), 3)
    with FullyShardedDataParallel.summon_full_params(flat):
        gaps = [distance(own.parameters(), expected.parameters()), distance(flat.parameters(), expected.parameters())]
    return {"refused": refused, "gaps": gaps}


@case
def examples(mesh, rank):
    """Each compares its curve with one process's."""
    found = {}
    for name in ("torch_fsdp2", "torch_zero1"):
        path = Path(__file__).parents[1] / "examples" / f"{name}.py"
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            curve, expected = runpy.run_path(str(path))["compare"](rank, dist.get_world_size(), 20)
        gap = max(abs(a - b) for a, b in zip(curve, expected, strict=True))
        found[name] = {"gap": gap, "fell": curve[-1] / curve[0], "printed": printed.getvalue()}
    return found


# -- running -----------------------------------------------------------------------------------------------------------


def main(store, rank, world, names=None):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=limit)
    mesh = dist.init_device_mesh("cpu", (world,))
    found = {}
    for function in CASES if names is None else [case for case in CASES if case.__name__ in names]:
        print(f"rank {rank}: {function.__name__}", file=sys.stderr, flush=True)
        found[function.__name__] = copy.deepcopy(function(mesh, rank))
    dist.barrier()
    dist.destroy_process_group()
    return found
