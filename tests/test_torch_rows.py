"""Sparse gradients in `fastopt.torch`: torch's numbers where torch takes them, lazy ones where it is asked to."""

import copy

import numpy as np
import pytest
from needs_torch import torch
from rows import rows

import fastopt
import fastopt.torch

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")

HEIGHT, WIDTH = 60, 8
COUNTS = (5, 0, 1, 40, 300)
"""Rows that batches name, one after the other."""


def embedding(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Embedding(HEIGHT, WIDTH, sparse=True, dtype=dtype)


def batches(count=20):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, HEIGHT, (COUNTS[k % len(COUNTS)],), generator=generator) for k in range(count)]


def loss_of(rows):
    return ((rows - 1.0) ** 2).sum()


def train(module, optimizer, all_batches, coalesce=False):
    """Steps, and the weight after each."""
    weights = []
    for batch in all_batches:
        optimizer.zero_grad()
        loss_of(module(batch)).backward()
        if coalesce:
            module.weight.grad = module.weight.grad.coalesce()
        optimizer.step()
        weights.append(module.weight.detach().clone())
    return weights


SAME = {
    "SGD": {"lr": 0.05},
    "SGD, maximize": {"lr": 0.01, "maximize": True},
    "Adagrad": {"lr": 0.1, "lr_decay": 0.05, "initial_accumulator_value": 0.2},
    "SparseAdam": {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-4},
    "SparseAdam, maximize": {"lr": 0.01, "maximize": True},
}


@rows("name, dtype, coalesce", [(n, d, c) for n in SAME for d in (torch.float32, torch.float64) for c in (False, True)])
def test_the_numbers_are_torchs(name, dtype, coalesce):
    kind, options = name.partition(",")[0], SAME[name]
    ours, theirs = embedding(dtype), embedding(dtype)
    found = train(ours, getattr(fastopt.torch, kind)(ours.parameters(), **options), batches(), coalesce)
    expected = train(theirs, getattr(torch.optim, kind)(theirs.parameters(), **options), batches(), coalesce)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)


@rows("mode", ["sum", "mean"])
def test_bags(mode):
    weights = []
    for namespace in (fastopt.torch, torch.optim):
        torch.manual_seed(0)
        bag = torch.nn.EmbeddingBag(HEIGHT, WIDTH, mode=mode, sparse=True)
        optimizer = namespace.Adagrad(bag.parameters(), lr=0.1)
        weights.append(train(bag, optimizer, [batch.view(-1, 5) for batch in batches() if len(batch) % 5 == 0]))
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)


def test_sparse_adams_state_goes_to_torch_and_back():
    """Either goes on from the other's state, as if nothing had happened."""
    module = embedding()
    reference = embedding()
    expected = train(reference, torch.optim.SparseAdam(reference.parameters(), lr=0.01), batches())
    first = fastopt.torch.SparseAdam(module.parameters(), lr=0.01)
    train(module, first, batches()[:6])
    saved = first.state_dict()
    assert saved["state"][0]["step"] == 6 and type(saved["state"][0]["step"]) is int
    second = torch.optim.SparseAdam(module.parameters(), lr=0.01)
    second.load_state_dict(copy.deepcopy(saved))
    train(module, second, batches()[6:12])
    third = fastopt.torch.SparseAdam(module.parameters(), lr=0.01)
    third.load_state_dict(second.state_dict())
    found = train(module, third, batches()[12:])
    torch.testing.assert_close(found[-1], expected[-1], rtol=2e-5, atol=2e-6)
    assert set(third.state[module.weight]) == {"step", "exp_avg", "exp_avg_sq"}


LAZY = {
    "AdamW": {"weight_decay": 0.1},
    "Adam": {"amsgrad": True},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "SGD": {"momentum": 0.9, "nesterov": True},
    "Adagrad": {"weight_decay": 0.1},
    "NAdam": {},
    "Lion": {"weight_decay": 0.1},
    "ScheduleFreeAdamW": {},
}


