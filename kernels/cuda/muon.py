"""Muon on a GPU: three launches, and matrix products by the library that the parameters are arrays of.

The products are enqueued whether the GPU will find that the step is stopped or not: they touch scratch memory alone.
Their coefficients and their number are the host's, fixed in a captured graph; all else is read on the GPU.
"""

import contextlib
import functools
import importlib
import math
from typing import Any

import numpy as np
from numba import cuda

from ..compile._jit import callee
from ..cpu.muon import Products, divisor_of, scalars_of, shapes_in_memory
from ..cpu.newton_schulz import factor_of
from ..cpu.reduction import LANES as SUM_LANES
from ..layout import AVERAGED, EXTRA, OVERWRITE, ZERO, Control
from ..rules.sgd import SgdScalars
from ._cupy import full_float32
from .engine import Elementwise, kernel
from .finish import finish
from .gradient import Gradient
from .lanes import VECTOR
from .norms import Squares
from .step import Chunk, Update, chunk_of, chunks_of, move_chunk, step_chunk
from .sums import row_sum, segment_is_done, start_of, sum_terms
from .tables import (
    CHECKED,
    LAST,
    MICRO,
    OPTIONS,
    control_of,
    device_tables_at,
    program_of,
    rule_scalars_of,
)
from .threads import TEAM

# Replaced in each specialisation. The last slot is the direction.
DTYPE = np.float32
SCALARS = Control
SLOT_ROWS: Any = ()
WARPS = 4
SCRATCH = WARPS * SUM_LANES

EXTENT = 4
"""Column of the chunk table: elements of the matrix's longer side."""


def momentum(handle, options):
    """The directions, as slots, and the decayed parameters. Micro-steps and stopped ones are as in `step.step`."""
    thread, threads = cuda.threadIdx.x, cuda.blockDim.x
    k = cuda.blockIdx.x
    while k < chunks_of(handle, DTYPE):
        step_chunk(handle, options, AVERAGED | OVERWRITE, k, thread, threads, SCALARS, SLOT_ROWS, DTYPE)
        k += cuda.gridDim.x
    finish(handle, options, thread, cuda.gridDim.x, DTYPE)


@callee
def _direction_of(t, chunk, slot_rows):
    """A chunk of the direction, as a gradient, in the place of the gradient."""
    address = t.common.addresses[slot_rows[-1], chunk.segment]
    return Chunk(chunk.segment, chunk.first, chunk.size, Gradient(address, 0))


def divisors(handle, options):
    """Write what each direction is divided by first to ``factors[EXTRA]``."""
    scratch = cuda.shared.array(SCRATCH, np.float64)
    flags = cuda.shared.array(WARPS, np.int64)
    warp, thread = cuda.threadIdx.x // TEAM, cuda.threadIdx.x % TEAM
    lanes = scratch[warp * SUM_LANES : (warp + 1) * SUM_LANES]
    warps = cuda.blockDim.x // TEAM
    k = cuda.blockIdx.x * warps + warp
    while k < chunks_of(handle, DTYPE):
        _divide(handle, options, k, lanes, flags, warp, thread, SCALARS, SLOT_ROWS, DTYPE)
        k += cuda.gridDim.x * warps


@callee
def _divide(handle, options, k, lanes, flags, warp, thread, scalars, slot_rows, dtype):
    t = device_tables_at(handle, dtype)
    chunk = _direction_of(t, chunk_of(t, k), slot_rows)
    squares = Squares(chunk, 0, chunk.gradient.address % VECTOR == 0, 0, _plain_control(dtype(0), dtype), False, (0,))
    sum_terms(squares, 0, chunk.size, lanes, thread, t.common.sums[:1], k, dtype)
    if segment_is_done(t, chunk.segment, flags, warp, thread):
        total = row_sum(t.common.sums[0, start_of(t, chunk.segment) : t.ends[chunk.segment]], lanes, thread, TEAM)
        if thread == 0:
            s = rule_scalars_of(t, program_of(t, options, dtype), k, scalars)
            t.common.factors[EXTRA, chunk.segment] = divisor_of(total, s, dtype)


