"""The few operations that Python cannot express: memory at an address, a table row as a NamedTuple; see `tuples`.

Those that kernels use do the same in plain Python, on the host's memory: the CUDA simulator runs them so, and so does
everything where ``NUMBA_DISABLE_JIT`` is set.
"""

import ctypes
import math
from typing import Any

import numpy as np
from llvmlite import binding as llvm
from llvmlite import ir
from numba import errors, types
from numba.extending import intrinsic

from ._jit import call_interpreted
from ._numba import array_value, cgutils, in_python, without_gil


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


def _folded_in_python(values, count):
    while count > 1:
        count //= 2
        values = values[:count] + values[count : 2 * count]
    return values[0]


@in_python(_folded_in_python)
@intrinsic(prefer_literal=True)
def folded(typing, values, count):
    """The sum of the first ``count`` elements, a constant power of two; halves are added to halves, in registers."""

    def build(context, builder, signature, arguments):
        array = context.make_array(values)(context, builder, value=arguments[0])
        vector = ir.VectorType(context.get_value_type(values.dtype), count.literal_value)
        start = builder.bitcast(array.data, vector.as_pointer())
        total = builder.load(start, align=values.dtype.bitwidth // 8)
        while total.type.count > 1:
            width = total.type.count // 2
            halves = (elements(builder, total, first, width) for first in (0, width))
            total = builder.fadd(*halves)
        return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))

    return values.dtype(values, count), build


def lanes_adder(count, in_python_code, in_llvm):
    """Make a function ``(values, blocks, scale, lanes)`` that adds terms of so many blocks of values to as many lanes.

    Lane ``j`` gets the terms of values ``j``, ``j + count`` and so on, in this order. Lanes stay in registers: a loop
    of Numba's would keep them in memory. No number is multiplied by a scale of one.

    Parameters
    ----------
    count : int
        Lanes, and elements of a block: a multiple of what a register holds.
    in_python_code : function
        From ``values * scale`` in float64 to the terms.
    in_llvm : function
        ``(builder, vector, lanes, is_exact)`` → the lanes with the terms of a vector added; whether squares are exact,
        as those of float32 numbers in float64 are.
    """

    def add_in_python(values, blocks, scale, lanes):
        for block in values[: blocks * count].reshape(blocks, count):
            lanes[:count] += in_python_code((block * scale).astype(np.float64))

    @in_python(add_in_python)
    @intrinsic
    def add(typing, values, blocks, scale, lanes):
        number = values.dtype

        def build(context, builder, signature, arguments):
            given, blocks, scale, result = arguments
            given, result = (
                context.make_array(kind)(context, builder, value=value).data
                for kind, value in ((values, given), (lanes, result))
            )
            is_narrow, width = number.bitwidth < 64, REGISTER_BYTES // 8
            narrow, vector = (ir.VectorType(kind, width) for kind in (context.get_value_type(number), ir.DoubleType()))

            def at(array, first, kind):
                return builder.bitcast(builder.gep(array, [first]), kind.as_pointer())

            places = [at(result, ir.Constant(ir.IntType(64), k), vector) for k in range(0, count, width)]
            totals = [cgutils.alloca_once_value(builder, builder.load(place, align=8)) for place in places]

            def add_blocks(factor):
                with cgutils.for_range(builder, blocks) as loop:
                    first = builder.mul(loop.index, loop.index.type(count))
                    for k, total in enumerate(totals):
                        start = at(given, builder.add(first, first.type(k * width)), narrow)
                        block = builder.load(start, align=number.bitwidth // 8)
                        block = builder.fmul(block, factor) if factor else block
                        block = builder.fpext(block, vector) if is_narrow else block
                        builder.store(in_llvm(builder, block, builder.load(total), is_narrow), total)

            with builder.if_else(builder.fcmp_ordered("==", scale, scale.type(1.0))) as (as_it_is, scaled):
                with as_it_is:
                    add_blocks(None)
                with scaled:
                    add_blocks(_repeated(builder, scale, narrow))
            for place, total in zip(places, totals, strict=True):
                builder.store(builder.load(total), place, align=8)
            return context.get_dummy_value()

        return types.void(values, types.intp, number, lanes), build

    return add


def add_vector(builder, vector, lanes, is_exact):
    """Add the vector itself, for `lanes_adder`."""
    return builder.fadd(lanes, vector)


def add_squares(builder, vector, lanes, is_exact):
    """Add its squares, for `lanes_adder`; in one operation where that gives the same."""
    if not is_exact:
        return builder.fadd(lanes, builder.fmul(vector, vector))
    kind = ir.FunctionType(vector.type, [vector.type] * 3)
    name = f"llvm.fmuladd.v{vector.type.count}{vector.type.element.intrinsic_name}"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [vector, vector, lanes])


def elements(builder, vector, first, count):
    """So many elements of a vector, from ``first`` on."""
    where = ir.Constant(ir.VectorType(ir.IntType(32), count), list(range(first, first + count)))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), where)


def _registers():
    """Count the vector registers of this processor, and their bytes."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 32, 64
    return (16, 32) if features.get("avx") else (32 if features.get("neon") else 16, 16)


TILE_ROWS, REGISTER_BYTES = _registers()[0] // 4, _registers()[1]
"""Rows of a tile of `multiply_tile`, whose sums take half of the registers; bytes of one."""


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
                factor = _repeated(builder, builder.load(at(column, left_row, left_row.type(r))), vector)
                builder.store(builder.call(fused, [factor, row, builder.load(total)]), total)
        for r, total in enumerate(sums):
            where = builder.bitcast(at(product_data, product_row, product_row.type(r)), vector.as_pointer())
            builder.store(builder.load(total), where, align=width)
        return context.get_dummy_value()

    strides = types.intp, types.intp
    return types.none(wide, left, *strides, right, types.intp, product, *strides), build


def _repeated(builder, number, vector):
    """A vector whose elements are all the same."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None)
    return builder.shuffle_vector(first, undefined, zeros)


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
