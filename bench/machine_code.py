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
    "kernel", "rule", "registers", "blocks per SM", "wide loads in flight", "in each loop", "by PTX", "KiB per SM",
    "predicted share",
)  # fmt: skip


def row_of(wanted):
    """The cells of a kernel's row."""
    ptx, resources, image, in_flight = kernels.compiled(wanted)
    room = resources.registers, kernels.threads_of(wanted), machine_code.shared_of(ptx)
    loops = machine_code.groups_of_cubin(image, kernels.NVDISASM) if kernels.NVDISASM else ()
    kib = kernels.kib_in_flight(wanted)[-1]
    return (
        *wanted.id.removesuffix("_float32").removesuffix(" float32").partition(" ")[::2],
        resources.registers,
        machine_code.blocks_per_multiprocessor(*room),
        in_flight[-1],
        ", ".join(map(str, loops)),
        in_flight[0],
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
    print(line_of(COLUMNS))
    print(line_of(["---"] * 2 + ["---:"] * (len(COLUMNS) - 2)))
    for id in sorted(found):
        print(line_of(row_of(found[id])), flush=True)


if __name__ == "__main__":
    main()
