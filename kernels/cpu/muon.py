"""Muon: a fused pass for the momentum, matrix products, a fused pass for the parameters.

Products of small matrices are compiled, those of large ones NumPy's BLAS. These are as reproducible as the BLAS: the
same bits on one machine with one number of BLAS threads.
"""

import math
from functools import partial
from operator import setitem
from typing import NamedTuple

import numpy as np

from ..compile._jit import callee
from ..compile.intrinsics import scalars_at
from ..layout import (
    ACCUMULATED,
    ADDRESS,
    AVERAGED,
    CLIP,
    DIRECT,
    EXTRA,
    GROUP,
    LAYOUT,
    OVERWRITE,
    SEGMENT,
    STAGED,
    ZERO,
    Control,
)
from ..maths import maximum, sqrt
from ..registry import RULES, rule
from ..rules.sgd import SgdScalars
from ..tables import end_of_segment, tables_at
from . import launch, loops, newton_schulz
from .engines import Elementwise
from .newton_schulz import factor_of, is_small
from .reduction import row_sum

# Replaced in each specialisation.
DTYPE = np.float32
SCALARS = Control


class MuonScalars(NamedTuple):
    """What `muon` receives, and the engine after it."""

    learning_rate: float
    take: float  # share of the gradient that enters the momentum: 1, in torch 1 − μ
    one_minus_momentum: float
    grad_weight: float  # with Nesterov's momentum as `take`, else 0
    momentum_weight: float  # the momentum with Nesterov's, else 1
    rms_rate: float  # negative: none
    a: float
    b: float
    c: float
    steps: float
    least_norm: float  # a direction is divided by max(‖d‖, least_norm) + epsilon
    epsilon: float


@rule(MuonScalars, slots=("momentum",))
def muon(param, grad, slots, s):
    """Muon before its matrix products: the direction to be made orthogonal.

    m ← μ m + w g;  d = w g + μ m (Nesterov) or m;  O = NS(d);  p ← p − η √max(rows, columns) · rms_rate · O

    NS: X = d / (max(‖d‖, l) + ε), then some times A = X Xᵀ, X ← a X + (b A + c A²) X, the smaller side first.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; the scale is that of Liu et al. 2025,
    https://arxiv.org/abs/2502.16982, as in Keras, where w = 1, l = 0 and ε = 1e-7. In torch w = 1 − μ and ε = 0.
    """
    momentum, _ = slots
    momentum = momentum + (s.take * grad - momentum * s.one_minus_momentum)
    return param, (momentum, s.grad_weight * grad + s.momentum_weight * momentum)


def norms_pass(handle):
    """Write what each direction is divided by first to ``factors[EXTRA]``; after `loops.norms` of them, serial."""
    t = tables_at(handle, DTYPE)
    k = 0
    while k < t.chunks.shape[0]:
        end = end_of_segment(t.chunks, k)
        s = scalars_at(SCALARS, t.table, t.chunks[k, GROUP], loops.CONTROLS)
        t.factors[EXTRA, t.chunks[k, SEGMENT]] = divisor_of(row_sum(t.sums[0, k:end]), s, DTYPE)
        k = end


@callee
def divisor_of(squares, s, dtype):
    """Return the divisor of a direction, from the sum of its squares."""
    return maximum(dtype(sqrt(squares)), s.least_norm) + s.epsilon


