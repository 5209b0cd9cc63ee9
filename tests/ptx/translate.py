"""A kernel's text as LLVM IR: a function of one thread, ``void step(frame, launch)``, that returns at every pause.

A register that one block alone uses is a value; the others have a word in the thread's frame.
"""

import re
from typing import Any, NamedTuple

from llvmlite import ir

from ptx.launch import (
    AT_BLOCK,
    AT_WARP,
    ATOMIC,
    BLOCK,
    ENDED,
    FAULTY,
    GENERIC,
    GLOBAL,
    HEAD,
    LAUNCH,
    LINE,
    LOAD,
    PLACE,
    RUNNING,
    SHARED,
    SHARED_ONLY,
    STATE,
    STORE,
    THREAD,
)
from ptx.operations import bits_of, is_float, llvm_type, operation
from ptx.parse import Unknown

WORD = ir.IntType(64)
VOID = ir.VoidType()
SPACES = {"global": GLOBAL, "shared": SHARED_ONLY}
OWN = ("bra", "ret", "bar", "membar", "atom", "ld", "st", "mov")
"""Operations that are more than a value made of values: methods of `_Translator`."""


class Translated(NamedTuple):
    """The module, and how many words a frame has."""

    module: Any
    words: int


def translate(text):
    """The `Translated` function of a `parse.Text`."""
    return _Translator(text).run()


def number_of(operand, kind):
    """The constant that an operand is; None if it is none."""
    if operand[:2].lower() in ("0f", "0d"):
        bits = ir.Constant(ir.IntType(4 * len(operand[2:])), int(operand[2:], 16))
        return bits.bitcast(llvm_type(kind)) if is_float(kind) else bits
    try:
        number = int(operand, 0)
    except ValueError:
        return None
    return ir.Constant(llvm_type(kind), float(number) if is_float(kind) else number)


