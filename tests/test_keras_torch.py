"""fastopt.keras on the torch backend: whose memory it writes to, and what torch users do to it meanwhile."""

import contextlib
import os

import numpy as np
import pytest
from children import peak_memory
from keras_cases import (
    CLOSE,
    COPY_KEYWORD,
    assert_same_state,
    assert_same_variables,
    falls_back,
    gradients,
    is_fused,
    parameters,
    tensors,
    train,
    values,
    variables_of,
)

pytestmark = [
    pytest.mark.keras_backend("torch"),
    pytest.mark.xdist_group("keras-torch"),
    pytest.mark.filterwarnings(COPY_KEYWORD),
]


@pytest.fixture(scope="module")
def torch(keras):
    import torch

    return torch


# -- memory ------------------------------------------------------------------------------------------------------------


def test_the_step_works_on_the_memory_of_keras(keras, fast):
    variables = variables_of(keras, parameters())
    optimizer = fast.Adam(0.01, use_ema=True, amsgrad=True)
    train(optimizer, keras, variables, gradients(1))
    held = [*variables, *optimizer.variables]
    addresses = [variable.value.data_ptr() for variable in held]
    before = values(held)
    train(optimizer, keras, variables, gradients(3, seed=7))
    assert is_fused(optimizer)
    assert [variable.value.data_ptr() for variable in held] == addresses
    changed = [not np.array_equal(a, b) for a, b in zip(values(held), before, strict=True)]
    assert all(changed[: len(variables)])


def test_gradients_are_read_where_they_lie(keras, fast, torch, monkeypatch):
    from fastopt import Optimizer

    seen, apply = [], Optimizer._apply_with

    def watched(self, grads, ends):
        seen.append(list(grads))
        apply(self, grads, ends)

    monkeypatch.setattr(Optimizer, "_apply_with", watched)
    variables = variables_of(keras, parameters())
    optimizer = fast.Adam()
    optimizer.build(variables)
    grads = tensors(keras, gradients(1)[0])
    grads[0] = torch.randn(5, 7).T
    optimizer.apply(grads)
    assert [array.ctypes.data for array in seen[0]] == [grad.data_ptr() for grad in grads]


@pytest.mark.parametrize("options", [{}, {"global_clipnorm": 1.0, "weight_decay": 0.1, "use_ema": True}], ids=str)
def test_a_step_allocates_nothing_of_the_size_of_the_model(options, keras, fast, torch):
    variable = keras.Variable(np.zeros((5000, 5000), np.float32))
    optimizer = fast.Adam(**options)
    optimizer.build([variable])
    grads = [torch.ones(5000, 5000)]
    optimizer.apply(grads)
    assert peak_memory(lambda: optimizer.apply(grads)) < 1 << 20


def test_backward_through_what_the_step_overwrote_is_refused(keras, fast, torch):
    weight, other = variables_of(keras, [np.ones(3), np.ones(3)])
    optimizer = fast.SGD(0.1)
    optimizer.build([weight, other])
    loss = (weight.value * other.value).sum()
    optimizer.apply([torch.ones(3), torch.ones(3)])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_step_leaves_no_graph_behind(keras, fast, torch):
    weight = variables_of(keras, [np.ones(3)])[0]
    (gradient,) = torch.autograd.grad((weight.value**2).sum(), [weight.value], create_graph=True)
    fast.SGD(0.1).apply([gradient], [weight])
    assert weight.value.is_leaf and weight.value.requires_grad
    np.testing.assert_allclose(weight.numpy(), 0.8, rtol=1e-6)


def test_a_step_in_inference_mode_and_under_grad(keras, fast, torch):
    weight = variables_of(keras, [np.ones(3)])[0]
    optimizer = fast.SGD(0.1)
    optimizer.build([weight])
    with torch.enable_grad():
        optimizer.apply([torch.ones(3)])
    with torch.inference_mode():
        optimizer.apply([torch.ones(3)])
    np.testing.assert_allclose(weight.numpy(), 0.8, rtol=1e-6)


# -- gradients of every kind -------------------------------------------------------------------------------------------


