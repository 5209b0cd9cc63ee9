"""Reading where tensors lie: the same as asking each in Python, which is the way where compiled code cannot."""

import ctypes
import warnings

import pytest
from needs_torch import torch

import fastopt.torch
from fastopt.device import dlpack
from fastopt.torch import reading as readings
from fastopt.torch.snapshot import Contents

SHAPES = ((), (7,), (3, 4), (2, 3, 4), (2, 3, 4, 5), (2, 2, 2, 2, 2), (1, 2, 1, 2, 1, 2), (0, 3))


@pytest.fixture(params=["compiled", "in Python"])
def reading(request, monkeypatch):
    """Whether compiled code reads where tensors lie."""
    if request.param == "in Python":
        monkeypatch.setattr(readings, "obstacle", lambda: "the test forbids it")
    return request.param


def stepped(shapes=SHAPES, dtype=torch.float32, **options):
    """An optimizer after a step, its parameters, and what reads its gradients."""
    params = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    optimizer = fastopt.torch.SGD(params, lr=0.1, **options)
    renew(params)
    optimizer.step()
    ((own, _),) = optimizer._built.optimizers
    return params, optimizer, own._gradients


def renew(params):
    for p in params:
        p.grad = torch.randn_like(p)


def reads(params, gradients):
    gradients.read_quickly([p.grad for p in params])
    return gradients.is_read


def test_torch_describes_its_tensors():
    """If this fails, a new torch has another interface: steps are right still, and slower."""
    assert readings.obstacle() == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_addresses_are_those_that_torch_tells(dtype):
    params, _, gradients = stepped(dtype=dtype)
    for _ in range(3):
        renew(params)
        memory = torch.zeros(1000, dtype=dtype)
        params[2].grad = memory[37:49].view(3, 4)
        assert reads(params, gradients)
        assert gradients.table[0].tolist() == [p.grad.data_ptr() for p in params]


def other_dtype(params):
    params[1].grad_dtype = None
    params[1].grad = torch.zeros(7, dtype=torch.float64)


def freed(params, start):
    memory = torch.zeros(50)
    params[2].grad = memory[start : start + 12].view(3, 4)
    memory.untyped_storage().resize_(0)


def negated(shape):
    """A tensor that torch negates when it is read, as gradients that come by complex numbers are."""
    return torch.complex(torch.zeros(shape), torch.ones(shape)).conj().imag


STRANGE = {
    "none": lambda params: setattr(params[1], "grad", None),
    "dtype": other_dtype,
    "strides": lambda params: setattr(params[2], "grad", torch.zeros(4, 3).t()),
    "sparse": lambda params: setattr(params[2], "grad", torch.zeros(3, 4).to_sparse()),
    "negated": lambda params: setattr(params[2], "grad", negated((3, 4))),
    "subclass": lambda params: setattr(params[2], "grad", torch.nn.Parameter(torch.zeros(3, 4))),
    "itself": lambda params: setattr(params[2], "grad", params[2].detach()),
    "shape": lambda params: setattr(params[2].grad, "data", torch.zeros(12, 1)),
    "freed": lambda params: freed(params, 0),
    "freed, from its middle": lambda params: freed(params, 20),
}


@pytest.mark.parametrize("case", STRANGE)
def test_what_is_strange_is_not_read(case):
    params, _, gradients = stepped()
    renew(params)
    assert reads(params, gradients)
    STRANGE[case](params)
    assert not reads(params, gradients)


def test_a_moved_parameter_is_noticed(reading):
    params, optimizer, _ = stepped()
    ((own, _),) = optimizer._built.optimizers
    renew(params)
    grads = [p.grad for p in params]
    assert own.is_current(grads)
    params[2].data = params[2].data.clone()
    assert not own.is_current(grads)


