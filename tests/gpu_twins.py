"""Optimizers on a made-up GPU beside others like them on the host: after the same steps both must have the same bits.

Importing this imports fastopt, but neither Keras nor torch.
"""

import numpy as np
from gpu_arrays import Interface
from running_driver import finish_all

import fastopt
from fastopt.device import CudaArray
from fastopt.flat import FlatBuffer, flatten, rebuild


def on_gpu(structure):
    """The same nesting of the same memory, as arrays on the GPU."""
    return rebuild(structure, lambda leaf: leaf if leaf is None else Interface(leaf))


def memory_of(array):
    """An array of either side as NumPy's."""
    if isinstance(array, CudaArray):
        return array.copy_to_host()
    finish_all()
    return array.memory if isinstance(array, Interface) else array


def assert_same_bits(actual, expected, name):
    """NaN equals NaN: which of them an operation gives is up to the processor."""
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), name
    values = [np.where(np.isnan(array), np.nan, array).astype(array.dtype) for array in (actual, expected)]
    different = np.argwhere(np.not_equal(*(value.view(f"u{value.itemsize}") for value in values)))
    if len(different):
        where = tuple(different[0].tolist())
        raise AssertionError(
            f"{name}: {len(different)} of {actual.size} differ, at {where} first: {actual[where]!r} for "
            f"{expected[where]!r}"
        )


class Twins:
    """Two optimizers, ``host`` and ``gpu``.

    Parameters
    ----------
    make : function
        Makes an optimizer.
    params : function
        Makes what it is built with, of NumPy arrays.
    overrides : dict, optional
        As of `build`.
    packed : bool
        Whether the parameters are packed to a FlatBuffer first.
    before_build : function, optional
        ``(optimizer, params)``, called for both.
    """

    def __init__(self, make, params, overrides=None, packed=False, before_build=None):
        self.host, self.gpu = make(), make()
        self.host_params, self.gpu_params = params(), on_gpu(params())
        if packed:
            self.host_params, self.gpu_params = map(fastopt.pack, (self.host_params, self.gpu_params))
        for optimizer, own in ((self.host, self.host_params), (self.gpu, self.gpu_params)):
            if before_build:
                before_build(optimizer, own)
            optimizer.build(own, overrides)

    def both(self, action):
        """What ``action`` gives for each of the optimizers."""
        return action(self.host), action(self.gpu)

    def set(self, **settings):
        """Give both the same settings."""
        for name, value in settings.items():
            setattr(self.host, name, value)
            setattr(self.gpu, name, value)

    def apply(self, grads, **options):
        """A step with the gradients that ``grads()`` makes, for each of the two anew; the gradients, NumPy's."""
        own, other = grads(), grads()
        self.host.apply(own, **options)
        self.gpu.apply(on_gpu(other) if not isinstance(other, FlatBuffer) else _packed_on_gpu(other), **options)
        return own, other

    def step(self, grads, **options):
        """`apply`, then `check` all, the gradients too."""
        own, other = self.apply(grads, **options)
        self.check()
        for path, left, right in zip(*flatten(other), flatten(own)[1], strict=True):
            if left is not None:
                assert_same_bits(left, right, f"gradient {path}")

    def check(self):
        """Compare parameters, state, counters, and what is told of the last step."""
        expected, actual = self.both(lambda optimizer: optimizer.state_dict())
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            if isinstance(value, np.ndarray):
                assert_same_bits(actual[name], value, name)
            else:
                assert (name, actual[name]) == (name, value)
        told = self.both(lambda optimizer: (optimizer.iterations, optimizer.last_step_skipped))
        assert told[1] == told[0]
        norms = self.both(lambda optimizer: optimizer.last_grad_norm)
        assert repr(norms[1]) == repr(norms[0])
        self.check_params()

    def check_params(self):
        """Compare the parameters alone: nothing is asked of the GPU."""
        paths, leaves = flatten(self.gpu_params)
        for path, actual, expected in zip(paths, leaves, flatten(self.host_params)[1], strict=True):
            assert_same_bits(memory_of(actual), memory_of(expected), f"parameter {path}")


def _packed_on_gpu(buffer):
    """A packed gradient, on the GPU."""
    return fastopt.pack(on_gpu(buffer.views))
