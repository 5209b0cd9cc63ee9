"""A whole array folded into one number, in registers: sums in float64, and the maximum.

Element ``i`` goes to lane ``i % FOLD_LANES``, or ``i % LANES``, in order, and halves of the lanes are folded into
halves: no bit of the result depends on how wide a processor's vectors are. A loop of Numba's would keep the lanes in
memory, and a short row would take three times as long. Arrays are contiguous.
"""

import numpy as np
from llvmlite import ir
from numba import errors, types
from numba.extending import intrinsic

from ._numba import cgutils, in_python
from .vectors import REGISTER_BYTES, elements, repeated

FOLD_LANES = 32
"""Of rows that losses and activations fold."""

LANES = 128
"""Of sums that a GPU works out, too, and that are as long as a chunk."""


def _lanes_in_python(values, fill, lanes=FOLD_LANES):
    padded = np.full(-(-max(values.size, 1) // lanes) * lanes, fill, values.dtype)
    padded[: values.size] = values
    return padded.reshape(-1, lanes)


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
        return _Fold(context, builder, signature.args, types.float64, 0.0).of(arguments, lambda x: x, builder.fadd)

    return types.float64(values), build


@in_python(_sum_products_in_python)
@intrinsic
def sum_row_products(typing, one, other):
    """The sum of the products of two 1-D arrays of one size, rounded in their dtype, in float64."""

    def build(context, builder, signature, arguments):
        return _Fold(context, builder, signature.args, types.float64, 0.0).of(arguments, builder.fmul, builder.fadd)

    return types.float64(one, other), build


@in_python(_maximum_in_python)
@intrinsic
def maximum_of_row(typing, values):
    """The largest number of a 1-D array; NaN if one is NaN; -inf of none."""

    def build(context, builder, signature, arguments):
        def larger(x, y):
            above, is_nan = builder.fcmp_ordered(">", y, x), builder.fcmp_unordered("uno", y, y)
            return builder.select(builder.or_(above, is_nan), y, x)

        return _Fold(context, builder, signature.args, values.dtype, -np.inf).of(arguments, lambda x: x, larger)

    return values.dtype(values), build


def _largest_in_python(values):
    return _maximum_in_python(values[values == values])


@in_python(_largest_in_python)
@intrinsic
def largest_of_row(typing, values):
    """The largest number of a 1-D array that is not NaN; -inf of none. Quicker than `maximum_of_row`."""

    def build(context, builder, signature, arguments):
        def larger(x, y):
            return builder.select(builder.fcmp_ordered(">", y, x), y, x)

        return _Fold(context, builder, signature.args, values.dtype, -np.inf).of(arguments, lambda x: x, larger)

    return values.dtype(values), build


def _sum_of_in_python(values):
    return _fold_in_python(np.add, _lanes_in_python(values, 0, LANES).astype(np.float64), np.zeros(LANES))


def _sum_of_squares_in_python(values, scale):
    given = _lanes_in_python(values * scale, 0, LANES).astype(np.float64)
    return _fold_in_python(np.add, given * given, np.zeros(LANES))


@in_python(_sum_of_in_python)
@intrinsic
def sum_of(typing, values):
    """The sum of a 1-D array, in float64 and in `LANES`: the bits of a GPU's."""

    def build(context, builder, signature, arguments):
        fold = _Fold(context, builder, signature.args, types.float64, 0.0, LANES)
        return fold.of(arguments, lambda x: x, builder.fadd)

    return types.float64(values), build


@in_python(_sum_of_squares_in_python)
@intrinsic
def sum_of_squares(typing, values, scale):
    """The sum of ``(values * scale) ** 2``, the product in the values' dtype, the rest as of `sum_of`."""
    number = values.dtype

    def build(context, builder, signature, arguments):
        def add(lanes, vector):
            if number.bitwidth == 64:
                return builder.fadd(lanes, builder.fmul(vector, vector))
            # Squares of float32 numbers are exact in float64: one operation, where there is one, gives the same.
            kind = ir.FunctionType(vector.type, [vector.type] * 3)
            name = f"llvm.fmuladd.v{vector.type.count}{vector.type.element.intrinsic_name}"
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [vector, vector, lanes])

        given, factor = arguments
        fold = _Fold(context, builder, signature.args[:1], types.float64, 0.0, LANES)
        return fold.of([given], lambda x: x, builder.fadd, add, factor)

    return types.float64(values, number), build


class _Fold:
    """The code of one fold, of one array or of several side by side, into lanes of a type that begin with a number."""

    def __init__(self, context, builder, kinds, lane, start, lanes=FOLD_LANES):
        if any(kind.layout != "C" for kind in kinds):
            raise errors.TypingError(f"arrays that are folded must be contiguous, got {kinds}")
        self._context, self._builder, self._kinds, self._start, self._count = context, builder, kinds, start, lanes
        number = kinds[0].dtype
        self._itemsize = number.bitwidth // 8
        self._width = REGISTER_BYTES // (lane.bitwidth // 8)
        self._given = ir.VectorType(context.get_value_type(number), self._width)
        self._lanes = ir.VectorType(context.get_value_type(lane), self._width)

    def of(self, values, term, combine, add=None, factor=None):
        """The number.

        ``term`` is of a vector of each array, ``add`` of lanes and terms, ``combine`` of lanes and lanes, and of terms
        if there is no ``add``. With a ``factor``, which takes a single array, its vectors are multiplied by that first.
        """
        builder = self._builder
        arrays = [
            self._context.make_array(kind)(self._context, builder, value=value)
            for kind, value in zip(self._kinds, values, strict=True)
        ]
        start = _filled(self._lanes, self._start)
        totals = [cgutils.alloca_once_value(builder, start) for _ in range(self._count // self._width)]
        if factor is None:
            self._add_all(arrays, totals, term, add or combine)
        else:
            repeated_factor = repeated(builder, factor, self._given)
            with builder.if_else(builder.fcmp_ordered("==", factor, factor.type(1.0))) as (as_it_is, scaled):
                with as_it_is:
                    self._add_all(arrays, totals, term, add or combine)
                with scaled:
                    self._add_all(arrays, totals, lambda x: term(builder.fmul(x, repeated_factor)), add or combine)
        return self._folded([builder.load(total) for total in totals], combine)

    def _add_all(self, arrays, totals, term, add):
        """Add the terms of all elements to the lanes."""
        builder, width, count = self._builder, self._width, self._count
        size = builder.extract_value(arrays[0].shape, 0)
        rest, blocks = builder.and_(size, size.type(count - 1)), builder.udiv(size, size.type(count))

        def widened(vectors):
            made = term(*vectors)
            return made if made.type == self._lanes else builder.fpext(made, self._lanes)

        with cgutils.for_range(builder, blocks) as loop:
            first = builder.mul(loop.index, size.type(count))
            for k, total in enumerate(totals):
                made = widened([self._load(array, builder.add(first, first.type(k * width))) for array in arrays])
                builder.store(add(builder.load(total), made), total)
        first = builder.sub(size, rest)
        for k, total in enumerate(totals):
            with builder.if_then(builder.icmp_unsigned(">", rest, rest.type(k * width))):
                there = self._mask(builder.sub(rest, rest.type(k * width)))
                place = builder.add(first, first.type(k * width))
                made = widened([self._load_some(array, place, there) for array in arrays])
                made = builder.select(there, made, _filled(self._lanes, self._start))
                builder.store(add(builder.load(total), made), total)

    def _pointer(self, array, first):
        return self._builder.bitcast(self._builder.gep(array.data, [first]), self._given.as_pointer())

    def _load(self, array, first):
        return self._builder.load(self._pointer(array, first), align=self._itemsize)

    def _mask(self, count):
        """Tell which elements of a vector are below a count."""
        numbers = ir.VectorType(ir.IntType(64), self._width)
        counts = repeated(self._builder, count, numbers)
        return self._builder.icmp_unsigned("<", ir.Constant(numbers, list(range(self._width))), counts)

    def _load_some(self, array, first, mask):
        """A vector from ``first`` on; elements that a mask leaves out need not be there."""
        kind = self._given
        name = f"v{self._width}{kind.element.intrinsic_name}"
        signature = ir.FunctionType(kind, [kind.as_pointer(), ir.IntType(32), mask.type, kind])
        load = cgutils.get_or_insert_function(self._builder.module, signature, f"llvm.masked.load.{name}.p0{name}")
        given = self._pointer(array, first), ir.IntType(32)(self._itemsize), mask, _filled(kind, self._start)
        return self._builder.call(load, given)

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


# -- lanes in memory ---------------------------------------------------------------------------------------------------


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
