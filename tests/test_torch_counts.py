"""Counts of fastopt.torch lie in the tensors of ``optimizer.state``, whoever else has these. As in torch.optim."""

import copy
import pickle

import children
import pytest
from needs_torch import torch
from torch_reference import distance

import fastopt.torch

pytestmark = pytest.mark.xdist_group("torch_counts")
MODULES = torch.optim, fastopt.torch


def leaves(*shapes, dtype=torch.float64):
    return [
        torch.nn.Parameter(torch.linspace(-1, 1, max(1, torch.Size(s).numel()), dtype=dtype).view(s)) for s in shapes
    ]


def step(optimizer, t, skip=()):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for k, p in enumerate(params):
        p.grad = None if k in skip else torch.cos(p.detach() * 3 + t)
    optimizer.step()


def counts(optimizer, name="step"):
    return [state[name].item() for state in optimizer.state.values() if name in state]


def of_both(run):
    """What a function gives for torch.optim, then for fastopt.torch."""
    return [run(module) for module in MODULES]


def assert_alike(both, tolerance=1e-6):
    """Parameters and counts are torch's."""
    (theirs, expected), (ours, found) = both
    assert found == pytest.approx(expected, rel=1e-6)
    assert distance([p.detach() for p in ours], [p.detach() for p in theirs]) < tolerance


KEPT_AS = [
    ("float32", ()), ("float32", (1,)), ("float64", ()), ("int64", ()), ("int32", (1,)), ("float16", ()),
    ("bfloat16", ()),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "shape"), KEPT_AS)
