"""Reading tensors' addresses from the tensors themselves: the same as asking each, or nothing at all."""

import contextlib
import random
import sys

import pytest
import torch
from fastopt.kernels import object_reader

import fastopt.torch
from fastopt.torch import layout as layouts
from fastopt.torch import versions, watch

SHAPES = ((), (7,), (3, 4), (2, 3, 4), (2, 3, 4, 5), (2, 2, 2, 2, 2))


def stepped(shapes=SHAPES, dtype=torch.float32, **options):
    """An optimizer after a step, its parameters, and what reads its gradients."""
    params = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    optimizer = fastopt.torch.SGD(params, lr=0.1, **options)
    renew(params)
    optimizer.step()
    ((engine, _),) = optimizer._built.engines
    return params, optimizer, engine._gradients


def renew(params):
    for p in params:
        p.grad = torch.randn_like(p)


def reads(params, gradients):
    return gradients._quick.read(params, [p.grad for p in params])


def known_layout():
    found = layouts.layout()
    assert found is not None
    return found


def test_the_layout_is_known():
    """If this fails, a new torch keeps things elsewhere: steps are right still, and slower."""
    known_layout()


def test_the_layout_is_found_in_used_memory():
    """Old bytes beside what is looked at, of tensors that are gone, are not taken for what is looked for."""
    kinds = (torch.float32, torch.float64, torch.int32, torch.float16)
    chance, kept, expected = random.Random(7), [], known_layout()
    for _ in range(300):
        kept += [torch.zeros(chance.randrange(1, 50), dtype=chance.choice(kinds)) for _ in range(chance.randrange(30))]
        if len(kept) > 1000:
            chance.shuffle(kept)
            del kept[: chance.randrange(1000)]
        layouts.layout.cache_clear()
        assert layouts.layout() == expected


@pytest.mark.parametrize("defaults", ["dtype", "device", "no_grad", "inference"])
def test_the_layout_is_found_whatever_the_defaults(defaults):
    expected = known_layout()
    layouts.layout.cache_clear()
    contexts = {"device": torch.device("meta"), "no_grad": torch.no_grad(), "inference": torch.inference_mode()}
    torch.set_default_dtype(torch.float64 if defaults == "dtype" else torch.float32)
    try:
        with contexts.get(defaults, contextlib.nullcontext()):
            assert layouts.layout() == expected
    finally:
        torch.set_default_dtype(torch.float32)


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


STRANGE = {
    "none": lambda params: setattr(params[1], "grad", None),
    "dtype": other_dtype,
    "strides": lambda params: setattr(params[2], "grad", torch.zeros(4, 3).t()),
    "sparse": lambda params: setattr(params[2], "grad", torch.zeros(3, 4).to_sparse()),
    "negated": lambda params: setattr(params[2], "grad", torch._neg_view(torch.zeros(3, 4))),
    "subclass": lambda params: setattr(params[2], "grad", torch.nn.Parameter(torch.zeros(3, 4))),
    "itself": lambda params: setattr(params[2], "grad", params[2].detach()),
    "moved": lambda params: setattr(params[2], "data", params[2].data.clone()),
    "shape": lambda params: setattr(params[2].grad, "data", torch.zeros(12, 1)),
}


@pytest.mark.parametrize("case", STRANGE)
def test_what_is_strange_is_not_read(case):
    params, _, gradients = stepped()
    renew(params)
    assert reads(params, gradients)
    STRANGE[case](params)
    assert not reads(params, gradients)


def test_more_axes_than_fit_into_a_tensor():
    params, _, gradients = stepped(((1, 2, 1, 2, 1, 2), (3,)))
    renew(params)
    assert not reads(params, gradients)