def test_steps_are_the_same(reading):
    torch.manual_seed(0)
    params, _optimizer, gradients = stepped(clip_norm=1.0)
    assert (gradients._reader is None) == (reading == "in Python")
    torch.manual_seed(0)
    expected = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    renew(expected)
    reference = torch.optim.SGD(expected, lr=0.1)
    torch.nn.utils.clip_grad_norm_(expected, 1.0)
    reference.step()
    for p, q in zip(params, expected, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


# -- torch's table of functions ----------------------------------------------------------------------------------------


def capsule_of(table, name=dlpack._EXCHANGE_NAME):
    make = ctypes.pythonapi.PyCapsule_New
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return make(ctypes.addressof(table), name, None)


def table_of(major, function=0, older=None):
    table = dlpack._Exchange()
    table.header.major, table.tensor_from_object = major, function
    if older is not None:
        table.header.older = ctypes.cast(ctypes.pointer(older), type(table.header.older))
    return table


def test_the_table_of_version_1_is_found():
    one, older = table_of(1, 1234), table_of(0, 5)
    newer, newest, lonely = table_of(2, 99, one), table_of(3, 98), table_of(2, 99, older)
    newest.header.older = ctypes.cast(ctypes.pointer(newer), type(newest.header.older))
    for table, function in [(one, 1234), (newer, 1234), (newest, 1234), (lonely, 0), (older, 0), (table_of(1), 0)]:
        kind = type("Kind", (), {"__dlpack_c_exchange_api__": capsule_of(table)})
        assert dlpack.exchange_function(kind) == function
    for strange in (None, 17, capsule_of(one, b"another")):
        assert dlpack.exchange_function(type("Kind", (), {"__dlpack_c_exchange_api__": strange})) == 0
    assert dlpack.exchange_function(object) == 0


@pytest.mark.parametrize("found", ["no table", "a newer one"])
def test_without_the_table_tensors_are_asked(found, monkeypatch):
    newer = table_of(2, 99)
    kind = type("Kind", (), {} if found == "no table" else {"__dlpack_c_exchange_api__": capsule_of(newer)})
    monkeypatch.setattr(readings, "exchange_function", lambda _: dlpack.exchange_function(kind))
    readings._describe.cache_clear()
    try:
        assert readings.obstacle() == f"torch {torch.__version__} has no DLPack exchange API of version 1"
        torch.manual_seed(0)
        params, _, gradients = stepped()
        assert gradients._reader is None
    finally:
        readings._describe.cache_clear()
    monkeypatch.undo()
    torch.manual_seed(0)
    assert all(map(torch.equal, params, stepped()[0]))


def test_what_torch_cannot_describe_leaves_no_error_behind():
    row, *layout = readings.expected_like(torch.float32, (3,), (1,))
    sparse = torch.zeros(3).to_sparse()
    assert readings.reader([(row, *layout)]).read((sparse,)) == 0
    assert readings.reader([(row, *layout)]).read((torch.zeros(3, device="meta"),)) == 0
    assert readings.reader([(row, *layout)]).read((torch.zeros(3),)) == 1


def test_swapped_tensors(reading):
    params, optimizer, _ = stepped()
    torch.utils.swap_tensors(params[2], torch.nn.Parameter(torch.ones(3, 4)))
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.allclose(params[2], torch.full((3, 4), 0.9))


# -- between two steps -------------------------------------------------------------------------------------------------


def contents():
    """Of three dicts among four, and the dicts."""
    dicts = [{"a": torch.ones(3), "b": 7}, {"other": 0}, {"x": None, "far": torch.zeros(2, dtype=torch.float16)}, {}]
    return Contents(dicts, [0, 2, 3]), dicts


CHANGES = {
    "set": lambda dicts: dicts[0].__setitem__("b", 8),
    "equal": lambda dicts: dicts[0].__setitem__("a", torch.ones(3)),
    "add": lambda dicts: dicts[2].__setitem__("new", 7),
    "delete": lambda dicts: dicts[0].pop("a"),
    "another name": lambda dicts: dicts[0].__setitem__("c", dicts[0].pop("b")),
    "exchange": lambda dicts: dicts[0].update(a=dicts[0]["b"], b=dicts[0]["a"]),
    "clear": lambda dicts: dicts[2].clear(),
    "fill": lambda dicts: dicts[3].update(a=1),
    "order": lambda dicts: dicts[0].update(a=dicts[0].pop("a")),
    "memory": lambda dicts: setattr(dicts[0]["a"], "data", torch.ones(3)),
    "memory of what is asked": lambda dicts: setattr(dicts[2]["far"], "data", torch.ones(2, dtype=torch.float16)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_changed_contents_are_noticed(what, reading):
    known, dicts = contents()
    assert known.are_in(tuple(dicts))
    dicts[1]["other"] = 1
    dicts[0]["a"].add_(1)
    assert known.are_in((dict(dicts[0]), 3, dicts[2], {}))
    CHANGES[what](dicts)
    assert not known.are_in(tuple(dicts))


def exchanged_state(optimizer, params):
    state = optimizer.state[params[1]]
    state["momentum_buffer"] = 2 * state["momentum_buffer"]


def written_state(optimizer, params):
    optimizer.state[params[1]]["momentum_buffer"].mul_(2)


def moved_state(optimizer, params):
    buffer = optimizer.state[params[1]]["momentum_buffer"]
    buffer.data = 2 * buffer.data


def other_list(optimizer, params):
    group = optimizer.param_groups[0]
    group["params"] = group["params"][::-1]


def fewer(optimizer, params):
    optimizer.param_groups[0]["params"].pop()


def exchanged_parameter(optimizer, params):
    optimizer.param_groups[0]["params"][2] = torch.nn.Parameter(torch.ones(3, 4))


def other_groups(optimizer, params):
    optimizer.param_groups = [{**group, "lr": 0.3} for group in optimizer.param_groups]


def rate(optimizer, params):
    optimizer.param_groups[0]["lr"] = 0.5


def tensor_rate(optimizer, params):
    optimizer.param_groups[0]["lr"] = torch.tensor(0.5)


def written_rate(optimizer, params):
    optimizer.param_groups[0]["lr"].mul_(0.5)


def forgotten_state(optimizer, params):
    del optimizer.state[params[0]]


def exchanged_dict(optimizer, params):
    state = optimizer.state
    state[params[1]] = {name: value.clone() for name, value in state[params[1]].items()}


def state_in_another_order(optimizer, params):
    state = optimizer.state
    kept = list(state.items())
    state.clear()
    state.update(reversed(kept))


def exchanged_keys(optimizer, params):
    """What belonged to one parameter belongs to another, at the same place in the dict."""
    state = optimizer.state
    twin = torch.nn.Parameter(torch.ones(7))
    kept = [(twin if key is params[1] else key, value) for key, value in state.items()]
    state.clear()
    state.update(kept)


BETWEEN = (
    exchanged_state, written_state, moved_state, other_list, fewer, exchanged_parameter, other_groups, rate,
    tensor_rate, forgotten_state, exchanged_dict, state_in_another_order, exchanged_keys,
)  # fmt: skip


@pytest.mark.parametrize(
    "changes", [*[(each,) for each in BETWEEN], (tensor_rate, written_rate)], ids=lambda changes: changes[-1].__name__
)
def test_what_happens_between_steps_is_noticed(changes, reading):
    runs = []
    for module in (fastopt.torch, torch.optim):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
        optimizer = module.SGD(params, lr=0.1, momentum=0.9)
        for change in [None, None, None, *changes, None, None]:
            renew(params)
            if change is not None:
                change(optimizer, params)
            for p in optimizer.param_groups[0]["params"]:
                p.grad = torch.ones_like(p) if p.grad is None else p.grad
            optimizer.step()
        runs.append(optimizer.param_groups[0]["params"])
    for p, q in zip(*runs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


# -- autograd ----------------------------------------------------------------------------------------------------------


def test_autograd_knows_of_updates():
    params, optimizer, _ = stepped(((3, 4),))
    (p,) = params
    loss = (p * p).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_step_is_whole_if_torch_does_not_let_it_be_told(monkeypatch):
    def refuse(tensors):
        raise RuntimeError("not today")

    torch.manual_seed(0)
    expected = stepped(fused_zero_grad=True)[0]
    monkeypatch.setattr(torch.autograd.graph, "increment_version", refuse)
    torch.manual_seed(0)
    with pytest.warns(RuntimeWarning, match="not told that parameters were updated .not today"):
        params, optimizer, _ = stepped(fused_zero_grad=True)
    assert all(map(torch.equal, params, expected))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        optimizer.step()
    assert all(map(torch.equal, params, expected))  # the gradients had been zeroed
