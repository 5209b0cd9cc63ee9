"""What the executor of PTX works out for single operations, against NumPy and exact arithmetic: one thread per case."""

import itertools
import os
import re
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest

if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
    pytest.skip("the executor of PTX is compiled by Numba", allow_module_level=True)

from ptx.kernel import Fault, Kernel
from ptx.memory import Memory
from ptx.parse import Unknown

pytestmark = pytest.mark.xdist_group("ptx operations")

DTYPES = {f"{letter}{bits}": np.dtype(f"{name}{bits}") for letter, name in (("s", "int"), ("u", "uint"), ("b", "uint"))
          for bits in (8, 16, 32, 64)} | {"f32": np.dtype("float32"), "f64": np.dtype("float64")}  # fmt: skip
REGISTERS = {"f32": "f", "f64": "fd", "8": "rs", "16": "rs", "32": "r", "64": "rd"}
FLOATS, SIGNED, UNSIGNED = ("f32", "f64"), ("s16", "s32", "s64"), ("u16", "u32", "u64")
THREADS = 128


# -- kernels of one operation ------------------------------------------------------------------------------------------

FRAME = """.version 9.0
.target sm_90
.address_size 64
{shared}
.visible .entry test(
{parameters}
)
{{
	.reg .pred %p<9>;
	.reg .b16 %rs<9>;
	.reg .b32 %r<9>;
	.reg .f32 %f<9>;
	.reg .f64 %fd<9>;
	.reg .b64 %rd<9>;
	.reg .b64 %at<9>;
	.reg .b32 %me<9>;
{body}
}}
"""

START = """	ld.param.u64 %at8, [count];
	mov.u32 %me1, %ctaid.x;
	mov.u32 %me2, %ntid.x;
	mov.u32 %me3, %tid.x;
	mad.lo.s32 %me4, %me1, %me2, %me3;
	cvt.s64.s32 %at7, %me4;
	setp.ge.s64 %p8, %at7, %at8;
	@%p8 bra $end;
"""


def register(kind, number):
    """The name of a register for a type."""
    return f"%{REGISTERS.get(kind) or REGISTERS[kind[1:]]}{number}"


def bytes_of(kind):
    return DTYPES[kind].itemsize


def ptx_of(body, parameters, shared=""):
    """The text of a kernel."""
    listed = ",\n".join(f"\t.param .u64 {name}" for name in parameters)
    return FRAME.format(body=body, parameters=listed, shared=shared)


def place_of(name, nbytes, number):
    """Lines that make ``%at<number>`` the address of this thread's element."""
    return f"\tld.param.u64 %at{number}, [{name}];\n\tmad.lo.s64 %at{number}, %at7, {nbytes}, %at{number};\n"


