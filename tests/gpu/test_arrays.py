"""Arrays of every framework, containers, layouts; and what is refused."""

import functools

import children
import numpy as np
import pytest
from on_gpu import assert_same_bits, assert_same_state, host, require, tensor, tensors, torch

import fastopt

require()

F32 = np.float32
EXACT = [name for name in children.OPTIMIZERS if name != "Adafactor"]


def drawn(seed, shapes=((33, 7), (1000,))):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(size=shape), F32) for shape in shapes]


def stepped(params, gradients, optimizer=None):
    """An optimizer after three steps on `params`; `gradients(arrays)` places what a step's gradients are made of."""
    optimizer = optimizer or fastopt.Adam(0.01, global_clipnorm=1.0)
    optimizer.build(params)
    for step in (1, 2, 3):
        optimizer.apply(gradients(drawn(step)))
    return optimizer


@functools.cache
def on_cpu():
    params = drawn(0)
    return params, stepped(params, list)


# -- frameworks --------------------------------------------------------------------------------------------------------


def as_cupy(array):
    return pytest.importorskip("cupy").asarray(array)


def as_numba(array):
    from numba import cuda

    return cuda.to_device(array)


def as_jax(array):
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "gpu":
        pytest.skip("this JAX sees no GPU")
    return jax.numpy.asarray(array)


class OnlyDlpack:
    """An array that speaks DLPack and nothing else."""

    def __init__(self, array):
        self._tensor = tensor(array)

    def __dlpack__(self, **options):
        return self._tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._tensor.__dlpack_device__()


OWNERS = {"torch": tensor, "cupy": as_cupy, "numba": as_numba}
GRADIENTS = OWNERS | {"jax": as_jax, "dlpack": OnlyDlpack}


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("gradients", GRADIENTS)
def test_frameworks(owner, gradients):
    params = [OWNERS[owner](array) for array in drawn(0)]
    optimizer = stepped(params, lambda arrays: [GRADIENTS[gradients](array) for array in arrays])
    expected, reference = on_cpu()
    assert_same_bits(params, expected, "parameter")
    assert_same_state(optimizer, reference)


def test_slots_are_arrays_on_the_device():
    params = tensors(drawn(0))
    optimizer = stepped(params, tensors)
    for array, param in zip(optimizer.slots["velocity"], params, strict=True):
        assert torch.as_tensor(array, device="cuda").shape == param.shape
        assert array.copy_to_host().shape == tuple(param.shape)


def test_jax_parameters_are_refused():
    with pytest.raises((TypeError, ValueError), match=r"read-only|immutable"):
        fastopt.Adam().build([as_jax(np.ones(3, F32))])


def test_gradients_of_jax_cannot_be_zeroed():
    params = tensors(drawn(0))
    optimizer = fastopt.SGD()
    optimizer.build(params)
    with pytest.raises((TypeError, ValueError), match=r"read-only|immutable"):
        optimizer.apply([as_jax(array) for array in drawn(1)], zero_grads=True)
    assert_same_bits(params, drawn(0))


def test_muon_needs_a_framework_that_multiplies():
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"CuPy|torch"):
        fastopt.Muon().build([as_numba(np.ones((4, 4), F32))])


@pytest.mark.parametrize("owner", ["torch", "cupy"])
def test_muon(owner):
    """Float32 matrix products differ in their order of summation, and Newton-Schulz magnifies that."""
    expected, params = drawn(0), [OWNERS[owner](array) for array in drawn(0)]
    stepped(expected, list, fastopt.Muon(0.01))
    stepped(params, tensors, fastopt.Muon(0.01))
    for one, other in zip(params, expected, strict=True):
        np.testing.assert_allclose(host(one), other, rtol=1e-4, atol=1e-4)


def test_a_model_of_torch():
    """`Parameter`s as a user has them, gradients from a backward pass."""
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Linear(8, 3).cuda() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer = fastopt.SGD(0.1, momentum=0.9)
    optimizer.build(list(ours.parameters()))
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        x = torch.randn(16, 8, device="cuda")
        for model in (ours, theirs):
            model.zero_grad()
            model(x).square().mean().backward()
        optimizer.apply([param.grad for param in ours.parameters()])
        reference.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


# -- containers and layouts --------------------------------------------------------------------------------------------

NAMES = [f"layer{k}" for k in range(len(children.SHAPES))]


def named(arrays):
    return dict(zip(NAMES, arrays, strict=True))


def strided(array):
    wide = torch.full((*array.shape, 3), torch.nan, dtype=array.dtype, device="cuda")
    wide[..., 1] = array
    return wide[..., 1]


def flat_gradient(arrays):
    return fastopt.pack(arrays).flat


WAYS = {
    "list": (list, list),
    "dict": (named, named),
    "packed": (fastopt.pack, fastopt.pack),
    "packed, gradients in a list": (fastopt.pack, list),
    "packed, one flat gradient": (fastopt.pack, flat_gradient),
    "strided gradients": (list, lambda arrays: [strided(array) for array in arrays]),
    "float64 gradients": (list, lambda arrays: [array.double() for array in arrays]),
}


