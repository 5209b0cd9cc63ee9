"""Gradients for some rows on a GPU give the bits of the host's: the compiled kernels are executed on the CPU."""

import numpy as np
import pytest
from gpu_arrays import KINDS, DeviceNDArray, Interface
from gpu_twins import Twins, assert_same_bits, on_gpu
from running_driver import adopt
from test_cuda_steps import DTYPES, F32, F64, WAYS, strided

import fastopt
from fastopt import RowGradient
from fastopt.kernels.cuda import row_sort
from fastopt.kernels.cuda.gpu import Kernel

pytestmark = pytest.mark.usefixtures("gpus")

in_every_way = pytest.mark.parametrize("way", WAYS, indirect=True)

RULES = {
    "SGD": lambda **options: fastopt.SGD(0.1, **options),
    "momentum": lambda **options: fastopt.SGD(0.1, momentum=0.9, nesterov=True, **options),
    "Adam": lambda **options: fastopt.Adam(0.01, **options),
    "AdamW": lambda **options: fastopt.AdamW(0.01, weight_decay=0.1, **options),
    "Adagrad": lambda **options: fastopt.Adagrad(0.1, **options),
    "Ftrl": lambda **options: fastopt.Ftrl(0.1, l1_regularization_strength=0.1, beta=0.5, **options),
}
SHAPES = {"vector": (700,), "3": (700, 3), "64": (400, 8, 8), "5000": (40, 5000)}
COUNTS = (0, 1, 5, 300, 3000)


def drawn(rng, shape, count, dtype=F32, index=np.int64):
    """Indices, more often small ones, and values."""
    indices = (shape[0] * rng.random(count) ** 3).astype(index)
    return indices, rng.normal(size=(count, *shape[1:])).astype(dtype)


def rows_on_gpu(indices, values):
    """Memory of the host as a gradient for rows on the GPU."""
    return RowGradient(DeviceNDArray(indices), DeviceNDArray(values))


def table(shape, dtype=F32, seed=0):
    """A parameter."""
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


class RowTwins(Twins):
    """Twins whose gradients are arrays, None, or pairs of indices and values."""

    def step(self, *grads, check=True, **options):
        """A step with these, each side with its own copy; what they then are is compared too."""
        own, other = ([_copied(grad) for grad in grads] for _ in range(2))
        self.host.apply([RowGradient(*g) if isinstance(g, tuple) else g for g in own], **options)
        self.gpu.apply([rows_on_gpu(*g) if isinstance(g, tuple) else on_gpu(g) for g in other], **options)
        if check:
            self.check()
            for left, right in zip(other, own, strict=True):
                if right is not None:
                    assert_same_bits(*((g[1] if isinstance(g, tuple) else g) for g in (left, right)), "gradient")


def _copied(grad):
    return tuple(part.copy() for part in grad) if isinstance(grad, tuple) else None if grad is None else grad.copy()


def twins_of(name, *shapes, dtype=F32, overrides=None, **options):
    """Twins of one of the `RULES`, with tables of such shapes."""
    make = [(shape, dtype) for shape in shapes]
    return RowTwins(lambda: RULES[name](**options), lambda: [table(*each) for each in make], overrides)


# -- bits --------------------------------------------------------------------------------------------------------------


def combinations():
    """Every rule, dtype, shape and way."""
    for name in RULES:
        for dtype in DTYPES:
            for width, shape in SHAPES.items():
                for way in WAYS:
                    always = dtype == F32 and way == "races" and (name == "Adam" or width == "3")
                    marks = [] if always else [pytest.mark.full]
                    yield pytest.param(name, dtype, shape, way, id=f"{name}-{dtype}-{width}-{way}", marks=marks)


@pytest.mark.parametrize(("name", "dtype", "shape", "way"), list(combinations()), indirect=["way"])
def test_bits(name, dtype, shape):
    """Of any number of places, from none to several for each row."""
    rng, twins = np.random.default_rng(1), twins_of(name, shape, dtype=dtype)
    for count in COUNTS[: 4 if shape == SHAPES["5000"] else 5]:
        twins.step(drawn(rng, shape, count, dtype, np.int32 if count % 2 else np.int64))
