"""Sums in float64, and maxima, that stay in registers: lanes that blocks are added to, and whole rows.

Element ``i`` goes to lane ``i % FOLD_LANES``, in order, and halves of the lanes are folded into halves: no bit of the
result depends on how wide a processor's vectors are. A loop of Numba's would keep the lanes in memory, and a short row
would take three times as long.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ._numba import cgutils, in_python
from .vectors import REGISTER_BYTES, elements, repeated

FOLD_LANES = 32


def _lanes_in_python(values, fill):
    padded = np.full(-(-max(values.size, 1) // FOLD_LANES) * FOLD_LANES, fill, values.dtype)
    padded[: values.size] = values
    return padded.reshape(-1, FOLD_LANES)


def _fold_in_python(combine, blocks, lanes):
    for block in blocks:
        lanes = combine(lanes, block)
    while lanes.size > 1:
        lanes = combine(*np.split(lanes, 2))
    return lanes[0]


def _sum_in_python(values):
    return _fold_in_python(np.add, _lanes_in_python(values, 0).astype(np.float64), np.zeros(FOLD_LANES))


def _sum_products_in_python(one, other):
    return _sum_in_python(one * other)


def _maximum_in_python(values):
    return _fold_in_python(np.maximum, _lanes_in_python(values, -np.inf), np.full(FOLD_LANES, -np.inf, values.dtype))


@in_python(_sum_in_python)
@intrinsic
def sum_row(typing, values):
    """The sum of a 1-D array, in float64."""

    def build(context, builder, signature, arguments):
        return _Fold(context, builder, signature, types.float64, 0.0).of(arguments, lambda x: x, builder.fadd)

    return types.float64(values), build


@in_python(_sum_products_in_python)
@intrinsic
def sum_row_products(typing, one, other):
    """The sum of the products of two 1-D arrays of one size, rounded in their dtype, in float64."""

    def build(context, builder, signature, arguments):
        return _Fold(context, builder, signature, types.float64, 0.0).of(arguments, builder.fmul, builder.fadd)

    return types.float64(one, other), build


@in_python(_maximum_in_python)
@intrinsic
def maximum_of_row(typing, values):
    """The largest number of a 1-D array; NaN if one is NaN; -inf of none."""

    def build(context, builder, signature, arguments):
        def larger(x, y):
            above, is_nan = builder.fcmp_ordered(">", y, x), builder.fcmp_unordered("uno", y, y)
            return builder.select(builder.or_(above, is_nan), y, x)

        return _Fold(context, builder, signature, values.dtype, -np.inf).of(arguments, lambda x: x, larger)

    return values.dtype(values), build


def _largest_in_python(values):
    return _maximum_in_python(values[values == values])


@in_python(_largest_in_python)
@intrinsic
def largest_of_row(typing, values):
    """The largest number of a 1-D array that is not NaN; -inf of none. Four times as quick as `maximum_of_row`."""

    def build(context, builder, signature, arguments):
        def larger(x, y):
            return builder.select(builder.fcmp_ordered(">", y, x), y, x)

        return _Fold(context, builder, signature, values.dtype, -np.inf).of(arguments, lambda x: x, larger)

    return values.dtype(values), build


class _Fold:
    """The code of one fold, of one array or of several side by side, into lanes of a type that begin with a number."""

    def __init__(self, context, builder, signature, lane, start):
        self._context, self._builder, self._kinds, self._start = context, builder, signature.args, start
        number = signature.args[0].dtype
        self._itemsize = number.bitwidth // 8
        self._width = REGISTER_BYTES // (lane.bitwidth // 8)
        self._given = ir.VectorType(context.get_value_type(number), self._width)
        self._lanes = ir.VectorType(context.get_value_type(lane), self._width)

    def of(self, arguments, term, combine):
        """The number; ``term`` is of a vector of each array, ``combine`` of lanes and terms."""
        builder = self._builder
        arrays = [
            self._context.make_array(kind)(self._context, builder, value=value)
            for kind, value in zip(self._kinds, arguments, strict=True)
        ]
        size, width = builder.extract_value(arrays[0].shape, 0), self._width
        totals = [
            cgutils.alloca_once_value(builder, _filled(self._lanes, self._start)) for _ in range(FOLD_LANES // width)
        ]

        def add(k, vectors):
            made = term(*vectors)
            made = made if made.type == self._lanes else builder.fpext(made, self._lanes)
            builder.store(combine(builder.load(totals[k]), made), totals[k])

        rest, blocks = builder.and_(size, size.type(FOLD_LANES - 1)), builder.udiv(size, size.type(FOLD_LANES))
        with cgutils.for_range(builder, blocks) as loop:
            first = builder.mul(loop.index, size.type(FOLD_LANES))
            for k in range(len(totals)):
                add(k, [self._load(array, builder.add(first, first.type(k * width))) for array in arrays])
        with builder.if_then(builder.icmp_unsigned("!=", rest, rest.type(0))):
            first = builder.sub(size, rest)
            for k in range(len(totals)):
                with builder.if_then(builder.icmp_unsigned(">", rest, rest.type(k * width))):
                    last = builder.sub(rest, rest.type(k * width))
                    place = builder.add(first, first.type(k * width))
                    add(k, [self._load_some(array, place, last) for array in arrays])
        return self._folded([builder.load(total) for total in totals], combine)

    def _pointer(self, array, first):
        return self._builder.bitcast(self._builder.gep(array.data, [first]), self._given.as_pointer())

    def _load(self, array, first):
        return self._builder.load(self._pointer(array, first), align=self._itemsize)

    def _load_some(self, array, first, count):
        """A vector of ``count`` elements from ``first`` on; the others are what lanes begin with."""
        builder, width = self._builder, self._width
        numbers = ir.VectorType(ir.IntType(64), width)
        counts = builder.insert_element(ir.Constant(numbers, ir.Undefined), count, ir.IntType(32)(0))
        counts = builder.shuffle_vector(counts, counts, ir.Constant(ir.VectorType(ir.IntType(32), width), None))
        mask = builder.icmp_unsigned("<", ir.Constant(numbers, list(range(width))), counts)
        kind = self._given
        name = f"v{width}{kind.element.intrinsic_name}"
        signature = ir.FunctionType(kind, [kind.as_pointer(), ir.IntType(32), mask.type, kind])
        load = cgutils.get_or_insert_function(builder.module, signature, f"llvm.masked.load.{name}.p0{name}")
        fill = _filled(kind, self._start)
        return builder.call(load, [self._pointer(array, first), ir.IntType(32)(self._itemsize), mask, fill])

    def _folded(self, vectors, combine):
        """Halves of all lanes combined with halves, until one is left."""
        builder = self._builder
        while len(vectors) > 1:
            half = len(vectors) // 2
            vectors = [combine(*pair) for pair in zip(vectors[:half], vectors[half:], strict=True)]
        (lanes,) = vectors
        while lanes.type.count > 1:
            half = lanes.type.count // 2
            lanes = combine(elements(builder, lanes, 0, half), elements(builder, lanes, half, half))
        return builder.extract_element(lanes, ir.IntType(32)(0))


def _filled(vector, number):
    return ir.Constant(vector, [ir.Constant(vector.element, number)] * vector.count)


# -- lanes that are kept between calls ---------------------------------------------------------------------------------


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
                    add_blocks(repeated(builder, scale, narrow))
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
