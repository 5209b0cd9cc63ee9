"""A small network that several processes train under FSDP2, each with its part of every weight: one process's curve.

    python examples/torch_fsdp2.py [--processes 2] [--steps 20]
    torchrun --nproc_per_node 2 examples/torch_fsdp2.py

The norm that gradients are clipped by, and the decision to leave a step out, are those of all processes together.
"""

import argparse
import os
import socket

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import fastopt.torch

BATCH = 24


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 33), nn.GELU(), nn.Linear(33, 33), nn.GELU(), nn.Linear(33, 1))


def batch(step):
    x = torch.randn(BATCH, 8, generator=torch.Generator().manual_seed(step))
    return x, x.square().sum(1, keepdim=True).sqrt()


def train(model, step_of, steps, rank=0, world=1):
    """Losses of the whole batches, of which this process has every ``world``-th row."""
    curve = []
    for step in range(steps):
        x, y = (each[rank::world] for each in batch(step))
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        step_of(model)
        total = loss.detach() / world
        if world > 1:
            dist.all_reduce(total)
        curve.append(float(total))
    return curve


def alone(steps):
    """One process, with torch's own optimizer and clipping."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    def step(model):
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return train(model, step, steps)


def sharded(steps, rank, world):
    """FSDP2 over all processes; the curve, and the bytes of parameters and of state that this one has."""
    model = network()
    mesh = dist.init_device_mesh("cpu", (world,))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = fastopt.torch.AdamW(model.parameters(), lr=0.01, clip_norm=1.0, nonfinite="skip")

    def step(model):
        optimizer.step()
        optimizer.zero_grad()

    curve = train(model, step, steps, rank, world)
    own = [p.to_local().nbytes for p in model.parameters()]
    state = [v.to_local().nbytes for s in optimizer.state.values() for v in s.values() if v.ndim]
    return curve, sum(own), sum(state)


def compare(rank, world, steps):
    """Train both ways; the curves."""
    curve, weights, state = sharded(steps, rank, world)
    expected = alone(steps)
    print(f"process {rank} of {world}: {weights} bytes of parameters, {state} of state", flush=True)
    if rank == 0:
        gap = max(abs(a - b) for a, b in zip(curve, expected, strict=True))
        print(f"loss {curve[0]:.4f} to {curve[-1]:.4f}; greatest difference from one process: {gap:.1e}", flush=True)
    return curve, expected


def run(rank, world, steps):
    dist.init_process_group("gloo", rank=rank, world_size=world)
    compare(rank, world, steps)
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if "RANK" in os.environ:  # set by torchrun
        run(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), args.steps)
        return
    with socket.socket() as free:
        free.bind(("localhost", 0))
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    torch.multiprocessing.spawn(run, (args.processes, args.steps), args.processes)


if __name__ == "__main__":
    main()
