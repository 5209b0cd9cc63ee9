"""How many bytes a compiled kernel has under way from global memory, counted in its code. Nothing here runs on a GPU.

A thread waits where it needs what it has loaded. The wide loads, of 16 bytes, that it has begun until then are *in
flight* together: with those of the other threads on a multiprocessor they have to cover the memory's latency.

What is counted is the largest group of wide loads in each innermost loop that has some. A group ends at a branch or its
target, and where anything waits for one of its loads. Loads under a condition count for nothing, and end nothing: those
of averages and accumulators, which most steps leave out. Copies that go around registers (``cp.async``) are unknown.
"""

import importlib.util
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

NEEDED = 21
"""KiB in flight per multiprocessor that reading at 4.3 TB/s takes, with a latency of 0.65 µs and 132 multiprocessors:
4.3e12 × 0.65e-6 / 132 bytes, rounded up."""


class Line(NamedTuple):
    """An instruction, or a label, as far as it matters here."""

    label: str = ""
    target: str = ""  # of a branch
    divides: bool = False  # whether it is a branch, or the target of one
    loads: frozenset = frozenset()  # what is under way from here on, if it is a wide load: registers, scoreboard
    touches: frozenset = frozenset()  # what it needs, or writes, or waits for


# -- groups of loads in loops ------------------------------------------------------------------------------------------


def largest_group(lines):
    """The most wide loads that are in flight together."""
    most, count, pending = 0, 0, frozenset()
    for line in lines:
        if line.divides or line.touches & pending:
            count, pending = 0, frozenset()
        if line.loads:
            count, pending = count + 1, pending | line.loads
        most = max(most, count)
    return most


def loops_of(lines):
    """The parts of a function that a branch back repeats: innermost ones among those with wide loads."""
    starts = {line.label: k for k, line in enumerate(lines) if line.label}
    ends = {starts[line.target]: k for k, line in enumerate(lines) if starts.get(line.target, k) < k}
    loops = [(start, end) for start, end in ends.items() if any(line.loads for line in lines[start:end])]
    return [
        lines[start:end]
        for start, end in sorted(loops)
        if not any((start, end) != (s, e) and start <= s and e <= end for s, e in loops)
    ]


def groups_of(functions):
    """The largest group of each loop with wide loads, in the order of the code."""
    return [largest_group(loop) for lines in functions for loop in loops_of(lines)]


# -- PTX ---------------------------------------------------------------------------------------------------------------

PTX_LINE = re.compile(
    r"^\s*(?:(?P<label>\$\w+):|(?P<predicate>@!?%p\d+\s+)?(?P<name>[a-z][\w.]*)\s*(?P<rest>[^;]*);)", re.M
)
PTX_WIDE = re.compile(r"ld\.global(\.\w+)*\.(v4\.[bfsu]32|v2\.[bfsu]64)$")


def groups_of_ptx(ptx):
    """Wide loads in flight per thread, of each loop that has some, by PTX alone.

    ptxas may still move loads together, or apart: where short branches lie between them it knows more than this.
    """
    return groups_of([[_line_of_ptx(found) for found in PTX_LINE.finditer(ptx)]])


def _line_of_ptx(found):
    if found["label"]:
        return Line(label=found["label"], divides=True)
    name, rest = found["name"], found["rest"]
    if name.partition(".")[0] in ("bra", "brx", "call", "ret", "exit"):
        target = re.search(r"\$\w+", rest)
        return Line(target=target[0] if target else "", divides=True)
    loads = ()
    if PTX_WIDE.match(name) and not found["predicate"]:
        loads = re.findall(r"%\w+", rest.partition("}")[0])
    return Line(loads=frozenset(loads), touches=frozenset(re.findall(r"%\w+", rest)))


# -- machine code ------------------------------------------------------------------------------------------------------

SASS_LINE = re.compile(
    r"^\s*(?:(?P<label>\.L\w+):"
    r"|/\*[0-9a-f]{4,}\*/\s+(?P<predicate>@\S+\s+)?(?P<name>[A-Z][\w.]*)(?P<rest>[^;]*);"
    r"\s*/\* 0x[0-9a-f]{16} \*/\s*/\* 0x(?P<control>[0-9a-f]{16}) \*/)",
    re.M,
)
SASS_WIDE = re.compile(r"LDG(\.\w+)*\.128\b")
BRANCHES = ("BRA", "BRX", "JMP", "JMX", "CALL", "RET", "EXIT", "BREAK", "BSYNC")


def find_nvdisasm():
    """The disassembler of CUDA's toolkit or of the package nvidia-cuda-nvdisasm, or None."""
    found = shutil.which("nvdisasm")
    if found is None and (nvidia := importlib.util.find_spec("nvidia")):
        paths = (path for folder in nvidia.submodule_search_locations for path in Path(folder).glob("*/bin/nvdisasm*"))
        found = next(map(str, paths), None)
    return found


def groups_of_cubin(image, nvdisasm):
    """Wide loads in flight per thread, of each loop that has some, by the machine code of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(image)
        file.flush()
        command = [nvdisasm, "--print-code", "--print-instruction-encoding", file.name]
        code = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    functions = re.split(r"^\s*\.section\s+\.text\.", code, flags=re.M)[1:]
    return groups_of([_lines_of_sass(list(SASS_LINE.finditer(each))) for each in functions])


def _lines_of_sass(founds):
    """Labels that no instruction names mark loads for the driver, and are left out."""
    named = {label for found in founds for label in re.findall(r"\.L\w+", found["rest"] or "")}
    return [_line_of_sass(found) for found in founds if found["label"] is None or found["label"] in named]


def _line_of_sass(found):
    """Bits 41 on of the control word: 4 of stalls, 1, scoreboard set when written, when read, mask of those awaited."""
    if found["label"]:
        return Line(label=found["label"], divides=True)
    name, rest, control = found["name"], found["rest"], int(found["control"], 16)
    if name.partition(".")[0] in BRANCHES:
        target = re.search(r"\.L\w+", rest)
        return Line(target=target[0] if target else "", divides=True)
    registers = re.findall(r"\bR\d+\b", rest)
    loads = ()
    if SASS_WIDE.match(name) and not found["predicate"]:
        first = int(registers[0][1:])
        loads = (f"scoreboard {control >> 46 & 7}", *(f"R{k}" for k in range(first, first + 4)))
    awaited = (f"scoreboard {k}" for k in range(6) if control >> 52 + k & 1)
    return Line(loads=frozenset(loads), touches=frozenset((*registers, *awaited)))


# -- a multiprocessor of sm_90 -----------------------------------------------------------------------------------------


def shared_of(ptx):
    """Bytes of shared memory that a block has."""
    return sum(map(int, re.findall(r"\.shared\b.*\[(\d+)\];", ptx)))


def blocks_per_multiprocessor(registers, threads, shared):
    """Blocks that stand on a multiprocessor at a time: 64 Ki registers, in quarters, 228 KiB shared, 1 KiB reserved."""
    warps = -(-threads // 32)
    quarter = 2**14 // (-(-registers * 32 // 256) * 256)
    room = 228 * 1024 // (-(-shared // 128) * 128 + 1024)
    return min(4 * quarter // warps, 64 // warps, room, 32)


def kib_per_multiprocessor(loads, registers, threads, shared):
    """KiB in flight per multiprocessor, with so many wide loads per thread and all the blocks that it has room for."""
    return loads * 16 * threads * blocks_per_multiprocessor(registers, threads, shared) / 1024
