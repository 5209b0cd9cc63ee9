"""What PTX's operations on registers work out: LLVM IR that computes the same, whatever the bits.

`operation` gives the types of an operation's result and operands, by the names that PTX has for them ("f32", "u64",
"pred"), and a function ``(builder, *values) -> value``. Meaning and names: NVIDIA's "PTX ISA", "Instruction Set".
"""

from functools import partial
from typing import Any, NamedTuple

from llvmlite import ir

from ptx.parse import Unknown

BIT = ir.IntType(1)
KINDS = {"pred", "f32", "f64", *(f"{letter}{bits}" for letter in "bsu" for bits in (8, 16, 32, 64))}
"""Types that are known."""


class Operation(NamedTuple):
    """Types of result and operands, and what makes the value."""

    result: str
    operands: tuple[str, ...]
    emit: Any


def bits_of(kind):
    """Bits of a type."""
    return 1 if kind == "pred" else int(kind[1:])


def llvm_type(kind):
    """The type that LLVM has for one of PTX's."""
    if kind[0] == "f":
        return {32: ir.FloatType(), 64: ir.DoubleType()}[bits_of(kind)]
    return ir.IntType(bits_of(kind))


def is_float(kind):
    """Whether numbers of a type are floating-point."""
    return kind[0] == "f"


def is_signed(kind):
    """Whether integers of a type have a sign."""
    return kind[0] == "s"


def operation(name):
    """The `Operation` of a name such as "add.rn.f32"; `Unknown` for others than those that kernels were seen to use."""
    base, _, rest = name.partition(".")
    *modifiers, kind = rest.split(".")
    make = MAKERS.get(base) if kind in KINDS else None
    found = make and make(modifiers, kind)
    if not found:
        raise Unknown(f"the operation {name}")
    return found


def _same(kind, count, emit):
    """All operands and the result are of one type."""
    return Operation(kind, (kind,) * count, emit)


# -- arithmetic --------------------------------------------------------------------------------------------------------


def _add_or_subtract(name, modifiers, kind):
    if is_float(kind) and modifiers == ["rn"]:
        return _same(kind, 2, lambda b, x, y: getattr(b, f"f{name}")(x, y))
    if not is_float(kind) and not modifiers:
        return _same(kind, 2, lambda b, x, y: getattr(b, name)(x, y))
    return None


def _multiply(modifiers, kind):
    if is_float(kind):
        return _same(kind, 2, lambda b, x, y: b.fmul(x, y)) if modifiers == ["rn"] else None
    if modifiers == ["lo"]:
        return _same(kind, 2, lambda b, x, y: b.mul(x, y))
    twice = f"{kind[0]}{2 * bits_of(kind)}"
    if modifiers == ["wide"]:
        return Operation(twice, (kind, kind), partial(_product, kind, twice))
    if modifiers == ["hi"]:

        def high(b, x, y):
            both = _product(kind, twice, b, x, y)
            return b.trunc(b.lshr(both, ir.Constant(both.type, bits_of(kind))), x.type)

        return _same(kind, 2, high)
    return None


def _product(kind, twice, b, x, y):
    return b.mul(_extended(b, x, kind, twice), _extended(b, y, kind, twice))


def _extended(b, x, kind, to):
    """An integer with more bits."""
    return (b.sext if is_signed(kind) else b.zext)(x, llvm_type(to))


def _multiply_and_add(modifiers, kind):
    if modifiers == ["lo"]:
        return _same(kind, 3, lambda b, x, y, z: b.add(b.mul(x, y), z))
    if modifiers == ["wide"]:
        twice = f"{kind[0]}{2 * bits_of(kind)}"
        return Operation(twice, (kind, kind, twice), lambda b, x, y, z: b.add(_product(kind, twice, b, x, y), z))
    return None


def _fused(modifiers, kind):
    return _same(kind, 3, lambda b, x, y, z: b.fma(x, y, z)) if modifiers == ["rn"] and is_float(kind) else None


