"""The text of a PTX kernel as blocks of instructions."""

import re
from typing import NamedTuple


class Unknown(Exception):
    """PTX that is not known here."""


class Instruction(NamedTuple):
    """One instruction: ``line`` of the kernel's text, ``guard`` ("%p1", "!%p1" or None), operation and operands."""

    line: int
    guard: str | None
    operation: str
    operands: list[str]


class Block(NamedTuple):
    """Instructions that are carried out one after the other; only the last one may leave or pause the thread."""

    label: str
    instructions: list[Instruction]


class Text(NamedTuple):
    """A kernel: its name and target, names of its 64-bit parameters, types of its registers, shared arrays, blocks.

    ``lines`` are those that instructions are numbered by. ``narrowest`` are the bytes of the narrowest access, at most
    4.
    """

    name: str
    target: str
    parameters: list[str]
    kinds: dict[str, str]  # prefix of a register's name → type
    shared: dict[str, int]  # name of a shared array → where it begins, in bytes
    shared_bytes: int
    blocks: list[Block]
    lines: list[str]
    narrowest: int


LEAVING = ("bra", "ret")
PAUSING = ("bar", "membar", "fence", "atom")
"""Operations after which another thread may be run."""

IGNORED = (".reg", ".pragma", ".shared", ".loc", ".maxntid", ".minnctapersm")


def parse(ptx):
    """The `Text` of the only entry point in some PTX."""
    ptx = re.sub(r"//[^\n]*", "", ptx)
    entries = re.findall(r"\.entry\s+(\w+)", ptx)
    if len(entries) != 1 or ".func" in ptx:
        raise Unknown(f"{len(entries)} entry points, and functions: one entry point that calls nothing is expected")
    head, _, body = ptx[ptx.index(".entry") :].partition("(")[2].partition(")")
    parameters = re.findall(r"\.param\s+\.(\w+)\s+(\w+)", head)
    if any(kind not in ("u64", "b64", "s64") for kind, _ in parameters):
        raise Unknown(f"parameters {parameters}: 64-bit integers are expected")
    lines = body.split("\n")
    shared, shared_bytes = _shared(ptx)
    return Text(
        entries[0],
        re.search(r"\.target\s+(\w+)", ptx)[1],
        [name for _, name in parameters],
        {name: kind for kind, name in re.findall(r"\.reg\s+\.(\w+)\s+%(\w+)<", body)},
        shared,
        shared_bytes,
        _blocks(lines),
        lines,
        min([4, *(int(bits) // 8 for bits in re.findall(r"\b(?:ld|st|atom)\.[\w.]*?\.[bus](8|16)\b", body))]),
    )


def _shared(ptx):
    """Where each shared array begins, and bytes of all."""
    places, end = {}, 0
    for align, name, size in re.findall(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+(\w+)\[(\d+)\]", ptx):
        places[name] = -(-end // int(align)) * int(align)
        end = places[name] + int(size)
    return places, end


def _blocks(lines):
    """Split at labels, after what leaves or pauses, and around what is guarded."""
    blocks = [Block("entry", [])]

    def begin(label):
        blocks.append(Block(label, []))

    for number, line in enumerate(lines):
        for statement in re.findall(r"[^;:]+[;:]", line):
            text = statement.rstrip("; \t").lstrip("{} \t")
            if text.endswith(":"):
                begin(text[:-1].strip())
            elif text and not text.startswith(IGNORED):
                instruction = _instruction(number, text)
                name = instruction.operation.partition(".")[0]
                alone = instruction.guard and name not in LEAVING
                if alone and blocks[-1].instructions:
                    begin(f"guarded {number}")
                blocks[-1].instructions.append(instruction)
                if alone or name in LEAVING + PAUSING:
                    begin(f"after {number}")
    return blocks


def _instruction(number, text):
    guard = re.match(r"@(!?%\w+)\s+", text)
    if guard:
        text = text[guard.end() :]
    operation, _, rest = re.sub(r"\s+", " ", text).partition(" ")
    operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", rest)
    return Instruction(number, guard and guard[1], operation, operands)