@callee
def _plain_control(keep, dtype):
    """Take a direction as it is."""
    return Control(dtype(1), dtype(1), dtype(np.inf), dtype(0), keep)


def update(handle, options):
    """Move the parameters against the orthogonal directions. In a micro-step, or one that is stopped, nothing."""
    thread, threads = cuda.threadIdx.x, cuda.blockDim.x
    k = cuda.blockIdx.x
    while k < chunks_of(handle, DTYPE):
        _update_chunk(handle, options, k, thread, threads, SCALARS, SLOT_ROWS, DTYPE)
        k += cuda.gridDim.x
    finish(handle, options, thread, cuda.gridDim.x, DTYPE)


@callee
def _update_chunk(handle, options, k, thread, threads, scalars, slot_rows, dtype):
    t = device_tables_at(handle, dtype)
    program = program_of(t, options, dtype)
    chunk = chunk_of(t, k)
    idle = program.stopped or program.options & MICRO != 0
    if program.ready and not idle and chunk.gradient.address != 0:
        s = rule_scalars_of(t, program, k, scalars)
        factor = dtype(factor_of(t.common.chunks[k, EXTENT], s.rms_rate))
        control = _plain_control(control_of(t, program, k).keep, dtype)
        asked = program.options & (AVERAGED | OVERWRITE)
        work = Update(asked, control, SgdScalars(s.learning_rate), factor, ())
        move_chunk(t, _direction_of(t, chunk, slot_rows), work, thread, threads, (), dtype)


class Orthogonal(Elementwise):
    """Muon's step: momentum, products, update. Scratch: the directions, and products of the largest matrix."""

    row_step = None

    def __init__(self, plan):
        library = _library_of(plan)
        super().__init__(plan)
        common, shapes = self.work, shapes_in_memory(plan)
        self._library, self._rows = library, plan.rows
        self._scratch = []
        views = [self._matrix(shape, zeroed=True) for shape in shapes]
        self._directions = [view for view, _ in views]
        self._products = library.products(self._directions, lambda size: self._matrix((size,))[0])
        addresses = np.concatenate([common.addresses, np.array([[address for _, address in views]], np.int64)])
        extents = np.array([max(shape) for shape in shapes], np.int64)[common.chunks[:, 0]]
        self._matrices = common.derived(np.column_stack([common.chunks, extents]), addresses)
        first = common.factors.address + EXTRA * len(shapes) * self.dtype.itemsize
        self._divisors = [library.view(first + k * self.dtype.itemsize, (1,), self.dtype) for k in range(len(shapes))]

    def _matrix(self, shape, zeroed=False):
        """A new array of the library, and its address."""
        memory = self.device.allocate(math.prod(shape) * self.dtype.itemsize, zeroed)
        self._scratch.append(memory)
        return self._library.view(memory.address, shape, self.dtype), memory.address

    def _compile(self, scalars, slots):
        functions = momentum, divisors, update
        self._kernels = [kernel(f, scalars, slots + 1, self.dtype, self.device) for f in functions]

    def __call__(self, stream, options):
        """Enqueue the passes and the products."""
        momentum, divisors, update = self._kernels
        self.launch(momentum, stream, options & ~LAST, work=self._matrices)
        if not self._only_accumulates(stream):
            self.launch_warps(divisors, stream, 0, work=self._matrices)
            self._library.enqueue(stream, functools.partial(self._orthogonalise, self._moved_directions()))
        self.launch(update, stream, options & ~ZERO, work=self._matrices)

    def _moved_directions(self):
        """Direction, divisor and scalars of each matrix that this step moves."""
        scalars = scalars_of(self.work.table)
        return [
            (direction, self._divisors[k], scalars[self._rows[k]])
            for k, direction in enumerate(self._directions)
            if self.work.gradients[0, k] != 0 and 0 not in direction.shape
        ]

    def _orthogonalise(self, directions):
        for direction in directions:
            self._products.orthogonalise(*direction)

    def _only_accumulates(self, stream):
        """Whether this is a micro-step for certain: where steps can be stopped, the GPU may be behind the host."""
        shared = self.work.shared
        may_be_behind = np.any(shared.rows[:, OPTIONS] & CHECKED)
        return shared.row[OPTIONS] & MICRO and not may_be_behind and not self.device.is_capturing(stream)