@rows("name", LAZY)
def test_lazy_rows_are_stepped_as_if_there_were_no_others(name):
    """Held to a dense twin, in which all that happens to other rows is undone after each step."""
    module, twin = embedding(torch.float64), embedding(torch.float64)
    twin.sparse = False
    kind, options = getattr(fastopt.torch, name), {"lr": 0.01} | LAZY[name]
    lazy, whole = kind(module.parameters(), sparse="lazy", **options), kind(twin.parameters(), **options)
    if name == "ScheduleFreeAdamW":
        lazy.train()
        whole.train()
    for batch in batches():
        before = {key: tensor.clone() for key, tensor in _arrays_of(whole, twin).items()}
        for each, optimizer in ((module, lazy), (twin, whole)):
            optimizer.zero_grad()
            loss_of(each(batch)).backward()
            optimizer.step()
        untouched = torch.ones(HEIGHT, dtype=torch.bool)
        untouched[batch] = False
        for key, tensor in _arrays_of(whole, twin).items():
            tensor[untouched] = before[key][untouched] if key in before else _start_of(name, key, before)[untouched]
        torch.testing.assert_close(module.weight, twin.weight, rtol=1e-9, atol=1e-10)


def _arrays_of(optimizer, module):
    state = {key: t for key, t in optimizer.state[module.weight].items() if t is not None and t.ndim == 2}
    return {"weight": module.weight.data, **state}


def _start_of(name, key, before):
    return before["weight"] if (name, key) == ("ScheduleFreeAdamW", "z") else torch.zeros_like(before["weight"])