class Orthogonal(Elementwise):
    """Muon's step: momentum, products, update. Scratch: the directions, and products of the largest matrix."""

    reads_tables = True
    row_step = None

    def __init__(self, plan):
        super().__init__(plan)
        common = self.work
        self._directions = [np.zeros(shape, self.dtype) for shape in shapes_in_memory(plan)]
        self._rows = plan.rows
        self._products = HostProducts(self._directions, self.dtype)
        where = [direction.ctypes.data for direction in self._directions]
        addresses = np.concatenate([common.addresses, np.array([where], np.int64)])
        self._momentum_work = launch.Work(
            common.chunks, addresses, common.gradients, common.layouts, common.table, factors=common.factors
        )
        self._where = np.array(where, np.int64)
        table = np.zeros_like(common.table)  # SgdScalars are the first of MuonScalars
        control = Control(unscale=1.0, divisor=1.0, limit=np.inf, decay=0.0, keep=0.0)
        table[:, : loops.CONTROLS] = control
        self._update_work = launch.Work(
            common.chunks, common.addresses, np.full_like(common.gradients, DIRECT), common.layouts, table
        )
        update, shapes = self._update_work, [direction.shape for direction in self._directions]
        small = newton_schulz.table_of(shapes, plan.rows)
        self._small_work = launch.Work(
            small, update.addresses, update.gradients, update.layouts, table, factors=update.factors
        )
        self._large = [k for k, shape in enumerate(shapes) if 0 not in shape and not is_small(shape)]
        self.uses_numpy = bool(self._large)

    def _compile(self, scalars, slots):
        self._momentum = launch.kernel(loops.step, scalars, slots + 1, self.dtype)
        self._norms = launch.kernel(loops.norms, None, 0, self.dtype)
        self._divisors = launch.serial_function(norms_pass, 0, scalars, slots, self.dtype)
        self._small = launch.kernel(newton_schulz.orthogonal_pass, scalars, slots, self.dtype)
        self._update = launch.kernel(loops.step, SgdScalars, 0, self.dtype)

    def calls(self, options):
        """See `Elementwise.calls`."""
        update = self._update_work
        self._follow_tables()
        return [
            launch.call(self._momentum, self._momentum_work, options & (ACCUMULATED | ZERO | STAGED)),
            launch.call(self._norms, update, 0),
            partial(self._divisors, update.handle),
            launch.call(self._small, self._small_work, 0),
            *self._large_products(),
            launch.call(self._update, update, options & (AVERAGED | OVERWRITE)),
        ]

    def _follow_tables(self):
        """Have the update's tables say what the step's tables say."""
        common, update = self.work, self._update_work
        keep = Control._fields.index("keep")
        update.table[:, loops.CONTROLS :] = common.table[:, loops.CONTROLS :]
        update.table[:, keep] = common.table[:, keep]
        update.gradients[ADDRESS] = np.where(common.gradients[ADDRESS] != 0, self._where, 0)
        update.gradients[LAYOUT] = DIRECT

    def _large_products(self):
        """Yield what makes the directions of large matrices orthogonal, of those with a gradient."""
        scalars, update = scalars_of(self.work.table), self._update_work
        for k in self._large:
            direction, s = self._directions[k], scalars[self._rows[k]]
            if update.gradients[ADDRESS, k]:
                update.factors[CLIP, k] = factor_of(max(direction.shape), s.rms_rate)
                yield from self._products.calls(direction, update.factors[EXTRA, k : k + 1], s)


def shapes_in_memory(plan):
    """The parameters' extents, the slowest axis first."""
    return [tuple(p.array.shape[axis] for axis in p.axes) for p in plan.parameters]


def scalars_of(table):
    """The rule's scalars in each row of a scalars table."""
    return [MuonScalars(*row[loops.CONTROLS :].tolist()) for row in table]


class Products:
    """The Newton–Schulz iteration, in scratch arrays that are made once.

    Parameters
    ----------
    library : module
        NumPy, CuPy or torch; they agree in what is used of them. Nothing here allocates: the work can be captured.
    matrices : list of arrays
        Of that library: all that will be made orthogonal.
    empty : function
        Gives a new 1-D array of so many elements.
    """

    def __init__(self, library, matrices, empty):
        shapes = [tuple(matrix.shape) for matrix in matrices if 0 not in matrix.shape]
        small, large = max(map(min, shapes), default=0), max(map(math.prod, shapes), default=0)
        self._library = library
        self._squares = [empty(small * small) for _ in range(2)]
        self._wide = [empty(large) for _ in range(2)]

    def orthogonalise(self, direction, divisor, s):
        """Replace a matrix by a nearly orthogonal one of its shape; ``divisor`` is its norm."""
        with np.errstate(all="ignore"):
            for call in self.calls(direction, divisor, s):
                call()

    def calls(self, direction, divisor, s):
        """The library's functions that `orthogonalise` calls, with their arguments."""
        tall = direction.shape[0] > direction.shape[1]
        source = direction.T if tall else direction
        rows, columns = source.shape
        x, product = (wide[: rows * columns].reshape(rows, columns) for wide in self._wide)
        gram, square = (flat[: rows * rows].reshape(rows, rows) for flat in self._squares)
        matmul, multiply, add = self._library.matmul, self._library.multiply, self._library.add
        iteration = [
            partial(matmul, x, x.T, out=gram),
            partial(matmul, gram, gram, out=square),
            partial(multiply, gram, s.b, out=gram),
            partial(multiply, square, s.c, out=square),
            partial(add, gram, square, out=gram),
            partial(matmul, gram, x, out=product),
            partial(multiply, x, s.a, out=x),
            partial(add, x, product, out=x),
        ]
        return [
            partial(self._library.divide, source, divisor, out=x),
            *iteration * int(s.steps),
            partial(setitem, source, Ellipsis, x),
        ]


class HostProducts(Products):
    """In memory of the host: small matrices without BLAS."""

    def __init__(self, matrices, dtype):
        large = [matrix for matrix in matrices if not is_small(matrix.shape)]
        super().__init__(np, large, lambda size: np.empty(size, dtype))
        self._dtype = dtype

    def orthogonalise(self, direction, divisor, s):
        """See `Products.orthogonalise`."""
        if is_small(direction.shape):
            small = newton_schulz.compiled(self._dtype)
            divisor = np.ravel(divisor)[0]  # on a GPU it is an array
            small(direction, *map(self._dtype.type, (divisor, s.a, s.b, s.c, s.steps)))
        else:
            super().orthogonalise(direction, divisor, s)


RULES[MuonScalars] = RULES[MuonScalars]._replace(engine=Orthogonal)