class _Library:
    """Products by the module of the parameters."""

    module: Any = None

    def products(self, matrices, empty):
        """Return what makes these matrices orthogonal, with scratch arrays from ``empty``."""
        return Products(self.module, matrices, empty)

    def view(self, address, shape, dtype):
        """An array of the library over memory of the GPU."""
        raise NotImplementedError

    def enqueue(self, stream, multiply):
        """Call ``multiply`` so that its products are enqueued on ``stream``, those of float32 in full."""
        raise NotImplementedError


class _Torch(_Library):
    """See `_Library`."""

    def __init__(self, device):
        self.module = importlib.import_module("torch")
        self._device = device

    def view(self, address, shape, dtype):
        """See `_Library.view`."""
        return self.module.as_tensor(Region(address, shape, dtype), device=f"cuda:{self._device.ordinal}")

    def enqueue(self, stream, multiply):
        """See `_Library.enqueue`."""
        with self.module.no_grad(), self._in_stream(stream), full_float32_in_torch(self.module):
            multiply()

    def _in_stream(self, stream):
        cuda, ordinal = self.module.cuda, self._device.ordinal
        if cuda.current_stream(ordinal).cuda_stream == stream:
            return contextlib.nullcontext()
        # An external stream of handle 0 would be a new one, not the default stream.
        return cuda.stream(cuda.ExternalStream(stream, device=ordinal) if stream else cuda.default_stream(ordinal))


@contextlib.contextmanager
def full_float32_in_torch(torch):
    """Products of float32 without TensorFloat-32 inside; the setting is the whole process's."""
    settings = torch.backends.cuda.matmul
    if _is_full_in_torch(torch, settings):
        yield
        return
    name, full = ("fp32_precision", "ieee") if hasattr(settings, "fp32_precision") else ("allow_tf32", False)
    before = getattr(settings, name)
    setattr(settings, name, full)
    try:
        yield
    finally:
        setattr(settings, name, before)


def _is_full_in_torch(torch, settings):
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # it was set by the newer interface
        return settings.fp32_precision == "ieee"


class _Cupy(_Library):
    """See `_Library`."""

    def __init__(self, device):
        self.module = importlib.import_module("cupy")
        self._device = device

    def view(self, address, shape, dtype):
        """See `_Library.view`."""
        with self.module.cuda.Device(self._device.ordinal):
            return self.module.asarray(Region(address, shape, dtype))

    def enqueue(self, stream, multiply):
        """See `_Library.enqueue`."""
        with self.module.cuda.Device(self._device.ordinal), full_float32(self.module), self._in_stream(stream):
            multiply()

    def _in_stream(self, stream):
        cuda = self.module.cuda
        if cuda.get_current_stream().ptr == stream:
            return contextlib.nullcontext()
        external = getattr(cuda.Stream, "from_external", None) or cuda.ExternalStream
        return external(stream) if stream else cuda.Stream.null


class Region:
    """Memory of a GPU, for libraries to make an array of without a copy."""

    def __init__(self, address, shape, dtype):
        data = address if math.prod(shape) else 0, False
        self.__cuda_array_interface__ = {
            "data": data, "shape": tuple(shape), "typestr": dtype.str, "strides": None, "version": 3
        }  # fmt: skip


_LIBRARIES = {"torch": _Torch, "cupy": _Cupy}


def _library_of(plan):
    """Find the library that does the products; raises `TypeError` if there is none."""
    name, device = plan.place.library.name, plan.work.device
    if name not in _LIBRARIES:
        raise TypeError(
            f"Muon multiplies matrices with the library of the parameters, and arrays of {name} have none: "
            "hand them over as torch tensors or CuPy arrays, which copies nothing (torch.as_tensor, cupy.asarray)"
        )
    return _LIBRARIES[name](device)
