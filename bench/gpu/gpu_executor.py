"""Where the GPU benchmark is tried out without a GPU: tests/ptx executes the compiled CUDA kernels on the CPU.

All of fastopt runs as on a GPU but for CUDA's driver, in whose place `RunningDriver` is.
"""

import copy
import sys
from pathlib import Path

from gpu import EXECUTED
from gpu_machine import Clocks

import fastopt
from fastopt.bench.measure import wall_seconds
from fastopt.bench.problem import Problem
from fastopt.bench.sides import Fastopt
from fastopt.device import CudaArray

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

from gpu_arrays import Interface
from running_driver import RunningDriver, finish_all, install


class OnExecutor(Problem):
    """Reads what is compared once the executor has done all that it was told to."""

    def renew(self, grads, k):
        finish_all()
        super().renew([getattr(grad, "memory", grad) for grad in grads], k)

    def sample(self, array, whole=False):
        finish_all()
        on_host = array.copy_to_host() if isinstance(array, CudaArray) else getattr(array, "memory", array)
        return super().sample(on_host, whole)


class Executed(Fastopt):
    """fastopt on arrays that say they are on a GPU."""

    def __init__(self, problem):
        lent = copy.copy(problem)
        lent.copies = lambda: tuple(list(map(Interface, arrays)) for arrays in problem.copies())
        super().__init__(lent)


class Executor:
    """The machine for ``--device cpu``. Its clocks do not measure a GPU.

    ``patch`` is pytest's, and takes back what this changes in fastopt.
    """

    device = "cpu"
    problem = OnExecutor
    fastopt = Executed
    note = EXECUTED

    def __init__(self, patch):
        self.driver = RunningDriver(eagerness=(1.0, 1.0), way={"order": 0})
        install(patch, self.driver)

    def as_array(self, tensor):
        """An array that says it is on a GPU, over a tensor's memory."""
        return Interface(tensor.detach().numpy())

    def wait(self):
        """Let all that was enqueued happen."""
        finish_all()

    def free_bytes(self):
        """Memory that a case can have: small ones are all that runs here."""
        return 2**30

    def release(self):
        """Nothing to do."""

    def seconds(self, call, repeats):
        """`Clocks` per call, until all was executed, both by the wall clock."""
        wall = wall_seconds(lambda: (call(), finish_all()), repeats)
        return Clocks(wall, wall)

    def captured(self, side):
        """A function that replays fastopt's step as a CUDA graph; torch's step itself."""
        return fastopt.capture(side.optimizer, side._grads).replay if side.name == "fastopt" else side.step
