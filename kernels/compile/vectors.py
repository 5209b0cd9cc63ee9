"""Vectors while code is generated: how wide a processor's registers are, and what is made of vectors."""

from llvmlite import binding as llvm
from llvmlite import ir


def _registers():
    """Count the vector registers of this processor, and their bytes."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 32, 64
    return (16, 32) if features.get("avx") else (32 if features.get("neon") else 16, 16)


TILE_ROWS, REGISTER_BYTES = _registers()[0] // 4, _registers()[1]
"""Rows of a tile of `multiply_tile`, whose sums take half of the registers; bytes of one."""


def repeated(builder, number, vector):
    """A vector whose elements are all the same."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None)
    return builder.shuffle_vector(first, undefined, zeros)


def elements(builder, vector, first, count):
    """So many elements of a vector, from ``first`` on."""
    where = ir.Constant(ir.VectorType(ir.IntType(32), count), list(range(first, first + count)))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), where)