def bits(name, way="list"):
    """`children.bits`, on the GPU: parameters that go over many blocks, with most options, over ten calls."""
    container, gradients = WAYS[way]
    optimizer = getattr(fastopt, name)(**children.OPTIMIZERS[name], **children.OPTIONS)
    params = container(tensors(children._drawn(0)))
    optimizer.build(params)
    for number in range(1, children.UPDATES * children.OPTIONS["gradient_accumulation_steps"] + 1):
        optimizer.apply(gradients(tensors(children._drawn(number))))
    arrays = params.values() if isinstance(params, dict) else getattr(params, "arrays", params)
    slots = [array for _, row in sorted(optimizer.slots.items()) for array in row if array is not None]
    return children.digest(*map(host, arrays), *map(host, slots))


@functools.cache
def first_run(name):
    return bits(name)


@pytest.mark.parametrize("name", EXACT)
def test_large_arrays_as_on_the_cpu(name):
    assert first_run(name) == children.bits(name)


@pytest.mark.parametrize("name", children.OPTIMIZERS)
def test_two_runs_give_the_same_bits(name):
    assert bits(name) == first_run(name)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "list"])
@pytest.mark.parametrize("name", children.OPTIMIZERS)
def test_containers_and_strides(name, way):
    assert bits(name, way) == first_run(name)


def test_views_of_a_buffer_are_where_the_model_finds_its_parameters():
    params = fastopt.pack({"w": tensor(np.ones((3, 5), F32)), "b": tensor(np.zeros(3, F32))})
    grads = params.like()
    for view in grads.arrays:
        torch.as_tensor(view, device="cuda").fill_(2.0)
    optimizer = fastopt.SGD(0.25)
    optimizer.build(params)
    optimizer.apply(grads, zero_grads=True)
    assert (host(params.views["w"]) == 0.5).all()
    assert (host(params.views["b"]) == -0.5).all()
    assert not any(host(view).any() for view in grads.arrays)


@pytest.mark.parametrize("offset", [0, 1, 2, 3])
def test_parameters_that_are_not_aligned_to_16_bytes(offset):
    base, grad = tensor(np.arange(1003, dtype=F32)), tensor(np.ones(1003, F32))
    optimizer = fastopt.SGD(0.5)
    optimizer.build([base[offset:1000]])
    optimizer.apply([grad[3 - offset : 1003 - 2 * offset]])
    expected = np.arange(1003, dtype=F32)
    expected[offset:1000] -= 0.5
    assert_same_bits([base], [expected])


def test_parameters_in_another_axis_order():
    array = drawn(0, ((16, 3, 4, 5),))[0]
    param = tensor(array).to(memory_format=torch.channels_last)
    optimizer = fastopt.SGD(0.5)
    optimizer.build([param])
    optimizer.apply([tensor(array)])
    assert_same_bits([param], [array - F32(0.5) * array])


def test_empty_arrays():
    params = [torch.zeros(0, device="cuda"), torch.zeros(0, 5, device="cuda")]
    for optimizer in (fastopt.Adam(global_clipnorm=1.0), fastopt.Lamb()):
        optimizer.build(params)
        optimizer.apply([torch.zeros_like(param) for param in params])
        assert optimizer.iterations == 1


# -- refused before anything is written --------------------------------------------------------------------------------


@pytest.mark.parametrize("params, grads", [(tensors, list), (list, tensors)], ids=["CPU gradient", "GPU gradient"])
def test_parameters_and_gradients_on_different_devices(params, grads):
    placed = params(drawn(0))
    optimizer = fastopt.Adam()
    optimizer.build(placed)
    with pytest.raises((TypeError, ValueError), match=r"CPU|CUDA|GPU"):
        optimizer.apply(grads(drawn(1)))
    assert_same_bits(placed, drawn(0))
    assert optimizer.iterations == 0


def test_parameters_on_different_devices():
    first, *others = drawn(0)
    with pytest.raises((TypeError, ValueError), match=r"CPU|CUDA|GPU"):
        fastopt.Adam().build([tensor(first), *others])


@pytest.mark.parametrize("kind", [torch.int32, torch.complex64])
def test_parameters_of_other_types(kind):
    with pytest.raises((TypeError, ValueError), match="float32"):
        fastopt.Adam().build([torch.ones(3, dtype=kind, device="cuda")])


def test_gradients_that_partly_overlap_a_parameter():
    base = tensor(np.ones(100, F32))
    optimizer = fastopt.SGD()
    optimizer.build([base[:80]])
    with pytest.raises(ValueError, match="overlap"):
        optimizer.apply([base[10:90]])
    assert_same_bits([base], [np.ones(100, F32)])


@pytest.mark.parametrize("shape", [(4,), (3, 1), ()])
def test_gradients_of_another_shape(shape):
    optimizer = fastopt.SGD()
    optimizer.build([tensor(np.ones(3, F32))])
    with pytest.raises(ValueError, match="shape"):
        optimizer.apply([tensor(np.ones(shape, F32))])