def _kinds(torch, array):
    dense = torch.from_numpy(array.copy())
    padded = torch.full((*array.shape, 3), torch.nan)
    padded[..., 1] = dense
    return {
        "transposed": dense.T.contiguous().T,
        "strided": padded[..., 1],
        "expanded": dense[:1].expand(dense.shape),
        "negated": torch._neg_view(-dense),
        "half": dense.half(),
        "bfloat16": dense.bfloat16(),
        "double": dense.double(),
        "sparse": dense.to_sparse(),
        "sparse rows": dense.to_sparse(1),
        "csr": dense.to_sparse_csr(),
        "needs grad": dense.clone().requires_grad_(),
        "integers": dense.round().long(),
        "numpy": array.copy(),
        "lists": array.tolist(),
    }


@pytest.mark.filterwarnings("ignore:Sparse (CSR|invariant)")
@pytest.mark.parametrize(
    "kind",
    ["transposed", "strided", "expanded", "negated", "half", "bfloat16", "double", "sparse", "sparse rows", "csr",
     "needs grad", "integers", "numpy", "lists"],
)  # fmt: skip
def test_gradients_of_any_kind(kind, keras, fast, torch):
    array = gradients(1, ((7, 5),))[0][0] * np.float32(10)
    gradient = _kinds(torch, array)[kind]
    dense = gradient.detach().to_dense().float() if isinstance(gradient, torch.Tensor) else torch.tensor(gradient)
    weight, expected = variables_of(keras, 2 * parameters(((7, 5),)))
    optimizer = fast.Adam(0.1, clipnorm=1.0)
    optimizer.apply([gradient], [weight])
    fast.Adam(0.1, clipnorm=1.0).apply([dense.resolve_neg().clone()], [expected])
    assert is_fused(optimizer)
    np.testing.assert_array_equal(weight.numpy(), expected.numpy())


def test_a_gradient_that_is_the_parameter(keras, fast):
    weight = variables_of(keras, [np.ones(3)])[0]
    fast.SGD(0.5).apply([weight.value], [weight])
    np.testing.assert_array_equal(weight.numpy(), 0.5)


def test_a_gradient_shared_by_parameters(keras, fast, torch):
    one, other = variables_of(keras, [np.ones(3), np.ones(3)])
    gradient = torch.ones(3)
    fast.SGD(0.5).apply([gradient, gradient], [one, other])
    np.testing.assert_array_equal(one.numpy() + other.numpy(), 1.0)


# -- parameters that move, or lie otherwise ----------------------------------------------------------------------------


def test_a_parameter_that_is_not_contiguous_falls_back(keras, fast, torch):
    found = []
    for module in (fast, keras.optimizers):
        weight = variables_of(keras, parameters(((7, 5),)))[0]
        weight._value.data = weight._value.data.T.contiguous().T
        optimizer = module.Adam(0.1)
        optimizer.build([weight])
        if module is fast:
            with falls_back(optimizer, "not contiguous"):
                train(optimizer, keras, None, gradients(5, ((7, 5),)))
        else:
            train(optimizer, keras, None, gradients(5, ((7, 5),)))
        found.append([weight])
    assert_same_variables(*found)


def test_memory_that_is_read_otherwise_between_steps(keras, fast, torch):
    """The same address, other strides."""
    found = []
    for module in (fast, keras.optimizers):
        square = variables_of(keras, parameters(((4, 4),)))[0]
        optimizer = module.Adam(0.1)
        optimizer.build([square])
        train(optimizer, keras, None, gradients(2, ((4, 4),)))
        square._value.data = square._value.data.t()
        context = falls_back(optimizer, "not contiguous") if module is fast else contextlib.nullcontext()
        with context:
            train(optimizer, keras, None, gradients(2, ((4, 4),)))
        found.append([square])
    assert_same_variables(*found)


@pytest.mark.parametrize("change", ["data", "parameter", "load_state_dict", "double and back", "copy"])
def test_memory_exchanged_between_steps(change, keras, fast, torch):
    found = []
    for module in (fast, keras.optimizers):
        keras.utils.set_random_seed(1)
        layer = keras.layers.Dense(4)
        layer.build((None, 3))
        optimizer = module.Adam(0.01)
        optimizer.build(layer.trainable_variables)
        grads = gradients(3, ((3, 4), (4,)))
        train(optimizer, keras, None, grads)
        _exchange(change, layer, torch)
        train(optimizer, keras, None, grads)
        found.append((optimizer, layer.trainable_variables))
    (ours, our_variables), (theirs, their_variables) = found
    assert is_fused(ours)
    assert_same_variables(our_variables, their_variables)
    assert_same_state(ours, theirs)


