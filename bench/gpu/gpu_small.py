"""A few steps of every kind of kernel at awkward sizes, held against the CPU: what compute-sanitizer runs.

compute-sanitizer --tool memcheck python bench/gpu/gpu_small.py
"""

import argparse
import sys

import numpy as np
import torch
from gpu_machine import DEVICES, Host, machine_of

import fastopt

SHAPES = ((10_007,), (37, 129), (4097,), (33,), (1,), (0,), ())
STACKED = {"global_clipnorm": 1.0, "weight_decay": 0.01, "use_ema": True, "gradient_accumulation_steps": 2}
KINDS = (
    ("Adam", {}, np.float32),
    ("Adam", STACKED, np.float32),
    ("Adam", STACKED, np.float64),
    ("SGD", {"clipnorm": 0.5, "nonfinite": "skip"}, np.float32),
    ("Lamb", STACKED, np.float32),
    ("Adafactor", {}, np.float32),
    ("Muon", {}, np.float32),
)
STEPS = 3
TOLERANCES = {np.float32: 1e-4, np.float64: 1e-9}


def drawn(dtype, number):
    """Arrays of `SHAPES`, the same for the same number."""
    rng = np.random.default_rng(number)
    return [np.asarray(rng.normal(size=shape), dtype) for shape in SHAPES]


def strided(tensor):
    """The same numbers, with gaps between them."""
    wide = torch.full((*tensor.shape, 3), torch.nan, dtype=tensor.dtype, device=tensor.device)
    wide[..., 1] = tensor
    return wide[..., 1]


def parameters_after(name, options, dtype, machine):
    """As NumPy arrays, after steps whose last two gradients have strides."""
    params = [torch.as_tensor(array.copy(), device=machine.device) for array in drawn(dtype, 0)]
    optimizer = getattr(fastopt, name)(**options)
    optimizer.build([machine.as_array(param) for param in params])
    for step in range(1, STEPS + 1):
        grads = [torch.as_tensor(array, device=machine.device) for array in drawn(dtype, step)]
        grads[1:3] = map(strided, grads[1:3])
        optimizer.apply([machine.as_array(grad) for grad in grads])
    machine.wait()
    return [param.cpu().numpy() for param in params]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=DEVICES, default="cuda")
    parser.add_argument("--probe", action="store_true", help="only use the GPU, without fastopt")
    parser.add_argument("--without", action="append", default=[], help="an optimizer to leave out")
    arguments = parser.parse_args()
    if arguments.probe:
        sys.exit(float(torch.ones(8, device=arguments.device).sum()) != 8)
    machine, reference = machine_of(arguments.device), Host()
    kinds = [kind for kind in KINDS if kind[0] not in arguments.without]
    for name, options, dtype in kinds:
        found = parameters_after(name, options, dtype, machine)
        expected = parameters_after(name, options, dtype, reference)
        for one, other in zip(found, expected, strict=True):
            limit = TOLERANCES[dtype]
            np.testing.assert_allclose(one, other, limit, limit, err_msg=f"{name} {options} {dtype}")
    print(f"{len(kinds)} kinds of optimizers, {STEPS} steps each: as on the CPU")


if __name__ == "__main__":
    main()