@pytest.mark.parametrize("missing", ["words", "interpreter"])
def test_without_it_steps_are_the_same(missing, monkeypatch):
    torch.manual_seed(0)
    expected = [p.detach() for p in stepped(clip_norm=1.0)[0]]
    if missing == "words":
        monkeypatch.setattr(layouts._Probe, "_find_dtype", lambda probe: None)
    else:
        monkeypatch.setattr(layouts.reader, "compiled", lambda: None)
    layouts.layout.cache_clear()
    try:
        torch.manual_seed(0)
        params, _, gradients = stepped(clip_norm=1.0)
        assert gradients._quick is None
        assert all(map(torch.equal, params, expected))
    finally:
        layouts.layout.cache_clear()


def test_swapped_tensors():
    params, optimizer, _ = stepped()
    torch.utils.swap_tensors(params[2], torch.nn.Parameter(torch.ones(3, 4)))
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.allclose(params[2], torch.full((3, 4), 0.9))


# -- dicts, lists and version counters ---------------------------------------------------------------------------------


def watched():
    """A watch, its dicts and its lists."""
    dicts, lists = [{"a": 1, "b": 2}, {}, {"x": None}], [[1, 2, 3], []]
    return watch.Watch(dicts, lists), dicts, lists


CHANGES = {
    "set": lambda dicts, lists: dicts[0].__setitem__("a", 7),
    "add": lambda dicts, lists: dicts[1].__setitem__("new", 7),
    "delete": lambda dicts, lists: dicts[0].pop("a"),
    "and back": lambda dicts, lists: dicts[2].update(x=1) or dicts[2].update(x=None),
    "clear": lambda dicts, lists: dicts[2].clear(),
    "append": lambda dicts, lists: lists[1].append(1),
    "item": lambda dicts, lists: lists[0].__setitem__(1, 9),
    "order": lambda dicts, lists: lists[0].reverse(),
    "shorter": lambda dicts, lists: lists[0].pop(),
}


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="dicts of this Python do not number their changes")
@pytest.mark.parametrize("what", CHANGES)
def test_a_watch_sees_changes(what):
    seen, dicts, lists = watched()
    assert seen.sees_no_change()
    assert dicts[0]["a"] == 1 and list(dicts[2].items()) and sum(lists[0]) == 6
    assert seen.sees_no_change()
    CHANGES[what](dicts, lists)
    assert not seen.sees_no_change()
    seen.accept()
    assert seen.sees_no_change() == any(what == name for name in ("set", "add", "delete", "and back", "clear"))


def test_what_is_no_list_is_not_watched():
    assert not watch.Watch([{}], [(1, 2)]).sees_no_change()
    assert not watch.Watch([{}, 3]).sees_no_change()


@pytest.fixture(params=["everything", "no tags", "no counters"])
def known(request, monkeypatch):
    """What is found out about Python and torch."""
    if request.param == "no tags":
        monkeypatch.setattr(object_reader, "offset_of_tag", lambda: None)
    if request.param == "no counters":
        monkeypatch.setattr(versions, "counter_layout", lambda: None)


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


BETWEEN = (
    exchanged_state, written_state, moved_state, other_list, fewer, exchanged_parameter, other_groups, rate,
    tensor_rate, forgotten_state,
)  # fmt: skip


@pytest.mark.parametrize(
    "changes", [*[(each,) for each in BETWEEN], (tensor_rate, written_rate)], ids=lambda changes: changes[-1].__name__
)
def test_what_happens_between_steps_is_noticed(changes, known):
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


def test_versions_are_those_of_torch(known):
    tensors = [torch.zeros(3) for _ in range(5)] + [torch.nn.Parameter(torch.zeros(2))]
    before = [tensor._version for tensor in tensors]
    versions.count_up(tensors)
    assert [tensor._version for tensor in tensors] == [count + 1 for count in before]
    assert versions.versions_of(tensors).tolist() == [tensor._version for tensor in tensors]
    with torch.inference_mode():
        uncounted = torch.zeros(3)
    versions.count_up([tensors[0], uncounted])
    assert tensors[0]._version == before[0] + 2
    assert versions.versions_of([tensors[0], uncounted]) is None


def test_the_counters_are_known():
    if sys.platform == "linux":
        assert versions.counter_layout() is not None
