"""Kernels that can be launched, by their PTX."""

import hashlib

import llvmlite.binding as llvm
import numpy as np
from fastopt.kernels.compile import cache

from ptx import races
from ptx.launch import FAULTS, FINE, LAUNCH, RACE
from ptx.machine import machine, source_key
from ptx.parse import parse
from ptx.translate import translate

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()


class Fault(Exception):
    """What a launch did wrong: which instruction, at which address, by which thread of which block."""


class Kernel:
    """The entry point of some PTX.

    Parameters
    ----------
    ptx : str
    """

    def __init__(self, ptx):
        self.text = parse(ptx)
        self._words, code = _translated(self.text, ptx)
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target_machine())
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        self._step = self._engine.get_function_address("step")

    def launch(self, blocks, threads, numbers, memory, order=0, seed=1, races=False, resident=8):
        """Run a grid, and return the `LAUNCH` record of what it did.

        Parameters
        ----------
        blocks, threads : int
        numbers : sequence of int
            Arguments.
        memory : Memory
            What may be touched.
        order : int
            0: threads as they are numbered, a step at a time; 1: the last one first, as far as it comes; 2: at random.
        seed : int
            Of what is random.
        races : bool
            Whether to look for them: a few times slower, and needs memory for the square of all threads.
        resident : int
            Blocks that are there at the same time, where the order is random. Otherwise it is one.

        Raises
        ------
        Fault
        """
        assert len(numbers) == len(self.text.parameters)
        records = np.zeros(1, LAUNCH)
        launch = records[0]
        params = np.array([int(number) & 0xFFFFFFFFFFFFFFFF for number in numbers], np.uint64)
        table = memory.table()
        resident = min(blocks, resident) if order == 2 else 1
        shared = _aligned(resident, -(-self.text.shared_bytes // 16) * 16)
        flags = np.zeros((resident, shared.shape[1] // 4 + 1), np.uint8)
        frames = np.empty((resident * threads, self._words), np.int64)
        launch["params"], launch["ranges"], launch["range_count"] = params.ctypes.data, table.ctypes.data, len(table)
        runs = machine()
        launch["check"], launch["fence"], launch["synchronise"] = runs[1:]
        launch["blocks"], launch["threads"], launch["resident"] = blocks, threads, resident
        launch["order"], launch["seed"], launch["races"] = order, seed, races
        launch["grain"] = grain = self.text.narrowest
        launch["shared_bytes"], launch["shared_start"] = self.text.shared_bytes, shared.ctypes.data
        kept = _clocks(launch, blocks * threads, memory.cells() * (4 // grain), shared.size // grain) if races else ()
        runs.run_grid(self._step, records.ctypes.data, frames, shared, flags)
        del kept
        if launch["error"] != FINE:
            raise Fault(self._said(launch))
        return launch

    def _said(self, launch):
        def of(thread):
            return f"thread {thread % launch['threads']} of block {thread // launch['threads']}"

        def line(number):
            return self.text.lines[number].strip()

        said = f"{FAULTS[launch['error']]}: '{line(launch['error_line'])}' at {launch['error_address']:#x} by "
        said += f"{of(launch['error_thread'])} of {self.text.name[:80]}"
        if launch["error"] == RACE:
            other = f"'{line(launch['error_other_line'])}' by {of(launch['error_other'])}"
            said += f", with {other}; {launch['race_count']} in all"
        return said


def _aligned(rows, nbytes):
    """Rows of so many bytes, all ones, that begin at multiples of 16."""
    memory = np.full(rows * nbytes + 16, 0xFF, np.uint8)
    first = -memory.ctypes.data % 16
    return memory[first : first + rows * nbytes].reshape(rows, nbytes)


def _clocks(launch, total, cells, shared_cells):
    """Have races looked for; what must live meanwhile. Only what is used of the arrays is taken of the machine."""
    launch["total"], launch["shared_cells"] = total, cells
    arrays = [np.zeros((total, total), np.int32) for _ in ("clocks", "released", "acquired")]
    np.fill_diagonal(arrays[0], 1)
    arrays += [np.zeros((cells + shared_cells + 1, races.CELL), np.int32)]
    rows = min(races.ROWS, 2**33 // (4 * total))
    arrays += [np.zeros((rows, total), np.int32)]
    for name, array in zip(("clocks", "released", "acquired", "cells", "rows"), arrays, strict=True):
        launch[name] = array.ctypes.data
    launch["row_limit"] = rows
    return arrays


def _translated(text, ptx):
    """How many words a thread's frame has, and machine code; kept where fastopt keeps that of its own kernels."""
    digest = hashlib.sha256(ptx.encode()).hexdigest()
    path = cache.cache_path("ptx", source_key() + digest)
    kept = path and cache.read_cached(path)
    if not kept:
        translated = translate(text)
        module = llvm.parse_assembly(str(translated.module))
        kept = b"%d\n%b" % (translated.words, _target_machine().emit_object(module))
        if path:
            cache.write_cached(path, lambda: kept)
    words, _, code = kept.partition(b"\n")
    return int(words), code


def _target_machine():
    target = llvm.Target.from_default_triple()
    features = llvm.get_host_cpu_features().flatten()
    # Without optimisation: it runs as fast, since accesses are checked by calls, and compiles ten times as fast.
    return target.create_target_machine(llvm.get_host_cpu_name(), features, opt=0, codemodel="jitdefault", jit=True)
