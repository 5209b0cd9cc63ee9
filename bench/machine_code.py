"""How much CUDA kernels have in flight from memory, counted in machine code for sm_90. Needs no GPU, measures nothing.

    python bench/machine_code.py        # three minutes; prints the table of docs/gpu.md

With nvdisasm, of CUDA's toolkit or `pip install nvidia-cuda-nvdisasm`, machine code is what counts, else PTX. Kernels
are those that the tests compile: `tests/test_cuda_ptx.py`; `tests/machine_code.py` says what is counted.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import machine_code
import test_cuda_ptx as kernels

COLUMNS = (
    "kernel", "registers", "blocks per SM", "wide loads in flight", "in each loop", "by PTX", "KiB per SM",
    "predicted share", "rules",
)  # fmt: skip


def cells_of(wanted):
    """Kernel and figures."""
    ptx, resources, _, groups = kernels.compiled(wanted)
    room = resources.registers, kernels.threads_of(wanted), machine_code.shared_of(ptx)
    loads, kib = kernels.loads_in_flight(wanted), kernels.kib_in_flight(wanted)[-1]
    return (
        kernels.kernel_of(wanted.id),
        resources.registers,
        machine_code.blocks_per_multiprocessor(*room),
        loads[-1],
        ", ".join(map(str, groups[-1])),
        loads[0],
        f"{kib:.0f}",
        f"{min(1, kib / machine_code.NEEDED):.2f}",
    )


def line_of(cells):
    """A line of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def main():
    found = {}
    for key in kernels.OPTIMIZERS:
        found |= kernels.wanted_by(key, kernels.F32, kernels.HOPPER)
    rules = {}  # figures → rules that share them, but for registers
    for id in sorted(found):
        kernel, registers, *figures = cells_of(found[id])
        rule = id.partition(" ")[2].removesuffix("float32").removesuffix("_")
        rules.setdefault((kernel, *figures), []).append((registers, rule))
    print(line_of(COLUMNS))
    print(line_of(["---"] + ["---:"] * (len(COLUMNS) - 2) + ["---"]))
    for (kernel, *figures), members in rules.items():
        registers = sorted({count for count, _ in members})
        span = registers[0] if len(registers) == 1 else f"{registers[0]} to {registers[-1]}"
        print(line_of((kernel, span, *figures, ", ".join(sorted(rule for _, rule in members)))))


if __name__ == "__main__":
    main()
