"""Where the GPU benchmark runs: on a GPU, timed by CUDA events; or on the CPU, only to try the program out."""

import gc
import time
from typing import NamedTuple

import torch

import fastopt
from fastopt.bench.measure import wall_seconds


class Clocks(NamedTuple):
    """Seconds per call: between two events on the GPU, and by the wall clock with one synchronisation at the end."""

    kernel: float
    wall: float


class Gpu:
    """The current CUDA device."""

    device = "cuda"

    def as_array(self, tensor):
        """What fastopt takes for a tensor: the tensor."""
        return tensor

    def as_tensor(self, array):
        """A tensor over the memory of one of fastopt's arrays."""
        return torch.as_tensor(array, device=self.device)

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

    def captured(self, optimizer, grads):
        """A function that replays a step of fastopt's as a CUDA graph."""
        return fastopt.capture(optimizer, grads).replay

    def captured_torch(self, step):
        """A function that replays torch calls, which have run before, as a CUDA graph."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay


class Cpu:
    """A stand-in that runs every line but those that need a GPU. Its figures mean nothing."""

    device = "cpu"

    def as_array(self, tensor):
        """A NumPy view of a tensor."""
        return tensor.detach().numpy()

    def as_tensor(self, array):
        """A tensor over the memory of a NumPy array."""
        return torch.from_numpy(array)

    def free_bytes(self):
        """Memory that a case can have: small ones are all that runs here."""
        return 2**30

    def release(self):
        """Nothing to do."""

    def seconds(self, call, repeats):
        """`Clocks` per call, both by the wall clock."""
        wall = wall_seconds(call, repeats)
        return Clocks(wall, wall)

    def captured(self, optimizer, grads):
        """The step itself: there are no graphs."""
        return lambda: optimizer.apply(grads)

    def captured_torch(self, step):
        """See `captured`."""
        return step


MACHINES = {"cuda": Gpu, "cpu": Cpu}