class _Translator:
    def __init__(self, text):
        self.text = text
        self.module = ir.Module()
        self.module.triple = ""
        self.function = ir.Function(self.module, ir.FunctionType(VOID, [WORD, WORD]), "step")
        self.frame, self.launch = self.function.args
        self.builder = ir.IRBuilder(self.function.append_basic_block("start"))
        self.labels = {block.label: self.function.append_basic_block() for block in text.blocks}
        self.words = {name: HEAD + k for k, name in enumerate(sorted(self._shared_registers()))}
        self.values = {}
        self.pauses = []

    def run(self):
        start, fault = self.builder.block, self.function.append_basic_block("fault")
        self.fault = fault
        for block, following in zip(self.text.blocks, [*self.text.blocks[1:], None], strict=True):
            self._block(block, following)
        self.builder.position_at_end(fault)
        self._leave(FAULTY)
        self.builder.position_at_end(start)
        places = self.builder.switch(self._word(PLACE), self.labels[self.text.blocks[0].label])
        for number, label in enumerate(self.pauses, 1):
            places.add_case(ir.Constant(WORD, number), self.labels[label])
        return Translated(self.module, HEAD + len(self.words))

    def _shared_registers(self):
        """Names of the registers that several blocks use, or one block before it has written them."""
        homes, shared = {}, set()
        for block in self.text.blocks:
            written = set()
            for instruction in block.instructions:
                targets, sources = _registers_of(instruction)
                for name in sources:
                    if homes.setdefault(name, block.label) != block.label or name not in written:
                        shared.add(name)
                for name in targets:
                    if homes.setdefault(name, block.label) != block.label:
                        shared.add(name)
                    written.add(name)
        return shared

    # -- blocks --------------------------------------------------------------------------------------------------------

    def _block(self, block, following):
        self.values = {}
        self.builder.position_at_end(self.labels[block.label])
        for instruction in block.instructions:
            guard = instruction.guard
            if guard:
                chosen = self._value(guard.removeprefix("!"), "pred")
                chosen = self.builder.not_(chosen) if guard[0] == "!" else chosen
                then = self.function.append_basic_block()
                self.builder.cbranch(chosen, then, self.labels[following.label])
                self.builder.position_at_end(then)
            self._instruction(instruction, following)
        if not self.builder.block.is_terminated:
            if following:
                self.builder.branch(self.labels[following.label])
            else:
                self._leave(ENDED)

    def _instruction(self, instruction, following):
        base, *modifiers = instruction.operation.split(".")
        own = getattr(self, f"_{base}") if base in OWN else None
        try:
            if own:
                own(modifiers, instruction, following)
            else:
                self._compute(instruction)
        except Unknown as unknown:
            raise Unknown(f"{unknown}, in '{self.text.lines[instruction.line].strip()}'") from None

    def _compute(self, instruction):
        found = operation(instruction.operation)
        target, *operands = instruction.operands
        if len(operands) != len(found.operands):
            raise Unknown(f"{len(operands)} operands")
        values = [self._value(operand, kind) for operand, kind in zip(operands, found.operands, strict=True)]
        self._set(target, found.result, found.emit(self.builder, *values))

    def _bra(self, modifiers, instruction, following):
        self.builder.branch(self.labels[instruction.operands[0]])

    def _ret(self, modifiers, instruction, following):
        self._leave(ENDED)

    def _leave(self, state):
        self._set_word(STATE, state)
        self.builder.ret_void()

    # -- pauses --------------------------------------------------------------------------------------------------------

    def _pause(self, instruction, following, state):
        """Return, and go on with the next block."""
        self.pauses.append(following.label)
        self._set_word(PLACE, len(self.pauses))
        self._set_word(LINE, instruction.line)
        self._leave(state)

    def _bar(self, modifiers, instruction, following):
        if (modifiers, instruction.operands) == (["sync"], ["0"]):
            self._pause(instruction, following, AT_BLOCK)
        elif (modifiers, instruction.operands) == (["warp", "sync"], ["-1"]):
            self._pause(instruction, following, AT_WARP)
        else:
            raise Unknown(f"the barrier {instruction.operation}")

    def _membar(self, modifiers, instruction, following):
        if modifiers not in (["gl"], ["sys"]):
            raise Unknown(f"the fence {instruction.operation}")
        self._call("fence", [])
        self._pause(instruction, following, RUNNING)

    def _atom(self, modifiers, instruction, following):
        *where, name, kind = modifiers
        space = [SPACES[one] for one in where if one in SPACES]
        if name != "add" or kind not in ("u32", "s32", "u64") or set(where) - {*SPACES, "relaxed", "gpu", "sys"}:
            raise Unknown(f"the atomic operation {instruction.operation}")
        target, place, amount = instruction.operands
        address, space = self._address(place), (space or [GENERIC])[0]
        self._check(instruction, address, bits_of(kind) // 8, ATOMIC, space)
        numbers = [ir.Constant(WORD, instruction.line), address, ir.Constant(WORD, space)]
        self._call("synchronise", numbers)
        pointer = self.builder.inttoptr(address, llvm_type(kind).as_pointer())
        before = self.builder.load(pointer)
        self.builder.store(self.builder.add(before, self._value(amount, kind)), pointer)
        self._set(target, kind, before)
        self._pause(instruction, following, RUNNING)

    # -- memory --------------------------------------------------------------------------------------------------------

    def _ld(self, modifiers, instruction, following):
        *where, kind = modifiers
        target, source = instruction.operands
        if where == ["param"]:
            index = self.text.parameters.index(source.strip("[]"))
            params = self.builder.inttoptr(self._of_launch("params"), WORD.as_pointer())
            value = self.builder.load(self.builder.gep(params, [ir.Constant(WORD, index)]))
            return self._set(target, kind, self._as(value, kind))
        targets = _parts_of(target)
        address, kind = self._accessed(where, kind, instruction, source, LOAD, len(targets))
        for k, one in enumerate(targets):
            self._set(one, kind, self.builder.load(self._pointer(address, k, kind)))
        return None

    def _st(self, modifiers, instruction, following):
        *where, kind = modifiers
        target, source = instruction.operands
        sources = _parts_of(source)
        address, kind = self._accessed(where, kind, instruction, target, STORE, len(sources))
        for k, one in enumerate(sources):
            self.builder.store(self._value(one, kind), self._pointer(address, k, kind))

    def _accessed(self, where, kind, instruction, place, what, count):
        """The address of an access that was checked, and the type of its numbers."""
        space, expected = GENERIC, 1
        for modifier in where:
            if modifier in SPACES:
                space = SPACES[modifier]
            elif modifier in ("v2", "v4"):
                expected = int(modifier[1:])
            elif modifier not in ("volatile", "weak", "nc"):
                raise Unknown(f"the access {instruction.operation}")
        if count != expected:
            raise Unknown(f"{count} registers")
        address = self._address(place)
        self._check(instruction, address, count * bits_of(kind) // 8, what, space)
        return address, kind

    def _pointer(self, address, k, kind):
        place = self.builder.add(address, ir.Constant(WORD, k * bits_of(kind) // 8))
        return self.builder.inttoptr(place, llvm_type(kind).as_pointer())

    def _address(self, operand):
        base, _, offset = operand.strip("[]").partition("+")
        address = self._value(base.strip(), "u64")
        return self.builder.add(address, ir.Constant(WORD, int(offset))) if offset else address

    def _check(self, instruction, address, nbytes, what, space):
        numbers = [ir.Constant(WORD, number) for number in (instruction.line, nbytes, what, space)]
        fine = self._call("check", [numbers[0], address, *numbers[1:]])
        allowed = self.function.append_basic_block()
        self.builder.cbranch(self.builder.trunc(fine, ir.IntType(1)), allowed, self.fault)
        self.builder.position_at_end(allowed)

    def _mov(self, modifiers, instruction, following):
        target, source = instruction.operands
        if "{" not in target + source:
            return self._compute(instruction)
        parts = _parts_of(target if target[0] == "{" else source)
        whole, part = modifiers[-1], f"b{bits_of(modifiers[-1]) // len(parts)}"
        width = bits_of(part)
        if target[0] == "{":
            value = self._value(source, f"b{bits_of(whole)}")
            for k, one in enumerate(parts):
                shifted = self.builder.lshr(value, ir.Constant(value.type, k * width))
                if one != "_":
                    self._set(one, part, self.builder.trunc(shifted, llvm_type(part)))
            return None
        value = ir.Constant(llvm_type(f"b{bits_of(whole)}"), 0)
        for k, one in enumerate(parts):
            extended = self.builder.zext(self._value(one, part), value.type)
            value = self.builder.or_(value, self.builder.shl(extended, ir.Constant(value.type, k * width)))
        return self._set(target, f"b{bits_of(whole)}", value)

    # -- operands ------------------------------------------------------------------------------------------------------

    def _value(self, operand, kind):
        """An operand as a value of a type."""
        if operand in SPECIAL:
            return self._as(SPECIAL[operand](self), kind)
        if operand.startswith("%"):
            name = operand[1:]
            value = self.values.get(name)
            if value is None:
                value = self.builder.load(self._register(name))
            return self._as(value, kind)
        if operand in self.text.shared:
            return self.builder.add(self._word(SHARED), ir.Constant(WORD, self.text.shared[operand]))
        value = number_of(operand, kind)
        if value is None:
            raise Unknown(f"the operand {operand}")
        return value

    def _set(self, operand, kind, value):
        """Write a register."""
        name = operand[1:]
        value = self._as(value, self._kind(name), kind)
        if name in self.words:
            self.builder.store(value, self._register(name))
        else:
            self.values[name] = value

    def _as(self, value, kind, of=None):
        """The bits of a value as a type: of integers with more bits, those that are needed; with fewer, extended."""
        wanted = llvm_type(kind)
        if value.type == wanted:
            return value
        if isinstance(value.type, ir.IntType) and isinstance(wanted, ir.IntType):
            if value.type.width > wanted.width:
                return self.builder.trunc(value, wanted)
            return (self.builder.sext if of and of[0] == "s" else self.builder.zext)(value, wanted)
        return self.builder.bitcast(value, wanted)

    def _kind(self, name):
        kind = self.text.kinds.get(name.rstrip("0123456789"))
        if kind is None:
            raise Unknown(f"the register %{name}")
        return kind

    def _register(self, name):
        kind = llvm_type(self._kind(name))
        return self.builder.inttoptr(self._address_in(self.frame, 8 * self.words[name]), kind.as_pointer())

    def _address_in(self, base, offset):
        return self.builder.add(base, ir.Constant(WORD, offset))

    def _word(self, index):
        return self.builder.load(self.builder.inttoptr(self._address_in(self.frame, 8 * index), WORD.as_pointer()))

    def _set_word(self, index, number):
        pointer = self.builder.inttoptr(self._address_in(self.frame, 8 * index), WORD.as_pointer())
        self.builder.store(ir.Constant(WORD, number), pointer)

    def _of_launch(self, name):
        address = self._address_in(self.launch, LAUNCH.fields[name][1])
        return self.builder.load(self.builder.inttoptr(address, WORD.as_pointer()))

    def _call(self, name, numbers):
        """Call a function of the machine's."""
        arguments = [self.launch, self.frame, *numbers]
        kind = ir.FunctionType(WORD, [WORD] * len(arguments))
        return self.builder.call(self.builder.inttoptr(self._of_launch(name), kind.as_pointer()), arguments)


def _parts_of(operand):
    return [part.strip() for part in operand.strip("{}").split(",")]


def _registers_of(instruction):
    """Names of the registers that an instruction writes, and of those that it reads."""
    base, operands = instruction.operation.partition(".")[0], instruction.operands
    written = 0 if base in WRITING_NONE else 1
    guard = [instruction.guard.lstrip("!%")] if instruction.guard else []
    return _names_in(operands[:written]), guard + _names_in(operands[written:])


WRITING_NONE = ("st", "bra", "bar", "membar", "ret")
"""Operations that write no register."""


def _names_in(operands):
    return [name[1:] for operand in operands for name in re.findall(r"%[a-z]+\d+", operand)]


SPECIAL = {
    "%tid.x": lambda t: t._word(THREAD),
    "%ctaid.x": lambda t: t._word(BLOCK),
    "%ntid.x": lambda t: t._of_launch("threads"),
    "%nctaid.x": lambda t: t._of_launch("blocks"),
}
"""Registers that tell a thread where it is."""
