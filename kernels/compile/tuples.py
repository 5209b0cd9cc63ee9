"""Operations on single numbers and on tuples of them that Python cannot express; `intrinsics` has those on memory.

They too do the same in plain Python.
"""

import math
from fractions import Fraction

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ._numba import in_python
from .intrinsics import host_memory


@in_python(lambda number: number.view(f"i{number.itemsize}"))
@intrinsic
def bits_of(typing, number):
    """The bit pattern of a float32 or float64, as an integer of the same width."""
    integer = types.Integer.from_bitwidth(number.bitwidth, True)

    def build(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(integer))

    return integer(number), build


def _number_in_python(bits, like):
    dtype = np.asarray(like).dtype
    return np.asarray(bits).astype(f"i{dtype.itemsize}").view(dtype)[()]


@in_python(_number_in_python)
@intrinsic
def number_of(typing, bits, like):
    """The float of the type of ``like`` whose bit pattern is the low bits of an integer."""
    integer = types.Integer.from_bitwidth(like.bitwidth, True)

    def build(context, builder, signature, arguments):
        narrow = context.cast(builder, arguments[0], signature.args[0], integer)
        return builder.bitcast(narrow, context.get_value_type(like))

    return like(bits, like), build


@in_python(lambda condition, yes, no: yes if condition else no)
@intrinsic
def where(typing, condition, yes, no):
    """``yes if condition else no``, both of one type and worked out: no branch that keeps a loop from vectorising."""

    def build(context, builder, signature, arguments):
        return builder.select(*arguments)

    return yes(types.boolean, yes, yes), build


def _fused_in_python(x, y, z):
    if not (np.isfinite(x) and np.isfinite(y)):
        return x * y + z
    if not np.isfinite(z):
        return z
    exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
    if not exact:
        return x * y + z  # the sign of zero
    try:
        near = float(exact)
    except OverflowError:
        near = math.inf if exact > 0 else -math.inf
    if type(x) is np.float32 and near != exact and not np.float64(near).view(np.int64) & 1:
        # An odd last digit is rounded once more, and to the right side.
        near = math.nextafter(near, math.inf if exact > near else -math.inf)
    return type(x)(near)


@in_python(_fused_in_python)
@intrinsic
def fused(typing, x, y, z):
    """``x * y + z``, rounded once."""

    def build(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return x(x, x, x), build


@in_python(lambda value, like: np.asarray(like).dtype.type(value))
@intrinsic
def constant(typing, value, like):
    """``value`` in the type of ``like``: the way to write a number such as 0.5 in a rule."""

    def build(context, builder, signature, arguments):
        return context.cast(builder, arguments[0], value, like)

    return like(value, like), build


@in_python(lambda like: np.finfo(np.asarray(like).dtype).max)
@intrinsic
def greatest(typing, like):
    """The greatest finite number of the type of ``like``."""

    def build(context, builder, signature, arguments):
        return context.get_constant(like, np.finfo(np.dtype(like.name)).max)

    return like(like), build


_GLOBAL = 1  # the address space of a GPU's memory


def _width(numbers):
    return numbers.count * numbers.dtype.bitwidth // 8


@in_python(lambda address, like: tuple(host_memory(address, (len(like),), type(like[0]))))
@intrinsic
def numbers_at(typing, address, like):
    """Load as many numbers as the tuple ``like`` has, of their type, side by side in a GPU's memory: one load.

    Requires an ``address`` that is a multiple of the bytes they occupy together.
    """

    def build(context, builder, signature, arguments):
        vector = ir.VectorType(context.get_value_type(like.dtype), like.count)
        loaded = builder.load(builder.inttoptr(arguments[0], vector.as_pointer(_GLOBAL)), align=_width(like))
        parts = [builder.extract_element(loaded, ir.Constant(ir.IntType(32), k)) for k in range(like.count)]
        return context.make_tuple(builder, like, parts)

    return like(types.intp, like), build


def _put_in_python(address, numbers):
    host_memory(address, (len(numbers),), type(numbers[0]))[:] = numbers


@in_python(_put_in_python)
@intrinsic
def put_numbers(typing, address, numbers):
    """Write the tuple ``numbers`` side by side to a GPU's memory: one store. Requires what `numbers_at` does."""

    def build(context, builder, signature, arguments):
        vector = ir.VectorType(context.get_value_type(numbers.dtype), numbers.count)
        packed = ir.Constant(vector, ir.Undefined)
        for k in range(numbers.count):
            part = builder.extract_value(arguments[1], k)
            packed = builder.insert_element(packed, part, ir.Constant(ir.IntType(32), k))
        where = builder.inttoptr(arguments[0], vector.as_pointer(_GLOBAL))
        builder.store(packed, where, align=_width(numbers))
        return context.get_dummy_value()

    return types.none(types.intp, numbers), build


@in_python(divmod)
@intrinsic
def divided(typing, number, divisor):
    """Quotient and remainder of two int64 from 0 to 2**32 - 1: a GPU divides no longer numbers by itself."""
    pair = types.UniTuple(types.int64, 2)

    def build(context, builder, signature, arguments):
        narrow = [builder.trunc(argument, ir.IntType(32)) for argument in arguments]
        both = builder.udiv(*narrow), builder.urem(*narrow)
        return context.make_tuple(builder, pair, [builder.zext(part, ir.IntType(64)) for part in both])

    return pair(types.int64, types.int64), build


@in_python(lambda rows: tuple(zip(*rows, strict=True)))
@intrinsic
def transposed(typing, rows):
    """The columns of a tuple of equally long tuples of numbers, as such a tuple itself."""
    columns = types.UniTuple(types.UniTuple(rows.dtype.dtype, rows.count), rows.dtype.count)

    def build(context, builder, signature, arguments):
        return _nested(context, builder, columns, lambda k, r: builder.extract_value(arguments[0], (r, k)))

    return columns(rows), build


@in_python(lambda x, y: tuple(tuple(a + b for a, b in zip(*rows, strict=True)) for rows in zip(x, y, strict=True)))
@intrinsic
def added(typing, x, y):
    """The sums of two tuples of tuples of float64, number by number."""

    def build(context, builder, signature, arguments):
        def total(r, k):
            return builder.fadd(*(builder.extract_value(argument, (r, k)) for argument in arguments))

        return _nested(context, builder, x, total)

    return x(x, x), build


def _nested(context, builder, kind, number):
    """A tuple of tuples, from what ``number`` gives for each row and column."""
    rows = (
        context.make_tuple(builder, kind.dtype, [number(r, k) for k in range(kind.dtype.count)])
        for r in range(kind.count)
    )
    return context.make_tuple(builder, kind, list(rows))
