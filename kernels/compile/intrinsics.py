"""The few operations that Python cannot express: memory at an address, a table row as a NamedTuple; see `tuples`.

Those that kernels use do the same in plain Python, on the host's memory: where ``NUMBA_DISABLE_JIT`` is set they are
run so.
"""

import ctypes
import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import errors, types
from numba.extending import intrinsic

from ._jit import call_interpreted
from ._numba import array_value, cgutils, in_python, without_gil
from .vectors import REGISTER_BYTES, TILE_ROWS, repeated


def host_memory(address, shape, dtype):
    """Make an array over memory at an address, in plain Python."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    memory: Any = (ctypes.c_char * int(nbytes)).from_address(int(address)) if nbytes else bytearray()
    return np.ndarray(shape, dtype, memory)


def _strided_in_python(address, size, stride, dtype):
    first = min(0, (size - 1) * stride)
    memory = host_memory(address + first, ((size - 1) * abs(stride) + np.dtype(dtype).itemsize,), np.uint8)
    return np.ndarray((size,), dtype, memory, -first, (stride,))


@in_python(_strided_in_python)
@intrinsic
def strided_at(typing, address, size, stride, dtype):
    """A 1-D array over ``size`` elements from ``address`` on, ``stride`` bytes apart. It owns nothing."""
    array = types.Array(dtype.dtype, 1, "A")

    def build(context, builder, signature, arguments):
        address, size, stride, _ = arguments
        return array_value(context, builder, array, address, [size], [stride])

    return array(types.intp, types.intp, types.intp, dtype), build


@in_python(lambda address, first, size, dtype: host_memory(address + first * np.dtype(dtype).itemsize, (size,), dtype))
@intrinsic
def array_at(typing, address, first, size, dtype):
    """A contiguous 1-D array over elements ``first`` to ``first + size`` of those at ``address``. It owns nothing."""
    array = types.Array(dtype.dtype, 1, "C")

    def build(context, builder, signature, arguments):
        start, first, size, _ = arguments
        width = context.get_constant(types.intp, array.dtype.bitwidth // 8)
        address = builder.add(start, builder.mul(first, width))
        return array_value(context, builder, array, address, [size], [width])

    return array(types.intp, types.intp, types.intp, dtype), build


@in_python(lambda address, rows, columns, dtype: host_memory(address, (rows, columns), dtype))
@intrinsic
def table_at(typing, address, rows, columns, dtype):
    """A C-contiguous 2-D array of ``rows`` by ``columns`` that starts at ``address``. It owns nothing."""
    array = types.Array(dtype.dtype, 2, "C")

    def build(context, builder, signature, arguments):
        address, rows, columns, _ = arguments
        width = context.get_constant(types.intp, array.dtype.bitwidth // 8)
        return array_value(context, builder, array, address, [rows, columns], [builder.mul(columns, width), width])

    return array(types.intp, types.intp, types.intp, dtype), build


@in_python(lambda scalars, table, row, column: scalars(*table[row, column : column + len(scalars._fields)]))
@intrinsic
def scalars_at(typing, scalars, table, row, column):
    """The NamedTuple ``scalars`` whose fields lie side by side in a C-contiguous table, from ``[row, column]`` on."""
    fields = len(scalars.instance_class._fields)
    result = types.NamedUniTuple(table.dtype, fields, scalars.instance_class)

    def build(context, builder, signature, arguments):
        _, table_value, row_index, first = arguments
        array = context.make_array(table)(context, builder, value=table_value)
        width = builder.extract_value(array.shape, 1)
        start = builder.add(builder.mul(row_index, width), first)
        where = [builder.add(start, start.type(k)) for k in range(fields)]
        values = [builder.load(builder.gep(array.data, [index])) for index in where]
        return context.make_tuple(builder, result, values)

    return result(scalars, table, types.intp, types.intp), build


@in_python(call_interpreted)
@intrinsic
def call_kernel(typing, address, first, last, handle, options):
    """Call the C function of four int64 at an address."""
    number = types.int64

    def build(context, builder, signature, arguments):
        _call(builder, ir.VoidType(), arguments[0], arguments[1:])
        return context.get_dummy_value()

    return types.void(number, number, number, number, number), build


@in_python(call_interpreted)
@intrinsic
def call_kernel_without_gil(typing, address, first, last, handle, options):
    """`call_kernel` by a thread that holds the GIL, which others may have meanwhile."""
    number = types.int64

    def build(context, builder, signature, arguments):
        with without_gil(context, builder):
            _call(builder, ir.VoidType(), arguments[0], arguments[1:])
        return context.get_dummy_value()

    return types.void(number, number, number, number, number), build


@in_python(lambda address, numbers: call_interpreted(address, *numbers))
@intrinsic
def call_for_number(typing, address, numbers):
    """Call the C function at an address with a tuple of int64, which may be addresses; it returns an int64."""

    def build(context, builder, signature, arguments):
        return _call(builder, ir.IntType(64), arguments[0], cgutils.unpack_tuple(builder, arguments[1], len(numbers)))

    return types.int64(types.int64, numbers), build


@intrinsic
def call_number(typing, address):
    """The int that a C function without arguments gives."""

    def build(context, builder, signature, arguments):
        return builder.sext(_call(builder, ir.IntType(32), arguments[0], []), ir.IntType(64))

    return types.int64(types.int64), build


@intrinsic
def read_clock(typing, address, clock, reading):
    """Call ``clock_gettime`` at an address: what a clock says goes to another address, seconds and nanoseconds."""
    number = types.int64

    def build(context, builder, signature, arguments):
        function, clock, reading = arguments
        pointer = builder.inttoptr(reading, ir.IntType(8).as_pointer())
        _call(builder, ir.IntType(32), function, [builder.trunc(clock, ir.IntType(32)), pointer])
        return context.get_dummy_value()

    return types.void(number, number, number), build


@intrinsic
def call_parallel(typing, address, function, task, threads):
    """Call ``GOMP_parallel`` at an address: the function at another, with ``task``, on so many threads."""
    number = types.int64

    def build(context, builder, signature, arguments):
        start, function, task, threads = arguments
        unsigned = ir.IntType(32)
        _call(builder, ir.VoidType(), start, [function, task, builder.trunc(threads, unsigned), unsigned(0)])
        return context.get_dummy_value()

    return types.void(number, number, number, number), build


@in_python(lambda address: None)
@intrinsic
def prefetch(typing, address):
    """Ask the caches for the line at an address, which need not be anybody's."""

    def build(context, builder, signature, arguments):
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [builder.inttoptr(arguments[0], pointer), number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(types.int64), build


def _call(builder, result, address, arguments):
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(builder.inttoptr(address, kind.as_pointer()), arguments)


def _multiply_in_python(wide, left, left_row, left_step, right, right_step, product, product_row, depth):
    rows, columns = np.arange(TILE_ROWS), np.arange(wide * REGISTER_BYTES // left.itemsize)
    sums = np.zeros((rows.size, columns.size), left.dtype)
    for k in range(depth):
        sums += left[rows * left_row + k * left_step, None] * right[columns + k * right_step]
    product[rows[:, None] * product_row + columns] = sums


@in_python(_multiply_in_python)
@intrinsic(prefer_literal=True)
def multiply_tile(typing, wide, left, left_row, left_step, right, right_step, product, product_row, depth):
    """One tile of a matrix product, `TILE_ROWS` by ``wide`` registers, 1 or 2, its sums in registers.

    The arrays begin at the tile's first row and column. ``left_row`` and ``product_row`` are the elements from row to
    row, ``left_step`` and ``right_step`` those from one to the next of the ``depth`` products that are summed, in
    order; product and sum are rounded once where the processor can do that, else each.
    """
    if not isinstance(wide, types.IntegerLiteral):
        return None
    number = left.dtype
    width = number.bitwidth // 8
    columns = wide.literal_value * REGISTER_BYTES // width

    def build(context, builder, signature, arguments):
        _, left_array, left_row, left_step, right_array, right_step, product_array, product_row, depth = arguments
        left_data, right_data, product_data = (
            context.make_array(kind)(context, builder, value=value).data
            for kind, value in ((left, left_array), (right, right_array), (product, product_array))
        )
        vector = ir.VectorType(context.get_value_type(number), columns)
        name = f"llvm.fmuladd.v{columns}{vector.element.intrinsic_name}"
        fused = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
        sums = [cgutils.alloca_once_value(builder, ir.Constant(vector, None)) for _ in range(TILE_ROWS)]

        def at(start, stride, index):
            return builder.gep(start, [builder.mul(stride, index)])

        with cgutils.for_range(builder, depth) as loop:
            below = builder.bitcast(at(right_data, right_step, loop.index), vector.as_pointer())
            row = builder.load(below, align=width)
            column = at(left_data, left_step, loop.index)
            for r, total in enumerate(sums):
                factor = repeated(builder, builder.load(at(column, left_row, left_row.type(r))), vector)
                builder.store(builder.call(fused, [factor, row, builder.load(total)]), total)
        for r, total in enumerate(sums):
            where = builder.bitcast(at(product_data, product_row, product_row.type(r)), vector.as_pointer())
            builder.store(builder.load(total), where, align=width)
        return context.get_dummy_value()

    strides = types.intp, types.intp
    return types.none(wide, left, *strides, right, types.intp, product, *strides), build


# Of tuples of arrays, whatever their number: as functions that call themselves for the rest of a tuple they would be
# compiled once for every length, which took a third of the time that a step takes to compile.


@in_python(
    lambda rows, addresses, segment, first, size, dtype: tuple(
        array_at(addresses[row, segment], first, size, dtype) for row in rows
    )
)
@intrinsic
def arrays_at(typing, rows, addresses, segment, first, size, dtype):
    """A tuple of arrays, one for each of ``rows`` of the address table: elements ``first`` to ``first + size`` each."""
    array = types.Array(dtype.dtype, 1, "C")
    result = types.UniTuple(array, len(rows))

    def build(context, builder, signature, arguments):
        row_values, table_value, segment, first, size, _ = arguments
        table = context.make_array(addresses)(context, builder, value=table_value)
        width = context.get_constant(types.intp, array.dtype.bitwidth // 8)
        columns = builder.extract_value(table.shape, 1)
        made = []
        for row in cgutils.unpack_tuple(builder, row_values, len(rows)):
            place = builder.add(builder.mul(row, columns), segment)
            address = builder.add(builder.load(builder.gep(table.data, [place])), builder.mul(first, width))
            made.append(array_value(context, builder, array, address, [size], [width]))
        return context.make_tuple(builder, result, made)

    return result(rows, addresses, types.intp, types.intp, types.intp, dtype), build


def _elements_of(context, builder, arrays, value, index):
    """Pointers to one element of each of a tuple of arrays."""
    parts = cgutils.unpack_tuple(builder, value, len(arrays))
    made = (context.make_array(kind)(context, builder, value=part) for kind, part in zip(arrays, parts, strict=True))
    return [builder.gep(array.data, [index]) for array in made]


@in_python(lambda arrays, i: tuple(array[i] for array in arrays))
@intrinsic
def load(typing, arrays, i):
    """Element ``i``, from 0, of each of a tuple of contiguous arrays, as a tuple."""
    result = types.Tuple([array.dtype for array in arrays])

    def build(context, builder, signature, arguments):
        places = _elements_of(context, builder, arrays, *arguments)
        return context.make_tuple(builder, result, [builder.load(place) for place in places])

    return result(arrays, types.intp), build


def _store_in_python(arrays, i, values):
    for array, value in zip(arrays, values, strict=True):
        array[i] = value


@in_python(_store_in_python)
@intrinsic
def store(typing, arrays, i, values):
    """Write each of a tuple of values to element ``i``, from 0, of its array, in the array's dtype."""
    if len(arrays) != len(values):
        raise errors.TypingError(f"the rule has {len(arrays)} slots but returned {len(values)}")

    def build(context, builder, signature, arguments):
        value, index, given = arguments
        parts = cgutils.unpack_tuple(builder, given, len(values))
        places = _elements_of(context, builder, arrays, value, index)
        for array, kind, part, place in zip(arrays, values, parts, places, strict=True):
            builder.store(context.cast(builder, part, kind, array.dtype), place)
        return context.get_dummy_value()

    return types.none(arrays, types.intp, values), build
