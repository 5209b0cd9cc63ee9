"""How an activation is computed: kernels compiled for it, and how a call's arrays are handed to them."""

from typing import Any, NamedTuple

from ..compile._jit import inlined_callee
from ..cpu import rowwise
from ..cpu.rowwise import BLOCK, Nothing
from . import loops, rows
from .loops import Activation


class RowActivation(NamedTuple):
    """A pair of loops over rows."""

    name: str
    forward: Any
    backward: Any


SOFTMAX = RowActivation("softmax", rows.softmax_forward, rows.softmax_backward)
LOG_SOFTMAX = RowActivation("log_softmax", rows.log_softmax_forward, rows.log_softmax_backward)
SPARSEMAX = RowActivation("sparsemax", rows.sparsemax_forward, rows.sparsemax_backward)


def run_forward(activation, y, x, scalars):
    """y ← f(x). Requires C-contiguous arrays of one shape and dtype; y may be x."""
    kernel = rowwise.kernel(loops.forward, x.dtype, activation.scalars, FORMULA=activation.forward)
    _run_elements(kernel, (y, x), scalars)


def run_backward(activation, dx, dy, x, y, scalars):
    """dx ← dy f'(x). Requires C-contiguous arrays of one shape and dtype; dx may be any of the others."""
    kernel = rowwise.kernel(loops.backward, dy.dtype, activation.scalars, FORMULA=activation.derivative)
    _run_elements(kernel, (dx, dy, x, y), scalars)


def _run_elements(kernel, arrays, scalars):
    table, elements = rowwise.scalars_table(scalars, arrays[0].dtype), arrays[0].size
    rowwise.run(kernel, rowwise.Work((*arrays, table), elements, -(-elements // BLOCK)), 0)


def run_rows_forward(activation, y, x):
    """y ← f(x) of a `RowActivation`. Requires C-contiguous [rows, columns] of one dtype; y may be x."""
    rowwise.run(rowwise.kernel(activation.forward, x.dtype, Nothing), rowwise.Work((y, x), x.size, len(x)), 0)


def run_rows_backward(activation, dx, dy, y):
    """dx ← dy f'(x) of a `RowActivation`. Requires C-contiguous [rows, columns] of one dtype; dx may be dy or y."""
    rowwise.run(rowwise.kernel(activation.backward, y.dtype, Nothing), rowwise.Work((dx, dy, y), y.size, len(y)), 0)


def run_gate(y, x):
    """y ← a σ(b). Requires C-contiguous y [rows, columns] and x [rows, 2 columns], apart."""
    _run_gate(loops.gated_forward, (y, x), y)


def run_gate_backward(dx, dy, x):
    """dx ← dy times the derivatives. Requires C-contiguous dx, x [rows, 2 columns], dy [rows, columns]; dx may be x."""
    _run_gate(loops.gated_backward, (dx, dy, x), dy)


def _run_gate(loop, arrays, half):
    rows, columns = half.shape
    kernel = rowwise.kernel(loop, half.dtype, Nothing)
    rowwise.run(kernel, rowwise.Work(arrays, half.size, rows * -(-columns // BLOCK)), 0)


def activation_of(forward, derivative, scalars):
    """The activation of two users' functions ``forward(x, s)`` and ``derivative(x, y, s)``."""
    return Activation(inlined_callee(forward), inlined_callee(derivative), scalars, "xy")