def _exchange(change, layer, torch):
    if change == "data":
        layer.kernel._value.data = layer.kernel._value.data * 2
    elif change == "parameter":
        layer.kernel._value = torch.nn.Parameter(layer.kernel._value.detach() * 2)
    elif change == "load_state_dict":
        layer.load_state_dict({name: value * 2 for name, value in layer.state_dict().items()})
    elif change == "double and back":
        layer.double()
        layer.float()
    else:
        with torch.no_grad():
            layer.kernel.value.mul_(2)


def test_a_layer_moved_to_another_dtype_never_reaches_the_kernels(keras, fast, torch):
    layer = keras.layers.Dense(4)
    layer.build((None, 3))
    optimizer = fast.SGD(0.01, momentum=0.9)
    optimizer.build(layer.trainable_variables)
    train(optimizer, keras, None, gradients(1, ((3, 4), (4,))))
    layer.double()
    with falls_back(optimizer, "needs float64"):
        optimizer.apply([torch.ones(3, 4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)])


def test_two_variables_of_one_parameter_fall_back(keras, fast, torch):
    """Keras updates such a parameter twice."""
    found = []
    for module in (fast, keras.optimizers):
        parameter = torch.nn.Parameter(torch.ones(4))
        tied = [keras.Variable(parameter), keras.Variable(parameter)]
        optimizer = module.SGD(0.1)
        optimizer.build(tied)
        if module is fast:
            with falls_back(optimizer, "share memory"):
                optimizer.apply([torch.ones(4), torch.ones(4)])
        else:
            optimizer.apply([torch.ones(4), torch.ones(4)])
        found.append(tied)
    assert_same_variables(*found)
    np.testing.assert_allclose(found[0][0].numpy(), 0.8, rtol=1e-6)


def test_another_device_falls_back(keras, fast, torch):
    """The meta device stands for any that is not the CPU."""
    weight = variables_of(keras, [np.ones(3)])[0]
    optimizer = fast.SGD(0.1)
    optimizer.build([weight])
    weight._value = torch.nn.Parameter(torch.ones(3, device="meta"))
    with falls_back(optimizer, "is on meta"):
        optimizer.apply([torch.ones(3, device="meta")])


def test_a_parameter_of_a_torch_module(keras, fast, torch):
    """Keras variables made of a torch module's parameters, as keras.layers.TorchModuleWrapper makes them."""
    module = torch.nn.Linear(3, 2)
    layer = keras.layers.TorchModuleWrapper(module)
    optimizer = fast.SGD(0.1)
    optimizer.build(layer.trainable_variables)
    before = module.weight.detach().clone()
    optimizer.apply([torch.ones_like(variable.value) for variable in layer.trainable_variables])
    assert is_fused(optimizer)
    torch.testing.assert_close(module.weight.detach(), before - 0.1)


def test_a_forked_child_steps_too(keras, fast):
    from children import in_fork

    if not hasattr(os, "fork"):
        pytest.skip("this platform has no fork()")
    variables = variables_of(keras, parameters())
    optimizer = fast.Adam(0.01)
    train(optimizer, keras, variables, gradients(1))

    def stepped():
        train(optimizer, keras, variables, gradients(2))
        return [float(np.sum(array)) for array in values(variables)]

    assert in_fork(stepped) == stepped()


def test_the_step_under_autocast(keras, fast, torch):
    from keras.src.backend.common.variables import AutocastScope

    variables, expected = variables_of(keras, parameters()), variables_of(keras, parameters())
    optimizer, reference = fast.Adam(0.01), fast.Adam(0.01)
    optimizer.build(variables)
    with AutocastScope("float16"):
        optimizer.apply(tensors(keras, gradients(1)[0]))
    train(reference, keras, expected, gradients(1))
    assert is_fused(optimizer)
    for ours, theirs in zip(variables, expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), **CLOSE)