def _divide(name, modifiers, kind):
    if is_float(kind):
        return _same(kind, 2, lambda b, x, y: b.fdiv(x, y)) if (name, modifiers) == ("div", ["rn"]) else None
    return _same(kind, 2, partial(_quotient, name, kind)) if not modifiers else None


def _quotient(name, kind, b, x, y):
    """Of a division by zero, which PTX leaves open, all bits of a quotient are set and the rest is the dividend."""
    none, one, ones = (ir.Constant(x.type, number) for number in (0, 1, -1))
    zero = b.icmp_signed("==", y, none)
    unsafe = zero
    if is_signed(kind):  # the least number by -1 would end the process
        least = ir.Constant(x.type, -(2 ** (bits_of(kind) - 1)))
        unsafe = b.or_(zero, b.and_(b.icmp_signed("==", x, least), b.icmp_signed("==", y, ones)))
    divisor = b.select(unsafe, one, y)
    if name == "div":
        return b.select(zero, ones, (b.sdiv if is_signed(kind) else b.udiv)(x, divisor))
    return b.select(zero, x, (b.srem if is_signed(kind) else b.urem)(x, divisor))


def _square_root(modifiers, kind):
    return _same(kind, 1, lambda b, x: _call(b, "llvm.sqrt", x)) if modifiers == ["rn"] else None


def _reciprocal(modifiers, kind):
    return _same(kind, 1, lambda b, x: b.fdiv(ir.Constant(x.type, 1.0), x)) if modifiers == ["rn"] else None


def _call(b, name, *values):
    """A function of LLVM's that is overloaded by its type."""
    return b.call(b.module.declare_intrinsic(name, [values[0].type]), values)


def _negated(modifiers, kind):
    if modifiers:
        return None
    return _same(kind, 1, (lambda b, x: b.fneg(x)) if is_float(kind) else (lambda b, x: b.neg(x)))


def _absolute(modifiers, kind):
    if modifiers:
        return None
    if is_float(kind):
        return _same(kind, 1, lambda b, x: _call(b, "llvm.fabs", x))
    return _same(kind, 1, lambda b, x: b.select(b.icmp_signed("<", x, ir.Constant(x.type, 0)), b.neg(x), x))


def _extremum(name, modifiers, kind):
    if modifiers:
        return None
    sign = {"min": "<", "max": ">"}[name]
    if not is_float(kind):
        less = ir.IRBuilder.icmp_signed if is_signed(kind) else ir.IRBuilder.icmp_unsigned
        return _same(kind, 2, lambda b, x, y: b.select(less(b, sign, x, y), x, y))
    return _same(kind, 2, partial(_extremum_of_floats, sign, llvm_type(f"b{bits_of(kind)}")))


def _extremum_of_floats(sign, integer, b, x, y):
    """The other number in the place of NaN; -0 is less than 0."""
    x_bits, y_bits = b.bitcast(x, integer), b.bitcast(y, integer)
    zero = b.bitcast((b.or_ if sign == "<" else b.and_)(x_bits, y_bits), x.type)
    chosen = b.select(b.fcmp_ordered("==", x, y), b.select(b.icmp_signed("==", x_bits, y_bits), x, zero), y)
    chosen = b.select(b.fcmp_ordered(sign, x, y), x, chosen)
    return b.select(b.fcmp_unordered("uno", y, y), x, b.select(b.fcmp_unordered("uno", x, x), y, chosen))


# -- bits --------------------------------------------------------------------------------------------------------------


def _logical(name, modifiers, kind):
    emit = {"and": ir.IRBuilder.and_, "or": ir.IRBuilder.or_, "xor": ir.IRBuilder.xor}[name]
    return None if modifiers else _same(kind, 2, emit)


def _inverted(modifiers, kind):
    return None if modifiers else _same(kind, 1, lambda b, x: b.not_(x))


