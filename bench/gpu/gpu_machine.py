"""Where the GPU benchmark runs: on a GPU, timed by CUDA events; or on `gpu_executor`, only to try the program out."""

import gc
import math
import time
from typing import NamedTuple

import numpy as np
import torch

import fastopt
from fastopt.bench.problem import SAMPLE, Problem
from fastopt.bench.sides import Fastopt

PIECE = 2**26
"""Elements whose squares are summed at a time: they need no gigabytes of their own."""


class Clocks(NamedTuple):
    """Seconds per call: between two events on the GPU, and by the wall clock with one synchronisation at the end."""

    kernel: float
    wall: float


class OnGpu(Problem):
    """Parameters and gradients of a case as CUDA tensors."""

    def __init__(self, case):
        self.case = case
        make = {"generator": torch.Generator("cuda").manual_seed(0), "device": "cuda"}
        self.params, self.grads = ([torch.randn(shape, **make) for shape in case.shapes] for _ in range(2))

    def copies(self):
        return [param.clone() for param in self.params], [grad.clone() for grad in self.grads]

    def renew(self, grads, k):
        torch._foreach_copy_(grads, self.grads)
        if k % 2:
            torch._foreach_neg_(grads)

    def norm(self):
        pieces = (piece for grad in self.grads for piece in grad.flatten().split(PIECE))
        return math.sqrt(sum(float(piece.double().square().sum()) for piece in pieces))

    def sample(self, array, whole=False):
        if isinstance(array, np.ndarray):
            return super().sample(array, whole)
        tensor = torch.as_tensor(array, device="cuda").detach()
        if not whole and tensor.numel() > SAMPLE:
            places = np.linspace(0, tensor.numel() - 1, SAMPLE).astype(np.int64)
            tensor = tensor.reshape(-1)[torch.from_numpy(places).to("cuda")]
        return tensor.cpu().numpy().astype(np.float64)


class Gpu:
    """The current CUDA device."""

    device = "cuda"
    problem = OnGpu
    fastopt = Fastopt
    note = None

    def as_array(self, tensor):
        """What fastopt takes for a tensor: the tensor."""
        return tensor

    def wait(self):
        """Wait for all that was enqueued."""
        torch.cuda.synchronize()

    def free_bytes(self):
        """Memory that a case can have."""
        return torch.cuda.mem_get_info()[0]

    def release(self):
        """Give back what tensors that are gone occupied."""
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def seconds(self, call, repeats):
        """`Clocks` per call."""
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start = time.perf_counter()
        first.record()
        for _ in range(repeats):
            call()
        last.record()
        torch.cuda.synchronize()
        wall = time.perf_counter() - start
        return Clocks(first.elapsed_time(last) / 1e3 / repeats, wall / repeats)

    def captured(self, side):
        """A function that replays a side's step, which has run before, as a CUDA graph."""
        if side.name == "fastopt":
            return fastopt.capture(side.optimizer, side._grads).replay
        for group in side.optimizer.param_groups:
            group |= {"capturable": True} if "capturable" in group else {}
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            side.step()
        return graph.replay


class Host:
    """fastopt's engine for CPUs, which results are held against."""

    device = "cpu"

    def as_array(self, tensor):
        """A NumPy view of a tensor."""
        return tensor.detach().numpy()

    def wait(self):
        """Nothing to do."""


DEVICES = ("cuda", "cpu")


def machine_of(device):
    """The machine for ``--device``."""
    if device == "cuda":
        return Gpu()
    import pytest  # a GPU needs none of it
    from gpu_executor import Executor

    return Executor(pytest.MonkeyPatch())  # never undone: the process is for this alone