def launched(text, arrays, numbers=(), **way):
    """Launch with arrays, then numbers, as arguments: one thread for each element of the first."""
    memory = Memory()
    for array in arrays:
        memory.add(array.ctypes.data, array.nbytes)
    arguments = [*(array.ctypes.data for array in arrays), *numbers]
    return Kernel(text).launch(-(-arrays[0].shape[0] // THREADS), THREADS, arguments, memory, **way)


def computed(statement, kinds, result, columns):
    """What a statement of ``{o}``, ``{x}``, ``{y}`` and ``{z}`` makes of columns of these types."""
    names, body = "xyz"[: len(kinds)], START
    places = {name: register(kind, k) for k, (name, kind) in enumerate(zip(names, kinds, strict=True), 1)}
    for k, (name, kind) in enumerate(zip(names, kinds, strict=True), 1):
        body += place_of(name, bytes_of(kind), k)
        body += f"\tld.global.{kind} {places[name]}, [%at{k}];\n"
    target = register(result, 8)
    body += f"\t{statement.format(o=target, **places)}\n" + place_of("o", bytes_of(result), 6)
    body += f"\tst.global.{result} [%at6], {target};\n$end:\n\tret;"
    found = np.full(len(columns[0]), 77, DTYPES[result])
    arrays = [np.ascontiguousarray(column, DTYPES[kind]) for column, kind in zip(columns, kinds, strict=True)]
    launched(ptx_of(body, [*names, "o", "count"]), [*arrays, found], [found.size])
    return found


def assert_same(found, expected, *columns):
    """All bits; any NaN is as good as another."""
    expected = np.asarray(expected).astype(found.dtype)
    same = found.view(f"u{found.itemsize}") == expected.view(f"u{found.itemsize}")
    if found.dtype.kind == "f":
        same |= np.isnan(found) & np.isnan(expected)
    wrong = np.flatnonzero(~same)[:5]
    assert not wrong.size, [(*(column[k] for column in columns), found[k], expected[k]) for k in wrong]


# -- numbers -----------------------------------------------------------------------------------------------------------

RANDOM = 2000


def special_floats(dtype):
    info = np.finfo(dtype)
    one, two = dtype.type(1), dtype.type(2)
    positive = [0, info.smallest_subnormal, info.smallest_normal - info.smallest_subnormal, info.smallest_normal]
    positive += [info.eps, 1 / dtype.type(3), 0.5, np.nextafter(one, 0 * one), 1, np.nextafter(one, two), 1.5, 2.5, 3]
    positive += [2.0**info.nmant, 2.0 ** (info.nmant + 1), 2.0**31, 2.0**63, info.max / 2, info.max, np.inf]
    positive = np.array(positive, dtype)
    return np.concatenate([positive, -positive, np.array([np.nan], dtype)])


def special_integers(dtype):
    info = np.iinfo(dtype)
    values = [0, 1, 2, 3, 7, 31, 32, info.max, info.max - 1, info.max // 2, info.max // 2 + 1]
    values += [info.min, info.min + 1, -1, -2] if info.min else []
    return np.unique(np.array(values, dtype))


def random_floats(rng, dtype):
    """Half of them of any bits, half near one."""
    bits = rng.integers(0, 2**64, RANDOM // 2, np.uint64) >> (64 - 8 * dtype.itemsize)
    near = rng.normal(size=RANDOM - RANDOM // 2) * 10.0 ** rng.integers(-3, 3, RANDOM - RANDOM // 2)
    return np.concatenate([bits.astype(f"u{dtype.itemsize}").view(dtype), near.astype(dtype)])


def random_integers(rng, dtype):
    """Of all sizes."""
    info = np.iinfo(dtype)
    numbers = rng.integers(info.min, info.max, RANDOM, dtype, endpoint=True)
    return numbers >> rng.integers(0, info.bits, RANDOM).astype(dtype)


def numbers(kinds, seed=0):
    """Columns of these types: all combinations of special values, then random ones in any order."""
    rng, kinds = np.random.default_rng(seed), [DTYPES[kind] for kind in kinds]
    special = [(special_floats if dtype.kind == "f" else special_integers)(dtype) for dtype in kinds]
    if len(kinds) == 3:
        special = [values[:: 2 + k] for k, values in enumerate(special)]
    chosen = [(random_floats if dtype.kind == "f" else random_integers)(rng, dtype) for dtype in kinds]
    combined = np.meshgrid(*special, indexing="ij")
    return [np.concatenate([grid.ravel(), rng.permutation(more)]) for grid, more in zip(combined, chosen, strict=True)]


def wrapped(whole, kind):
    """Python's integers, as many bits of them as a type has."""
    dtype = DTYPES[kind]
    bits = 8 * dtype.itemsize
    return np.array([int(number) & (1 << bits) - 1 for number in whole], f"u{dtype.itemsize}").view(dtype)


def exactly(function):
    """A function of integers, over columns, without limits."""
    return lambda *columns: [function(*map(int, row)) for row in zip(*columns, strict=True)]


# -- one operation, one result -----------------------------------------------------------------------------------------


class Form(NamedTuple):
    """A statement, types of its operands and of its result, and what it should make of columns of numbers."""

    statement: str
    kinds: tuple
    result: str
    expected: Any

    @property
    def id(self):
        """Its statement without the places that every one has."""
        return re.sub(r"\s+", " ", re.sub(r"\{+[oxyz]\}+|[,;%{}]", "", self.statement)).strip()


def simple(operation, kind, count, expected, result=None):
    """An operation whose operands are of one type."""
    operands = ", ".join(["{o}", "{x}", "{y}", "{z}"][: count + 1])
    return Form(f"{operation} {operands};", (kind,) * count, result or kind, expected)


def whole(operation, kind, count, function, result=None):
    """An operation on integers, by Python's."""
    result = result or kind
    return simple(operation, kind, count, lambda *columns: wrapped(exactly(function)(*columns), result), result)


def extremum(choose, negative):
    """Of floats: the other number in the place of NaN; -0 is less than 0."""

    def chosen(x, y):
        found = choose(x, y)
        signs = (np.signbit(x) | np.signbit(y)) if negative else (np.signbit(x) & np.signbit(y))
        return np.where((x == 0) & (y == 0), np.where(signs, x.dtype.type(-0.0), x.dtype.type(0.0)), found)

    return chosen


def floating():
    """Arithmetic of floats."""
    for kind in FLOATS:
        one = DTYPES[kind].type(1)
        yield simple(f"add.rn.{kind}", kind, 2, np.add)
        yield simple(f"sub.rn.{kind}", kind, 2, np.subtract)
        yield simple(f"mul.rn.{kind}", kind, 2, np.multiply)
        yield simple(f"div.rn.{kind}", kind, 2, np.divide)
        yield simple(f"sqrt.rn.{kind}", kind, 1, np.sqrt)
        yield simple(f"rcp.rn.{kind}", kind, 1, lambda x, one=one: one / x)
        yield simple(f"neg.{kind}", kind, 1, np.negative)
        yield simple(f"abs.{kind}", kind, 1, np.abs)
        yield simple(f"min.{kind}", kind, 2, extremum(np.fmin, True))
        yield simple(f"max.{kind}", kind, 2, extremum(np.fmax, False))
        yield simple(f"mov.{kind}", kind, 1, np.copy)


def integral():
    """Arithmetic of integers."""
    for kind in (*SIGNED, *UNSIGNED):
        bits = 8 * bytes_of(kind)
        yield whole(f"add.{kind}", kind, 2, lambda x, y: x + y)
        yield whole(f"sub.{kind}", kind, 2, lambda x, y: x - y)
        yield whole(f"mul.lo.{kind}", kind, 2, lambda x, y: x * y)
        yield whole(f"mul.hi.{kind}", kind, 2, lambda x, y, bits=bits: x * y >> bits)
        yield whole(f"mad.lo.{kind}", kind, 3, lambda x, y, z: x * y + z)
        yield whole(f"min.{kind}", kind, 2, min)
        yield whole(f"max.{kind}", kind, 2, max)
        yield whole(f"mov.{kind}", kind, 1, int)
        if bits < 64:
            twice = f"{kind[0]}{2 * bits}"
            yield whole(f"mul.wide.{kind}", kind, 2, lambda x, y: x * y, twice)
            added = lambda x, y, z, twice=twice: wrapped(exactly(lambda a, b, c: a * b + c)(x, y, z), twice)  # noqa: E731
            yield Form(f"mad.wide.{kind} {{o}}, {{x}}, {{y}}, {{z}};", (kind, kind, twice), twice, added)
    for kind in SIGNED:
        yield whole(f"neg.{kind}", kind, 1, lambda x: -x)
        yield whole(f"abs.{kind}", kind, 1, abs)


def quotient(x, y):
    """Towards zero."""
    return abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)


def divisions():
    """Zero by zero, and anything else by zero, is left out: PTX leaves open what that is."""
    for kind in (*SIGNED, *UNSIGNED):
        yield whole(f"div.{kind}", kind, 2, quotient)
        yield whole(f"rem.{kind}", kind, 2, lambda x, y: x - quotient(x, y) * y)


def shifts():
    """By 0, 31, 32, 63, 64 and 70 bits, written down or in a register."""
    for bits in (16, 32, 64):
        for by in (0, 1, 31, 32, 63, 64, 70, 2**31):
            yield whole(f"shl.b{bits}", f"u{bits}", 1, lambda x, by=by: x << min(by, 64))._replace(
                statement=f"shl.b{bits} {{o}}, {{x}}, {by};"
            )
            for sign in "su":
                kind = f"{sign}{bits}"
                yield whole(f"shr.{kind}", kind, 1, lambda x, by=by: x >> by)._replace(
                    statement=f"shr.{kind} {{o}}, {{x}}, {by};"
                )


def inserted(bits, place, length):
    """What inserting so many bits at a place gives."""
    mask = (2**length - 1) << place

    def expected(x, y):
        return wrapped(exactly(lambda a, b: (a << place & mask) | (b & ~mask))(x, y), f"u{bits}")

    return expected


def permuted(selector):
    """What bytes of two numbers, by four bits each, give."""

    def one(x, y):
        pool = (int(x) | int(y) << 32).to_bytes(8, "little")
        chosen = [(pool[n & 7], n & 8) for n in (selector >> 4 * k & 15 for k in range(4))]
        return int.from_bytes(bytes((byte >> 7) * 255 if sign else byte for byte, sign in chosen), "little")

    return lambda x, y: np.array([one(*pair) for pair in zip(x, y, strict=True)], np.uint32)


def pieces():
    """Bits of one number in another, and bytes of two."""
    for bits in (32, 64):
        for place, length in (
            (0, 0),
            (0, 16),
            (16, 16),
            (8, 8),
            (24, 16),
            (bits - 4, 8),
            (0, bits),
            (3, 255),
            (255, 4),
        ):
            expected, kind = inserted(bits, min(place, bits), min(length, bits)), f"u{bits}"
            yield Form(f"bfi.b{bits} {{o}}, {{x}}, {{y}}, {place}, {length};", (kind, kind), kind, expected)
    for selector in (0x3210, 0x7654, 0x5410, 0x1054, 0x0000, 0x7777, 0xBA98, 0xFEDC, 0x6240):
        yield Form(f"prmt.b32 {{o}}, {{x}}, {{y}}, {selector};", ("u32", "u32"), "u32", permuted(selector))


def by_registers():
    """Shifts by what is in a register of 32 bits, always without a sign."""
    for bits in (16, 32, 64):
        for name, kind in (("shl", f"b{bits}"), ("shr", f"s{bits}"), ("shr", f"u{bits}"), ("shr", f"b{bits}")):
            move = (lambda x, y: x << min(y, 64)) if name == "shl" else (lambda x, y: x >> min(y, 64))
            expected = lambda x, y, move=move, kind=kind: wrapped(exactly(move)(x, y), kind)  # noqa: E731
            yield Form(f"{name}.{kind} {{o}}, {{x}}, {{y}};", (kind, "u32"), kind, expected)


def logical():
    """On bits, and on predicates."""
    functions = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    for kind in ("b16", "b32", "b64"):
        for name, function in functions.items():
            yield simple(f"{name}.{kind}", kind, 2, function)
        yield simple(f"not.{kind}", kind, 1, np.invert)
        yield simple(f"mov.{kind}", kind, 1, np.copy)
        expected = lambda x, y, z: np.where(z % 2 == 1, x, y)  # noqa: E731
        odd = "and.b32 {z}, {z}, 1; setp.eq.s32 %p1, {z}, 1;"
        yield Form(f"{odd} selp.{kind} {{o}}, {{x}}, {{y}}, %p1;", (kind, kind, "u32"), kind, expected)
    for name, function in functions.items():
        odd = "and.b32 {x}, {x}, 1; setp.ne.u32 %p1, {x}, 0; and.b32 {y}, {y}, 1; setp.ne.u32 %p2, {y}, 0;"
        made = f"{odd} {name}.pred %p3, %p1, %p2; selp.u32 {{o}}, 1, 0, %p3;"
        yield Form(made, ("u32", "u32"), "u32", lambda x, y, function=function: function(x % 2, y % 2))
    inverted = "setp.lt.u32 %p1, {x}, 7; not.pred %p2, %p1; mov.pred %p3, %p2; selp.u32 {o}, 1, 0, %p3;"
    yield Form(inverted, ("u32",), "u32", lambda x: x >= 7)
    for kind in FLOATS:
        chosen = f"setp.lt.{kind} %p1, {{x}}, {{y}}; selp.{kind} {{o}}, {{x}}, {{y}}, %p1;"
        yield Form(chosen, (kind, kind), kind, lambda x, y: np.where(x < y, x, y))


ORDERED = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal
}  # fmt: skip


def either_is_nan(x, y):
    return np.isnan(x) | np.isnan(y)


def comparisons():
    """The result as 1 or 0."""

    def compared(how, kind, expected):
        return simple(f"setp.{how}.{kind}", kind, 2, expected, "u32")._replace(
            statement=f"setp.{how}.{kind} %p1, {{x}}, {{y}}; selp.u32 {{o}}, 1, 0, %p1;"
        )

    for kind in FLOATS:
        for how, function in ORDERED.items():
            yield compared(how, kind, lambda x, y, f=function: f(x, y) & ~either_is_nan(x, y))
            yield compared(f"{how}u", kind, lambda x, y, f=function: f(x, y) | either_is_nan(x, y))
        yield compared("num", kind, lambda x, y: ~either_is_nan(x, y))
        yield compared("nan", kind, either_is_nan)
    for kind in (*SIGNED, *UNSIGNED):
        for how, function in ORDERED.items():
            yield compared(how, kind, function)
    for kind in UNSIGNED:
        for how, same in (("lo", "lt"), ("ls", "le"), ("hi", "gt"), ("hs", "ge")):
            yield compared(how, kind, ORDERED[same])
    for kind in ("b16", "b32", "b64"):
        yield compared("eq", kind, np.equal)
        yield compared("ne", kind, np.not_equal)


ROUNDED = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def saturated(target):
    """Whole numbers, the least and the greatest of a type in the place of those beyond, zero for NaN."""
    least, greatest = (int(limit) for limit in (np.iinfo(DTYPES[target]).min, np.iinfo(DTYPES[target]).max))

    def one(x):
        if np.isnan(x):
            return 0
        return min(max(int(x), least), greatest) if np.isfinite(x) else (greatest if x > 0 else least)

    return lambda x: np.array([one(each) for each in x], DTYPES[target])


def conversions():
    """Between all integers, from integers to floats, between floats, and to whole floats."""
    integers = [f"{sign}{bits}" for sign in "su" for bits in (8, 16, 32, 64)]
    for source, target in itertools.product(integers, integers):
        yield whole(f"cvt.{target}.{source}", source, 1, int, target)
    for source, target in itertools.product(integers, FLOATS):
        yield simple(f"cvt.rn.{target}.{source}", source, 1, lambda x, t=target: x.astype(DTYPES[t]), target)
    yield simple("cvt.f64.f32", "f32", 1, lambda x: x.astype(np.float64), "f64")
    yield simple("cvt.rn.f32.f64", "f64", 1, lambda x: x.astype(np.float32), "f32")
    for source, target, how in itertools.product(FLOATS, ("s32", "u32", "s64", "u64"), ROUNDED):
        expected = lambda x, target=target, how=how: saturated(target)(ROUNDED[how](x))  # noqa: E731
        yield Form(f"cvt.{how}.{target}.{source} {{o}}, {{x}};", (source,), target, expected)
    for kind, (how, function) in itertools.product(FLOATS, ROUNDED.items()):
        yield simple(f"cvt.{how}.{kind}.{kind}", kind, 1, function)
    for how in ("cvta.to.global.u64", "cvta.global.u64", "cvta.shared.u64"):
        yield simple(how, "u64", 1, np.copy)


def halves(kind):
    return lambda x: x.view(DTYPES[kind])


def packs():
    """Registers as parts of a wider one, the first one lowest; and bits as other types."""
    join = {"f32": "u64", "u32": "u64", "u16": "u32"}
    for part, both in join.items():
        bits = f"b{8 * bytes_of(both)}"
        joined = lambda x, y, both=both: np.stack([x, y], 1).view(DTYPES[both]).ravel()  # noqa: E731
        yield Form(f"mov.{bits} {{o}}, {{{{{{x}}, {{y}}}}}};", (part, part), both, joined)
        for k, parts in enumerate(("{o}, %", "%, {o}")):
            other = register(part, 7)
            taken = lambda x, k=k, part=part: x.view(DTYPES[part]).reshape(-1, 2)[:, k]  # noqa: E731
            yield Form(f"mov.{bits} {{{{{parts.replace('%', other)}}}}}, {{x}};", (both,), part, taken)
            yield Form(f"mov.{bits} {{{{{parts.replace('%', '_')}}}}}, {{x}};", (both,), part, taken)
    four = "mov.b64 {{%rs1, %rs2, %rs3, %rs4}}, {x}; mov.b64 {o}, {{%rs4, %rs3, %rs2, %rs1}};"
    reverse = lambda x: x.view(np.uint16).reshape(-1, 4)[:, ::-1].copy().view(np.uint64).ravel()  # noqa: E731
    yield Form(four, ("u64",), "u64", reverse)
    for source, target, bits in (("f32", "u32", 32), ("u32", "f32", 32), ("f64", "u64", 64), ("u64", "f64", 64)):
        yield Form(f"mov.b{bits} {{o}}, {{x}};", (source,), target, halves(target))


def constants():
    """Numbers that are written down."""
    yield Form("add.s32 {o}, {x}, -5;", ("s32",), "s32", lambda x: wrapped(exactly(lambda a: a - 5)(x), "s32"))
    yield Form("and.b32 {o}, {x}, 0xFF0;", ("b32",), "b32", lambda x: x & 0xFF0)
    yield Form("and.b64 {o}, {x}, -4294967296;", ("b64",), "b64", lambda x: x & np.uint64(2**64 - 2**32))
    yield Form("add.rn.f32 {o}, {x}, 0f3F800000;", ("f32",), "f32", lambda x: x + np.float32(1))
    yield Form("mul.rn.f32 {o}, {x}, 0FBF000000;", ("f32",), "f32", lambda x: x * np.float32(-0.5))
    yield Form("sub.rn.f64 {o}, {x}, 0d4008000000000000;", ("f64",), "f64", lambda x: x - 3.0)
    yield Form("mov.f32 {o}, 0f7F800000;", ("f32",), "f32", lambda x: np.full_like(x, np.inf))
    yield Form("mov.b32 {o}, 0f3F800000;", ("b32",), "b32", lambda x: np.full_like(x, 0x3F800000))
    yield Form("mov.b64 {o}, 0d3FF0000000000000;", ("b64",), "b64", lambda x: np.full_like(x, 0x3FF0000000000000))
    yield Form("mov.u64 {o}, 0;", ("u64",), "u64", np.zeros_like)
    guarded = "setp.gt.s32 %p1, {x}, 3;\n\tmov.u32 {o}, 1;\n\t@%p1 mov.u32 {o}, 2;\n\t@!%p1 add.s32 {o}, {o}, 4;"
    yield Form(guarded, ("s32",), "u32", lambda x: np.where(x > 3, 2, 5))


def over(forms):
    """A test for each."""
    return pytest.mark.parametrize("form", [pytest.param(form, id=form.id) for form in forms])


def check(form, columns):
    with np.errstate(all="ignore"):
        expected = form.expected(*columns)
    assert_same(computed(*form[:3], columns), expected, *columns)


@over([*floating(), *integral(), *logical(), *comparisons(), *conversions(), *packs(), *constants()])
def test_operations(form):
    check(form, numbers(form.kinds))


@over(divisions())
def test_divisions(form):
    x, y = numbers(form.kinds)
    check(form, [x[y != 0], y[y != 0]])


@over([*shifts(), *pieces()])
def test_shifts(form):
    check(form, numbers(form.kinds))


@over(by_registers())
def test_shifts_by_registers(form):
    rng = np.random.default_rng(1)
    (x,) = numbers(form.kinds[:1])
    x = np.repeat(x, 10)
    by = rng.choice(np.array([0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 70, 2**16, 2**31, 2**32 - 1], np.uint32), x.size)
    check(form, [x, by])


@pytest.mark.parametrize("kind", [*SIGNED, *UNSIGNED])
def test_divisions_by_zero_end_nothing(kind):
    (x,) = numbers([kind])
    zero = np.zeros_like(x)
    assert (computed(f"div.{kind} {{o}}, {{x}}, {{y}};", (kind, kind), kind, [x, zero]) == wrapped([-1], kind)[0]).all()
    assert_same(computed(f"rem.{kind} {{o}}, {{x}}, {{y}};", (kind, kind), kind, [x, zero]), x)


# -- rounding ----------------------------------------------------------------------------------------------------------


def rounded(exact, dtype):
    """The nearest number of a dtype, that with an even last bit of two; not for zero."""
    info, exponent = np.finfo(dtype), exact.numerator.bit_length() - exact.denominator.bit_length()
    if Fraction(2) ** exponent > abs(exact):
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, int(info.minexp)) - info.nmant)
    number = round(exact / unit) * unit
    beyond = abs(number) > Fraction(float(info.max))
    return dtype.type(np.copysign(np.inf if beyond else float(abs(number)), 1.0 if exact > 0 else -1.0))


def fused(x, y, z):
    """``x·y + z``, rounded once."""
    if not np.isfinite([x, y, z]).all():
        return z if np.isfinite([x, y]).all() else x * y + z
    exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
    if exact:
        return rounded(exact, x.dtype)
    return z if z == 0 and np.signbit(z) == (np.signbit(x) ^ np.signbit(y)) else x.dtype.type(0)


def triples(dtype):
    """Special ones, random ones, and those of which little is left when the product is rounded first."""
    rng, special = np.random.default_rng(3), special_floats(dtype)[::3]
    grid = np.stack([column.ravel() for column in np.meshgrid(special, special, special)], 1)
    random = np.stack([rng.permutation(random_floats(rng, dtype)) for _ in range(3)], 1)
    near = rng.normal(size=(RANDOM, 3)).astype(dtype)
    near[:, 2] = -near[:, 0] * near[:, 1]
    near[::2, 2] *= 1 + rng.integers(-2, 3, len(near[::2])) * np.finfo(dtype).eps
    tiny = rng.normal(size=(500, 3)).astype(dtype) * [2.0 ** (np.finfo(dtype).minexp // 2), 1, 1]
    tiny[:, 1:] *= [2.0 ** (np.finfo(dtype).minexp // 2 - 3), np.finfo(dtype).smallest_normal / 4]
    return np.concatenate([grid, random, near, tiny.astype(dtype)]).T


@pytest.mark.parametrize("kind", FLOATS)
def test_fused_multiplications_are_rounded_once(kind):
    columns = triples(DTYPES[kind])
    with np.errstate(all="ignore"):
        expected = np.array([fused(*row) for row in columns.T], DTYPES[kind])
        twice = columns[0] * columns[1] + columns[2]
    found = computed(f"fma.rn.{kind} {{o}}, {{x}}, {{y}}, {{z}};", (kind,) * 3, kind, columns)
    assert_same(found, expected, *columns)
    assert (found != twice)[~np.isnan(found)].sum() > 1000


@pytest.mark.parametrize("kind", FLOATS)
def test_nothing_is_contracted(kind):
    """A product that is added is rounded before."""
    columns = triples(DTYPES[kind])
    product = register(kind, 7)
    for name, function in (("add", np.add), ("sub", np.subtract)):
        apart = f"mul.rn.{kind} {product}, {{x}}, {{y}}; {name}.rn.{kind} {{o}}, {product}, {{z}};"
        with np.errstate(all="ignore"):
            expected = function(columns[0] * columns[1], columns[2])
        assert_same(computed(apart, (kind,) * 3, kind, columns), expected, *columns)


@pytest.mark.parametrize("kind", FLOATS)
def test_subnormal_numbers_are_kept(kind):
    dtype = DTYPES[kind]
    least = np.finfo(dtype).smallest_subnormal
    x = np.array([least, -3 * least, np.finfo(dtype).smallest_normal], dtype)
    half = np.full_like(x, 0.5)
    for name, expected in (("add", x + x), ("mul", x * half), ("div", x / half)):
        y = x if name == "add" else half
        found = computed(f"{name}.rn.{kind} {{o}}, {{x}}, {{y}};", (kind, kind), kind, [x, y])
        assert_same(found, expected, x)
        assert found.all() or name == "mul"


# -- memory ------------------------------------------------------------------------------------------------------------

ALL = ("u8", "s8", "b8", "u16", "s16", "b16", "u32", "s32", "b32", "f32", "u64", "s64", "b64", "f64")
VECTORS = [(kind, count) for kind in ALL for count in (1, 2, 4) if count * bytes_of(kind) <= 16]
SHARED = ".shared .align 16 .b8 mine[2048];"


def vector(kind, count):
    """A modifier, and registers for so many numbers."""
    names = [register(kind, k + 1) for k in range(count)]
    return (f".v{count}.{kind}", f"{{{', '.join(names)}}}") if count > 1 else (f".{kind}", names[0])


def rows(kind, count):
    """A row for each thread."""
    values = numbers([kind])[0]
    return np.resize(values, (1000, count)).copy()


@pytest.mark.parametrize(("kind", "count"), VECTORS)
@pytest.mark.parametrize("space", [".global", "", ".volatile.global", ".global.nc"])
def test_loads_and_stores(kind, count, space):
    source, (modifier, registers) = rows(kind, count), vector(kind, count)
    target, stored = np.full_like(source, 77), space.replace(".nc", "")
    nbytes = count * bytes_of(kind)
    body = START + place_of("x", nbytes, 1) + place_of("o", nbytes, 2)
    body += f"\tld{space}{modifier} {registers}, [%at1];\n\tst{stored}{modifier} [%at2], {registers};\n$end:\n\tret;"
    launched(ptx_of(body, ["x", "o", "count"]), [source, target], [len(source)])
    assert target.tobytes() == source.tobytes()


@pytest.mark.parametrize(("kind", "count"), VECTORS)
def test_shared_memory(kind, count):
    """Each thread's own place, by the array's name, by its address, and by an offset from it."""
    source, (modifier, registers) = rows(kind, count), vector(kind, count)
    target, nbytes = np.full_like(source, 77), count * bytes_of(kind)
    body = START + place_of("x", nbytes, 1) + place_of("o", nbytes, 2)
    body += f"\tcvt.u64.u32 %at3, %me3;\n\tmov.u64 %at4, mine;\n\tmad.lo.s64 %at4, %at3, {nbytes}, %at4;\n"
    body += f"\tld.global{modifier} {registers}, [%at1];\n\tst.shared{modifier} [%at4], {registers};\n"
    body += f"\tadd.s64 %at5, %at4, 32;\n\tld.shared{modifier} {registers}, [%at5+-32];\n"
    body += f"\tst.global{modifier} [%at2], {registers};\n\tst.shared{modifier} [mine], {registers};\n$end:\n\tret;"
    launched(ptx_of(body, ["x", "o", "count"], SHARED), [source, target], [len(source)])
    assert target.tobytes() == source.tobytes()


NARROW = [
    (kind, wide)
    for kind in ("s8", "u8", "s16", "u16", "s32", "u32")
    for wide in ("u16", "u32", "u64")
    if bytes_of(kind) < bytes_of(wide)
]


@pytest.mark.parametrize(("kind", "wide"), NARROW)
def test_narrow_loads_into_wide_registers(kind, wide):
    """Signs are extended; a narrow store takes what is lowest."""
    source = numbers([kind])[0]
    target, narrow = np.zeros(source.size, DTYPES[wide]), np.zeros_like(source)
    body = START + place_of("x", bytes_of(kind), 1) + place_of("o", bytes_of(wide), 2)
    body += place_of("narrow", bytes_of(kind), 3) + f"\tld.global.{kind} {register(wide, 1)}, [%at1];\n"
    body += f"\tst.global.{wide} [%at2], {register(wide, 1)};\n\tst.global.{kind} [%at3], {register(wide, 1)};\n"
    launched(ptx_of(f"{body}$end:\n\tret;", ["x", "o", "narrow", "count"]), [source, target, narrow], [source.size])
    assert_same(target, wrapped(source, wide), source)
    assert_same(narrow, source)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("kind", ["u32", "s32", "u64"])
@pytest.mark.parametrize("how", ["atom.global.add", "atom.add", "atom.relaxed.gpu.global.add"])
def test_atomic_additions(how, kind, order):
    """Each is told what was there before."""
    amounts = numbers([kind])[0]
    before, total = np.zeros_like(amounts), np.array([5], DTYPES[kind])
    size = bytes_of(kind)
    body = START + place_of("x", size, 1) + place_of("o", size, 2) + "\tld.param.u64 %at3, [total];\n"
    body += f"\tld.global.{kind} {register(kind, 1)}, [%at1];\n"
    body += f"\t{how}.{kind} {register(kind, 2)}, [%at3], {register(kind, 1)};\n"
    body += f"\tst.global.{kind} [%at2], {register(kind, 2)};\n$end:\n\tret;"
    text = ptx_of(body, ["x", "o", "total", "count"])
    launch = launched(text, [amounts, before, total], [amounts.size], order=order, resident=64)
    assert launch["atomics"] == amounts.size
    assert total == wrapped([5 + sum(map(int, amounts))], kind)
    after = wrapped(exactly(lambda x, y: x + y)(before, amounts), kind)
    assert sorted([*before, *total]) == sorted([5, *after]), "what one has left the next one finds"


def test_atomic_additions_to_shared_memory():
    text = ptx_of(
        "\tmov.u32 %r1, 0;\n\tst.shared.u32 [mine], %r1;\n\tbar.sync 0;\n"
        "\tatom.shared.add.u32 %r2, [mine], 3;\n\tbar.sync 0;\n\tld.shared.u32 %r3, [mine];\n"
        + START + place_of("o", 4, 1) + "\tst.global.u32 [%at1], %r3;\n$end:\n\tret;",
        ["o", "count"], SHARED,
    )  # fmt: skip
    found = np.zeros(1000, np.uint32)
    launched(text, [found], [found.size])
    assert (found == 3 * THREADS).all()


# -- control -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [0, 1, 2])
def test_where_a_thread_is(order):
    names = ("%tid.x", "%ctaid.x", "%ntid.x", "%nctaid.x")
    body = START + place_of("o", 16, 1)
    body += "".join(f"\tmov.u32 %r{k}, {name};\n" for k, name in enumerate(names))
    found = np.zeros((700, 4), np.uint32)
    body += "\tst.global.v4.u32 [%at1], {%r0, %r1, %r2, %r3};\n$end:\n\tret;"
    launched(ptx_of(body, ["o", "count"]), [found], [len(found)], order=order)
    k = np.arange(700)
    assert (found == np.stack([k % THREADS, k // THREADS, 0 * k + THREADS, 0 * k + 6], 1)).all()


def test_loops():
    """Registers live on from block to block: of these numbers the steps of Collatz's sequence are counted."""
    body = START + place_of("x", 8, 1) + place_of("o", 8, 2) + "\tld.global.u64 %rd1, [%at1];\n\tmov.u64 %rd2, 0;\n"
    body += "\t{\n$again: setp.eq.u64 %p1, %rd1, 1;\n\t@%p1 bra $done;\n\tadd.s64 %rd2, %rd2, 1;\n"
    body += "\tand.b64 %rd3, %rd1, 1;\n\tsetp.ne.s64 %p2, %rd3, 0;\n\t@%p2 bra.uni $odd;\n"
    body += "\tshr.u64 %rd1, %rd1, 1;\n\tbra $again;\n$odd:\n\tmad.lo.s64 %rd1, %rd1, 3, 1;\n\tbra.uni $again;\n\t}\n"
    body += "$done:\n\tst.global.u64 [%at2], %rd2;\n$end:\n\tret;"
    x = np.arange(1, 1001, dtype=np.uint64)
    found = np.zeros_like(x)
    launched(ptx_of(body, ["x", "o", "count"]), [x, found], [x.size])

    def steps(number):
        count = 0
        while number != 1:
            number, count = 3 * number + 1 if number % 2 else number // 2, count + 1
        return count

    assert found.tolist() == [steps(int(number)) for number in x]


def test_registers_that_nobody_wrote_are_not_zero():
    body = START + place_of("o", 4, 1) + "\tst.global.u32 [%at1], %r5;\n$end:\n\tret;"
    found = np.zeros(10, np.uint32)
    launched(ptx_of(body, ["o", "count"]), [found], [found.size])
    assert (found == 0x5A5A5A5A).all()


# -- what is not known -------------------------------------------------------------------------------------------------

UNKNOWN = [
    "add.rz.f32 %f1, %f2, %f3;", "add.f32 %f1, %f2, %f3;", "add.rn.ftz.f32 %f1, %f2, %f3;", "add.cc.u32 %r1, %r2, %r3;",
    "add.sat.s32 %r1, %r2, %r3;", "add.rn.f32x2 %rd1, %rd2, %rd3;", "sub.rm.f64 %fd1, %fd2, %fd3;",
    "mul.rn.ftz.f32 %f1, %f2, %f3;", "mul.f32 %f1, %f2, %f3;", "mul.s32 %r1, %r2, %r3;",
    "mul24.lo.s32 %r1, %r2, %r3;", "mad.rn.f32 %f1, %f2, %f3, %f4;", "mad.hi.s32 %r1, %r2, %r3, %r4;",
    "fma.rn.ftz.f32 %f1, %f2, %f3, %f4;", "fma.rz.f32 %f1, %f2, %f3, %f4;", "div.full.f32 %f1, %f2, %f3;",
    "div.approx.f32 %f1, %f2, %f3;", "sqrt.approx.f32 %f1, %f2;", "rsqrt.approx.f32 %f1, %f2;",
    "rcp.approx.ftz.f64 %fd1, %fd2;", "ex2.approx.f32 %f1, %f2;", "lg2.approx.f32 %f1, %f2;", "neg.ftz.f32 %f1, %f2;",
    "abs.ftz.f32 %f1, %f2;", "min.NaN.f32 %f1, %f2, %f3;", "max.ftz.f32 %f1, %f2, %f3;", "popc.b32 %r1, %r2;",
    "setp.lt.and.f32 %p1, %f1, %f2, %p2;", "setp.lt.ftz.f32 %p1, %f1, %f2;", "set.lt.u32.f32 %r1, %f1, %f2;",
    "cvt.f32.f64 %f1, %fd1;", "cvt.rz.f32.f64 %f1, %fd1;", "cvt.rn.f64.f32 %fd1, %f1;", "cvt.rzi.ftz.s32.f32 %r1, %f1;",
    "cvt.sat.u8.s32 %rs1, %r1;", "cvt.f32.s32 %f1, %r1;", "cvt.rn.sat.f32.s32 %f1, %r1;",
    "cvt.rn.bf16.f32 %rs1, %f1;", "cvt.rni.ftz.f32.f32 %f1, %f2;", "shf.l.wrap.b32 %r1, %r2, %r3, %r4;",
    "shfl.sync.bfly.b32 %r1, %r2, 1, 31, -1;", "vote.sync.all.pred %p1, %p2, -1;", "prmt.b32.f4e %r1, %r2, %r3, 1;",
    "lop3.b32 %r1, %r2, %r3, %r4, 1;", "bfe.u32 %r1, %r2, 1, 2;", "copysign.f32 %f1, %f2, %f3;",
    "atom.cas.b64 %rd1, [%at1], %rd2, %rd3;", "atom.global.exch.b32 %r1, [%at1], %r2;",
    "atom.global.add.f32 %f1, [%at1], %f2;", "atom.acquire.gpu.global.add.u32 %r1, [%at1], %r2;",
    "red.global.add.u32 [%at1], %r1;", "ld.local.f32 %f1, [%at1];", "ld.const.f32 %f1, [%at1];",
    "ld.acquire.gpu.global.u32 %r1, [%at1];", "ld.relaxed.gpu.global.u32 %r1, [%at1];", "st.local.f32 [%at1], %f1;",
    "st.release.gpu.global.u32 [%at1], %r1;", "bar.sync 1;", "bar.sync 0, 64;", "bar.arrive 0, 64;",
    "bar.warp.sync 15;", "barrier.sync 0;", "membar.cta;", "fence.acq_rel.gpu;", "mov.u32 %r1, %laneid;",
    "mov.u32 %r1, %tid.y;", "mov.u64 %rd1, unheard_of;", "call.uni other, ();", "trap;", "exit;",
    "prefetch.global.L2 [%at1];", "cp.async.ca.shared.global [%at1], [%at2], 16;",
]  # fmt: skip


@pytest.mark.parametrize("statement", UNKNOWN, ids=lambda statement: statement.rstrip(";"))
def test_unknown_operations(statement):
    """The message shows the instruction."""
    with pytest.raises(Unknown) as refused:
        Kernel(ptx_of(f"\t{statement}\n\tret;", []))
    assert statement.rstrip(";") in str(refused.value)


@pytest.mark.parametrize("statement", ["ld.global.v2.f32 %f1, [%at1];", "st.global.f32 [%at1], {%f1, %f2};",
                                       "add.s32 %r1, %r2;", "neg.s32 %r1, %r2, %r3;"])  # fmt: skip
def test_wrong_numbers_of_operands(statement):
    with pytest.raises(Unknown, match=statement.partition(" ")[0]):
        Kernel(ptx_of(f"\t{statement}\n\tret;", []))


def test_one_entry_point_is_expected():
    one = ptx_of("\tret;", [])
    with pytest.raises(Unknown, match="2 entry points"):
        Kernel(one + one.replace("test", "other"))
    with pytest.raises(Unknown, match="0 entry points"):
        Kernel(".version 9.0\n.target sm_90\n")
    with pytest.raises(Unknown, match="calls nothing"):
        Kernel(".func helper() { ret; }\n" + one)


def test_other_parameters_than_words_are_unknown():
    with pytest.raises(Unknown, match="u32"):
        Kernel(ptx_of("\tret;", ["x"]).replace(".param .u64", ".param .u32"))


def test_a_message_names_the_kernel():
    text = ptx_of("\tld.param.u64 %at1, [x];\n\tld.global.f32 %f1, [%at1];\n\tret;", ["x"])
    expected = "out of bounds: 'ld.global.f32 %f1, [%at1];' at 0x10 by thread 0 of block 0 of test"
    with pytest.raises(Fault, match=f"^{re.escape(expected)}"):
        Kernel(text).launch(1, 1, [16], Memory())