def _shifted(name, modifiers, kind):
    """By more bits than there are, all are shifted out."""
    if modifiers:
        return None
    shift = {"shl": "shl", "shr": "ashr" if is_signed(kind) else "lshr"}[name]

    def emit(b, x, by):
        amount = _resized(b, by, x.type)
        most = ir.Constant(x.type, x.type.width - 1)
        beyond = b.icmp_unsigned(">", by, ir.Constant(by.type, x.type.width - 1))
        shifted = getattr(b, shift)(x, b.select(beyond, most, amount))
        return shifted if shift == "ashr" else b.select(beyond, ir.Constant(x.type, 0), shifted)

    return Operation(kind, (kind, "u32"), emit)


def _resized(b, x, kind):
    if x.type.width == kind.width:
        return x
    return (b.zext if x.type.width < kind.width else b.trunc)(x, kind)


def _inserted(modifiers, kind):
    """The lowest bits of a number put into another, from a place on, so many."""
    if modifiers:
        return None

    def emit(b, x, into, place, length):
        wide = ir.IntType(2 * bits_of(kind))
        most = ir.Constant(x.type, bits_of(kind))
        place, length = (_at_most(b, _resized(b, b.and_(by, by.type(0xFF)), x.type), most) for by in (place, length))
        one = ir.Constant(wide, 1)
        mask = b.sub(b.shl(one, b.zext(length, wide)), one)
        mask = b.trunc(b.shl(mask, b.zext(place, wide)), x.type)
        moved = b.trunc(b.shl(b.zext(x, wide), b.zext(place, wide)), x.type)
        return b.or_(b.and_(moved, mask), b.and_(into, b.not_(mask)))

    return Operation(kind, (kind, kind, "u32", "u32"), emit)


def _at_most(b, x, most):
    return b.select(b.icmp_unsigned(">", x, most), most, x)


def _permuted(modifiers, kind):
    """Four bytes of two numbers; each by four bits: its number, and whether it is its sign that is wanted."""
    return None if modifiers or kind != "b32" else Operation(kind, (kind, kind, "u32"), _bytes_chosen)


def _bytes_chosen(b, x, y, chosen):
    long, byte = ir.IntType(64), ir.IntType(8)
    both = b.or_(b.zext(x, long), b.shl(b.zext(y, long), long(32)))
    result = x.type(0)
    for k in range(4):
        selector = b.lshr(chosen, chosen.type(4 * k))
        place = b.shl(b.and_(selector, chosen.type(7)), chosen.type(3))
        found = b.trunc(b.lshr(both, b.zext(place, long)), byte)
        is_sign = b.icmp_unsigned("!=", b.and_(selector, chosen.type(8)), chosen.type(0))
        found = b.select(is_sign, b.ashr(found, byte(7)), found)
        result = b.or_(result, b.shl(b.zext(found, x.type), x.type(8 * k)))
    return result


def _selected(modifiers, kind):
    if modifiers:
        return None
    return Operation(kind, (kind, kind, "pred"), lambda b, yes, no, which: b.select(which, yes, no))


def _moved(modifiers, kind):
    return None if modifiers else _same(kind, 1, lambda b, x: x)


def _converted_address(modifiers, kind):
    """Addresses of all spaces are one kind here."""
    return _same(kind, 1, lambda b, x: x)


# -- comparisons -------------------------------------------------------------------------------------------------------

SIGNS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
UNSIGNED = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}


def _compared(modifiers, kind):
    if len(modifiers) != 1:
        return None
    emit = (_comparison_of_floats if is_float(kind) else _comparison_of_integers)(modifiers[0], kind)
    return emit and Operation("pred", (kind, kind), emit)


def _comparison_of_integers(how, kind):
    if how in UNSIGNED:
        return lambda b, x, y: b.icmp_unsigned(UNSIGNED[how], x, y)
    if how in SIGNS and is_signed(kind):
        return lambda b, x, y: b.icmp_signed(SIGNS[how], x, y)
    return (lambda b, x, y: b.icmp_unsigned(SIGNS[how], x, y)) if how in SIGNS else None


