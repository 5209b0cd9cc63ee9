"""Muon: a fused pass for the momentum, matrix products in NumPy's BLAS, a fused pass for the parameters.

The products are as reproducible as the BLAS: the same bits on one machine with one number of BLAS threads.
"""

from typing import NamedTuple

import numpy as np

from . import cpu, launch
from .engines import Elementwise
from .layout import ACCUMULATED, ADDRESS, AVERAGED, CLIP, DIRECT, LAYOUT, OVERWRITE, STAGED, ZERO, Control
from .registry import RULES, rule
from .rules.sgd import SgdScalars


class MuonScalars(NamedTuple):
    """What `muon` receives, and the engine after it."""

    learning_rate: float
    one_minus_momentum: float
    grad_weight: float  # 1 with Nesterov's momentum, else 0
    momentum_weight: float  # the momentum with Nesterov's, else 1
    rms_rate: float  # negative: none
    a: float
    b: float
    c: float
    steps: float


@rule(MuonScalars)
def muon(param, grad, slots, s):
    """Muon before its matrix products: the direction to be made orthogonal.

    m ← μ m + g;  d = g + μ m (Nesterov) or m;  O = NS(d);  p ← p − η √max(rows, columns) · rms_rate · O

    NS: X = d / (‖d‖ + 1e-7), then some times A = X Xᵀ, X ← a X + (b A + c A²) X, the smaller side first.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; the scale is that of Liu et al. 2025,
    https://arxiv.org/abs/2502.16982, as in Keras.
    """
    momentum, _ = slots
    momentum = momentum + (grad - momentum * s.one_minus_momentum)
    return param, (momentum, s.grad_weight * grad + s.momentum_weight * momentum)


class Orthogonal(Elementwise):
    """Muon's step: momentum, products, update. Scratch: the directions, and products of the largest matrix."""

    def __init__(self, plan):
        super().__init__(plan)
        common = self.work
        self._directions = [np.zeros([p.array.shape[axis] for axis in p.axes], self.dtype) for p in plan.parameters]
        self._rows = plan.rows
        self._products = _Products(self._directions, self.dtype)
        where = [direction.ctypes.data for direction in self._directions]
        addresses = np.concatenate([common.addresses, np.array([where], np.int64)])
        self._momentum_work = launch.Work(
            common.chunks, addresses, common.gradients, common.layouts, common.table, factors=common.factors
        )
        self._where = np.array(where, np.int64)
        table = np.zeros((len(common.table), cpu.CONTROLS + 1), self.dtype)
        self._update_work = launch.Work(
            common.chunks, common.addresses, np.full_like(common.gradients, DIRECT), common.layouts, table
        )

    def _compile(self, scalars, slots):
        self._momentum = launch.kernel(cpu.step, scalars, slots + 1, self.dtype)
        self._update = launch.kernel(cpu.step, SgdScalars, 0, self.dtype)

    def __call__(self, options):
        """Do the step that the work's tables describe."""
        launch.launch(self._momentum, self._momentum_work, options & (ACCUMULATED | ZERO | STAGED))
        update, present = self._update_work, self.work.gradients[ADDRESS] != 0
        scalars = [MuonScalars(*row[cpu.CONTROLS :].tolist()) for row in self.work.table]
        for k, direction in enumerate(self._directions):
            s = scalars[self._rows[k]]
            if present[k] and direction.size:
                with np.errstate(over="ignore", invalid="ignore"):
                    self._products.orthogonalise(direction, s)
                update.factors[CLIP, k] = 1.0 if s.rms_rate < 0 else np.sqrt(max(direction.shape)) * s.rms_rate
        update.table[:, : cpu.CONTROLS] = self.work.table[:, : cpu.CONTROLS]
        control = Control._fields.index
        for field, value in (("unscale", 1.0), ("divisor", 1.0), ("limit", np.inf), ("decay", 0.0)):
            update.table[:, control(field)] = value
        update.table[:, cpu.CONTROLS] = [s.learning_rate for s in scalars]
        update.gradients[ADDRESS] = np.where(present, self._where, 0)
        update.gradients[LAYOUT] = DIRECT
        launch.launch(self._update, update, options & (AVERAGED | OVERWRITE))


class _Products:
    """The Newton–Schulz iteration, in scratch arrays that are made once."""

    def __init__(self, matrices, dtype):
        small = max((min(m.shape) for m in matrices if m.size), default=0)
        large = max((m.size for m in matrices), default=0)
        self._squares = [np.empty(small * small, dtype) for _ in range(2)]
        self._wide = [np.empty(large, dtype) for _ in range(2)]

    def orthogonalise(self, direction, s):
        """Replace a matrix by a nearly orthogonal one of its shape."""
        tall = direction.shape[0] > direction.shape[1]
        source = direction.T if tall else direction
        rows, columns = source.shape
        x, product = (wide[: rows * columns].reshape(rows, columns) for wide in self._wide)
        gram, square = (flat[: rows * rows].reshape(rows, rows) for flat in self._squares)
        norm = np.sqrt(np.vdot(source, source))
        np.divide(source, norm + source.dtype.type(1e-7), out=x)
        a, b, c = (source.dtype.type(value) for value in (s.a, s.b, s.c))
        for _ in range(int(s.steps)):
            np.matmul(x, x.T, out=gram)
            np.matmul(gram, gram, out=square)
            gram *= b
            square *= c
            gram += square
            np.matmul(gram, x, out=product)
            x *= a
            x += product
        source[...] = x


RULES[MuonScalars] = RULES[MuonScalars]._replace(engine=Orthogonal)