@pytest.mark.parametrize("name", ["Adam", "NAdam"])
def test_what_counts_stays_what_it_was(name, dtype, shape):
    """torch.optim counts in whatever tensor it finds."""

    def run(module):
        params = leaves((3,), (2, 2))
        optimizer = getattr(module, name)(params, lr=0.1, foreach=False)
        for p in params:
            step_of = torch.full(shape, 2, dtype=getattr(torch, dtype))
            moments = {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")}
            product = {"mu_product": torch.tensor(0.5)} if name == "NAdam" else {}
            optimizer.state[p] = {"step": step_of, **product, **moments}
        held = [dict(optimizer.state[p]) for p in params]
        for t in range(3):
            step(optimizer, t)
        held[0]["step"] += 4  # another one counts, too
        for t in range(3, 6):
            step(optimizer, t, skip=(1,) if t == 4 else ())
        assert all(optimizer.state[p][key] is each[key] for p, each in zip(params, held, strict=True) for key in each)
        assert held[0]["step"].dtype == getattr(torch, dtype) and held[0]["step"].shape == shape
        return params, [each[key].item() for each in held for key in ("step", *product)]

    assert_alike(of_both(run))


def test_numbers_become_tensors():
    """As in torch's own ``__setstate__``, which takes up checkpoints of torch before 1.12."""
    (p,) = leaves((3,))
    optimizer = fastopt.torch.Adam([p])
    optimizer.state[p] = {"step": 5, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    step(optimizer, 0)
    assert torch.equal(optimizer.state[p]["step"], torch.tensor(6.0))


def test_an_optimizer_of_several_workers():
    """As A3C's: state made at the start, in shared memory; each worker steps, with gradients of its own, in turns."""

    def run(module):
        params = [p.requires_grad_() for p in (leaf.detach().share_memory_() for leaf in leaves((3,), (2, 2)))]
        workers = [module.Adam(params, lr=0.1) for _ in range(3)]
        for p in params:
            state = {"step": torch.zeros(1), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            for worker in workers:
                worker.state[p] = {key: value.share_memory_() for key, value in state.items()}
        for t in range(3):
            step(workers[t], t)
        built = [worker._built.optimizers for worker in workers if module is fastopt.torch]
        for t in range(3, 9):
            step(workers[t % 3], t)
        found = [worker._built.optimizers for worker in workers if module is fastopt.torch]
        assert all(one is other for one, other in zip(found, built, strict=True)), "what others count is only taken up"
        return params, counts(workers[0])

    assert_alike(of_both(run))


WORKERS = """
    import torch
    from children import in_fork, report
    import fastopt.torch

    class Shared:
        def __init__(self, module):
            self.params = [torch.linspace(-1, 1, n).share_memory_().requires_grad_() for n in (3, 4)]
            self.optimizer = module.Adam(self.params, lr=0.1)
            for p in self.params:
                state = {"step": torch.zeros(1), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                self.optimizer.state[p] = {key: value.share_memory_() for key, value in state.items()}

        def steps(self, number):
            for t in range(number):
                for p in self.params:
                    p.grad = torch.cos(p.detach() * 3 + t)
                self.optimizer.step()

    found = {}
    for module in (torch.optim, fastopt.torch):
        shared = Shared(module)
        shared.steps(1)
        statuses = [in_fork(lambda: shared.steps(3)), in_fork(lambda: shared.steps(2))]
        shared.steps(1)
        counts = [shared.optimizer.state[p]["step"].item() for p in shared.params]
        found[module.__name__] = [statuses, counts, [p.tolist() for p in shared.params]]
    report(**{key.replace(".", "_"): value for key, value in found.items()})
"""


@children.FORK
def test_an_optimizer_of_several_processes():
    """As A3C's, across processes; beside torch.optim.Adam in the same program."""
    found = children.run(WORKERS)
    statuses, numbers, params = found["fastopt_torch"]
    assert [statuses, numbers] == found["torch_optim"][:2] == [[None, None], [7.0, 7.0]]
    for ours, theirs in zip(params, found["torch_optim"][2], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)


def test_state_that_moves_to_shared_memory_later():
    def run(module):
        params = leaves((3,), (2, 2))
        optimizer = module.NAdam(params, lr=0.1, foreach=False)
        for t in range(6):
            step(optimizer, t)
            if t in (1, 3):
                for state in list(optimizer.state.values())[: 1 if t == 1 else 2]:
                    state["step"].share_memory_()
                    state["mu_product"].share_memory_()
        assert all(state["step"].is_shared() for state in optimizer.state.values())
        return params, counts(optimizer) + counts(optimizer, "mu_product")

    assert_alike(of_both(run))


def test_a_loaded_state_is_not_copied():
    """torch's ``load_state_dict`` takes tensors as they are: two optimizers then have one state, counts too."""

    def run(module):
        params = leaves((3,), (2, 2)) + leaves((3,), (2, 2))
        one, other = (module.AdamW(own, lr=0.1) for own in (params[:2], params[2:]))
        step(one, 0)
        saved = one.state_dict()
        other.load_state_dict(saved)
        for t in range(6):
            step((one, other)[t % 2], t)
        assert saved["state"][0]["step"] is one.state[params[0]]["step"]
        return params, counts(one) + counts(other)

    assert_alike(of_both(run))


def test_state_that_is_swapped_in():
    """`torch.optim.swap_in_optimizer_params_and_state`: "only in-place tensor edits propagate back"."""
    swapped = getattr(torch.optim, "swap_in_optimizer_params_and_state", None)
    if swapped is None:
        pytest.skip("this torch has no swap_in_optimizer_params_and_state")

    def run(module):
        model = torch.nn.Linear(3, 2)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.linspace(-1, 1, p.numel()).view(p.shape))
        optimizer = module.AdamW(model.parameters(), lr=0.1)
        step(optimizer, 0)
        state = copy.deepcopy(optimizer.state_dict())
        params = {name: torch.nn.Parameter(p.detach().clone()) for name, p in model.named_parameters()}
        for t in range(1, 4):
            with swapped(optimizer, params, state):
                step(optimizer, t)
        step(optimizer, 9)
        inside = [each["step"].item() for each in state["state"].values()]
        return [*model.parameters(), *params.values()], counts(optimizer) + inside

    both = of_both(run)
    assert both[1][1] == [2, 2, 4, 4]
    assert_alike(both)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_copies_count_for_themselves(way):
    optimizer = fastopt.torch.NAdam(leaves((3,), (2,)), lr=0.1)
    step(optimizer, 0)
    other = way(optimizer)
    step(other, 1)
    step(other, 2)
    assert (counts(optimizer), counts(other)) == ([1, 1], [3, 3])
    tensors = [
        state[key] for one in (optimizer, other) for state in one.state.values() for key in ("step", "mu_product")
    ]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)


def test_steps_that_are_refused_count_nothing():
    params = leaves((3,), (2,))
    optimizer = fastopt.torch.NAdam(params, lr=0.1, nonfinite="raise")
    step(optimizer, 0)
    before = copy.deepcopy(list(optimizer.state.values()))
    for p in params:
        p.grad = torch.full_like(p, torch.nan)
    with pytest.raises(FloatingPointError):
        optimizer.step()
    step(optimizer, 1, skip=(0,))
    assert [state["step"].item() for state in before] == [1, 1] and counts(optimizer) == [1, 2]