def _comparison_of_floats(how, kind):
    """Those that end in "u" hold for NaN too."""
    if how == "num":
        return lambda b, x, y: b.fcmp_ordered("ord", x, y)
    if how == "nan":
        return lambda b, x, y: b.fcmp_unordered("uno", x, y)
    if how in SIGNS:
        return lambda b, x, y: b.fcmp_ordered(SIGNS[how], x, y)
    if how[:-1] in SIGNS and how[-1] == "u":
        return lambda b, x, y: b.fcmp_unordered(SIGNS[how[:-1]], x, y)
    return None


# -- conversions -------------------------------------------------------------------------------------------------------

WHOLE = {"rni": "llvm.rint", "rzi": "llvm.trunc", "rmi": "llvm.floor", "rpi": "llvm.ceil"}


def _converted(modifiers, source):
    *rounding, target = modifiers
    emit = _conversion(rounding, source, target) if target in KINDS else None
    return emit and Operation(target, (source,), emit)


def _conversion(rounding, source, target):
    kind = llvm_type(target)
    if is_float(source) and is_float(target):
        if bits_of(source) == bits_of(target):
            (how,) = rounding if len(rounding) == 1 else [None]
            return (lambda b, x: _call(b, WHOLE[how], x)) if how in WHOLE else None
        if bits_of(source) < bits_of(target):
            return (lambda b, x: b.fpext(x, kind)) if not rounding else None
        return (lambda b, x: b.fptrunc(x, kind)) if rounding == ["rn"] else None
    if is_float(target):
        convert = ir.IRBuilder.sitofp if is_signed(source) else ir.IRBuilder.uitofp
        return (lambda b, x: convert(b, x, kind)) if rounding == ["rn"] else None
    if is_float(source) and len(rounding) == 1 and rounding[0] in WHOLE and bits_of(target) >= 32:
        return partial(_whole_number, WHOLE[rounding[0]], target)
    if is_float(source) or rounding:
        return None
    if bits_of(source) < bits_of(target):
        return lambda b, x: _extended(b, x, source, target)
    return (lambda b, x: x) if bits_of(source) == bits_of(target) else (lambda b, x: b.trunc(x, kind))


def _whole_number(rounded, target, b, x):
    """The nearest that there is, of NaN zero."""
    kind, sign = llvm_type(target), "s" if is_signed(target) else "u"
    name = f"llvm.fpto{sign}i.sat.i{kind.width}.f{32 if x.type == ir.FloatType() else 64}"
    function = b.module.globals.get(name) or ir.Function(b.module, ir.FunctionType(kind, [x.type]), name)
    return b.call(function, [_call(b, rounded, x)])


MAKERS = {
    "add": partial(_add_or_subtract, "add"),
    "sub": partial(_add_or_subtract, "sub"),
    "mul": _multiply,
    "mad": _multiply_and_add,
    "fma": _fused,
    "div": partial(_divide, "div"),
    "rem": partial(_divide, "rem"),
    "sqrt": _square_root,
    "rcp": _reciprocal,
    "neg": _negated,
    "abs": _absolute,
    "min": partial(_extremum, "min"),
    "max": partial(_extremum, "max"),
    "and": partial(_logical, "and"),
    "or": partial(_logical, "or"),
    "xor": partial(_logical, "xor"),
    "not": _inverted,
    "shl": partial(_shifted, "shl"),
    "shr": partial(_shifted, "shr"),
    "bfi": _inserted,
    "prmt": _permuted,
    "selp": _selected,
    "mov": _moved,
    "cvta": _converted_address,
    "setp": _compared,
    "cvt": _converted,
}
"""First part of a name → function ``(modifiers, type)`` that gives the operation, or None."""