def test_sparse_and_dense_parameters_in_one_optimizer():
    """With a norm over both, held to a twin with dense gradients."""
    results = []
    for sparse in (True, False):
        torch.manual_seed(0)
        table, head = torch.nn.Embedding(HEIGHT, WIDTH, sparse=sparse), torch.nn.Linear(WIDTH, 2)
        optimizer = fastopt.torch.Adagrad([*table.parameters(), *head.parameters()], lr=0.1, clip_norm=1.0)
        norms = []
        for batch in batches():
            optimizer.zero_grad()
            head(table(batch)).square().sum().backward()
            optimizer.step()
            norms.append(optimizer.last_grad_norm)
        results.append((table.weight.detach(), head.weight.detach(), torch.tensor(norms)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@rows(
    "options",
    [{"clip_norm": 0.5}, {"clip_value": 0.1}, {"nonfinite": "skip"}, {"flat": True}, {"fused_backward": True}, {}],
)
def test_options_go_with_rows(options):
    """As with dense gradients, for a rule under which both are the same."""
    weights = []
    for sparse in (True, False):
        torch.manual_seed(0)
        module = torch.nn.Embedding(HEIGHT, WIDTH, sparse=sparse)
        weights.append(train(module, fastopt.torch.SGD(module.parameters(), lr=0.05, **options), batches()))
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_fused_zero_grad_drops_sparse_gradients():
    module, head = embedding(), torch.nn.Linear(WIDTH, 2)
    optimizer = fastopt.torch.SGD([*module.parameters(), *head.parameters()], lr=0.1, fused_zero_grad=True)
    for batch in batches()[:3]:
        head(module(batch)).sum().backward()
        kept = head.weight.grad
        optimizer.step()
        assert module.weight.grad is None and not head.weight.grad.any()
        optimizer.zero_grad()
        assert head.weight.grad is kept


def test_values_that_share_memory_with_a_dense_gradient_are_read_before_it_is_zeroed():
    """As autograd leaves them."""
    weights = []
    for fused_zero_grad in (True, False):
        torch.manual_seed(0)
        table, positions = torch.nn.Embedding(10, 4, sparse=True), torch.nn.Parameter(torch.zeros(1, 5, 4))
        options = {"lr": 1.0, "fused_zero_grad": fused_zero_grad}
        optimizer = fastopt.torch.SGD([positions, table.weight], **options)
        looked_up = table(torch.tensor([1, 2, 3, 4, 5])) + positions.view(5, 4)
        (looked_up * torch.arange(20.0).view(5, 4)).sum().backward()
        assert table.weight.grad._values().data_ptr() == positions.grad.data_ptr()
        optimizer.step()
        assert not fused_zero_grad or not positions.grad.any()
        weights.append((table.weight.detach(), positions.detach()))
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("overflow", [False, True])
def test_grad_scaler(overflow):
    results = []
    for namespace in (fastopt.torch, torch.optim):
        module = embedding()
        optimizer = namespace.SparseAdam(module.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for k, batch in enumerate(batches()[:6]):
            optimizer.zero_grad()
            scale = float("inf") if overflow and k == 3 else 1.0
            scaler.scale(loss_of(module(batch)) * scale).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append((module.weight.detach(), torch.tensor(scaler.get_scale())))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)


def test_rowwise_adagrad_is_torchrecs():
    """Dense and sparse, held to the formula in float64."""
    for sparse in (True, False):
        torch.manual_seed(0)
        module = torch.nn.Embedding(HEIGHT, WIDTH, sparse=sparse)
        optimizer = fastopt.torch.RowwiseAdagrad(
            module.parameters(), lr=0.1, lr_decay=0.01, initial_accumulator_value=0.1
        )
        weight, total = module.weight.detach().double(), torch.full((HEIGHT, 1), 0.1, dtype=torch.float64)
        for t, batch in enumerate(batches()):
            optimizer.zero_grad()
            loss_of(module(batch)).backward()
            grad = module.weight.grad.to_dense().double() if sparse else module.weight.grad.double()
            total = total + (grad**2).mean(dim=1, keepdim=True)
            weight = weight - 0.1 / (1 + t * 0.01) * grad / (total.sqrt() + 1e-10)
            optimizer.step()
            torch.testing.assert_close(module.weight.detach().double(), weight, rtol=2e-5, atol=2e-6)
        state = optimizer.state[module.weight]
        assert state["sum"].shape == (HEIGHT, 1) and float(state["step"]) == len(batches())
        torch.testing.assert_close(state["sum"].double(), total, rtol=2e-5, atol=2e-6)


def _named(kind, **options):
    return lambda params: getattr(fastopt.torch, kind)(params, **options)


REFUSED = {
    "moments": (_named("AdamW"), ValueError, 'pass sparse="lazy"'),
    "momentum": (_named("SGD", lr=0.1, momentum=0.9), ValueError, 'pass sparse="lazy"'),
    "decay": (_named("Adagrad", weight_decay=0.1), ValueError, 'pass sparse="lazy"'),
    "Lamb": (_named("Lamb", sparse="lazy"), TypeError, "Lamb looks at whole parameters"),
    "Adafactor": (_named("Adafactor", sparse="lazy"), TypeError, "Adafactor looks at whole parameters"),
    "Muon": (_named("Muon", sparse="lazy"), TypeError, "Muon looks at whole parameters"),
    "ema": (_named("SGD", lr=0.1, ema=0.9), ValueError, "ema follows all rows"),
}


@rows("name", REFUSED)
def test_what_would_move_other_rows_is_refused(name):
    make, kind, message = REFUSED[name]
    module = embedding()
    optimizer, before = make(module.parameters()), module.weight.detach().clone()
    loss_of(module(torch.tensor([1, 1, 2]))).backward()
    with pytest.raises(kind, match=message):
        optimizer.step()
    assert torch.equal(module.weight, before)
    assert not any(isinstance(each, torch.Tensor) and each.any() for each in optimizer.state[module.weight].values())


def test_lazy_can_be_chosen_later():
    module = embedding()
    optimizer = fastopt.torch.AdamW(module.parameters())
    loss_of(module(torch.tensor([3]))).backward()
    with pytest.raises(ValueError, match="lazy"):
        optimizer.step()
    optimizer.sparse = "lazy"
    before = module.weight.detach().clone()
    optimizer.step()
    assert torch.equal((module.weight != before).any(dim=1).nonzero().flatten(), torch.tensor([3]))
    with pytest.raises(ValueError, match='sparse must be None or "lazy"'):
        optimizer.sparse = True


def test_gradients_that_do_not_fit_are_refused():
    module = embedding()
    optimizer = fastopt.torch.SGD(module.parameters(), lr=0.1)
    indices = torch.tensor([[1, 2], [0, 3]])
    module.weight.grad = torch.sparse_coo_tensor(indices, torch.ones(2), (HEIGHT, WIDTH))
    with pytest.raises(ValueError, match="2 sparse axes"):
        optimizer.step()
    for options in ({}, {"fused_backward": True}):
        dense = torch.nn.Embedding(HEIGHT, WIDTH)
        adam = fastopt.torch.SparseAdam(dense.parameters(), **options)
        with pytest.raises(RuntimeError, match="does not support dense gradients"):
            loss_of(dense(torch.tensor([1]))).backward()
            adam.step()


def test_row_gradients_of_tensors_step_numpy_parameters():
    table = np.zeros((4, 2), np.float32)
    optimizer = fastopt.SGD(1.0)
    optimizer.build([table])
    optimizer.apply([fastopt.RowGradient(torch.tensor([3, 1, 3]), torch.ones(3, 2))])
    assert table[:, 0].tolist() == [0.0, -1.0, 0.0, -2.0]
