"""CUDA graphs: a captured step, replayed, is the step itself, with that day's learning rate and bias correction."""

import numpy as np
import pytest
from on_gpu import Busy, assert_same_bits, assert_same_state, require, tensors, torch

import fastopt

require()

F32 = np.float32
SHAPES = ((33, 7), (5000,), ())
SKIPPING = {"global_clipnorm": 1.0, "use_ema": True, "nonfinite": "skip", "weight_decay": 0.01}
RATES = {"initial_learning_rate": 0.01, "decay_steps": 2, "decay_rate": 0.5}
OPTIMIZERS = {
    "Adam": lambda: fastopt.Adam(0.01),
    "Adam, decaying rate": lambda: fastopt.Adam(fastopt.schedules.ExponentialDecay(**RATES)),
    "Adam, overwriting": lambda: fastopt.Adam(0.01, use_ema=True, ema_overwrite_frequency=3),
    "AdamW, skipping": lambda: fastopt.AdamW(0.01, **SKIPPING),
    "SGD, clipped each": lambda: fastopt.SGD(0.01, momentum=0.9, clipnorm=1.0),
    "Nadam": lambda: fastopt.Nadam(0.01),
    "ScheduleFreeAdamW": lambda: fastopt.ScheduleFreeAdamW(0.01, warmup_steps=4),
    "Lamb": lambda: fastopt.Lamb(0.01, **SKIPPING),
    "Adafactor": lambda: fastopt.Adafactor(0.01),
    "scaled": lambda: fastopt.LossScaleOptimizer(fastopt.Adam(0.01), dynamic_growth_steps=2),
}
over_optimizers = pytest.mark.parametrize("name", OPTIMIZERS)


def drawn(seed):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(size=shape), F32) for shape in SHAPES]


class Pair:
    """Two optimizers of a kind: one steps, the other's step is captured over gradients that stay where they are."""

    def __init__(self, name, warm=0):
        self.eager, self.other = OPTIMIZERS[name](), OPTIMIZERS[name]()
        self.expected, self.params = tensors(drawn(0)), tensors(drawn(0))
        self.eager.build(self.expected)
        self.other.build(self.params)
        self.grads = tensors(drawn(1))
        for seed in range(warm):
            self.step(100 + seed, lambda: self.other.apply(self.grads))

    def step(self, seed, replay, value=None):
        """One eager step, and `replay`, from the same gradients."""
        arrays = drawn(seed)
        if value is not None:
            arrays[1][4321] = value
        given = tensors(arrays)
        torch._foreach_copy_(self.grads, given)
        self.eager.apply(given)
        replay()

    def check(self):
        assert_same_bits(self.params, self.expected, "parameter")
        assert_same_state(self.other, self.eager)


# -- fastopt.capture ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warm", [0, 3])
@over_optimizers
def test_replays_are_steps(name, warm):
    pair = Pair(name, warm)
    graph = fastopt.capture(pair.other, pair.grads)
    assert pair.other.iterations == warm
    for seed in range(2, 9):
        pair.step(seed, graph.replay)
        assert_same_bits(pair.params, pair.expected, f"after step {seed}, parameter")
    pair.check()


@pytest.mark.parametrize("name", ["AdamW, skipping", "Lamb", "scaled"])
def test_replays_skip(name):
    pair = Pair(name)
    graph = fastopt.capture(pair.other, pair.grads)
    for seed in range(2, 12):
        pair.step(seed, graph.replay, np.inf if seed in (2, 5, 6) else None)
    assert pair.other.iterations == 7
    pair.check()


def test_rates_that_are_set_between_replays():
    pair = Pair("Adam")
    graph = fastopt.capture(pair.other, pair.grads)
    for seed in range(2, 7):
        pair.eager.learning_rate = pair.other.learning_rate = 0.1 / seed
        pair.step(seed, graph.replay)
    pair.check()


def test_replays_and_steps_alternate():
    pair = Pair("AdamW, skipping")
    graph = fastopt.capture(pair.other, pair.grads)
    for seed in range(2, 10):
        pair.step(seed, graph.replay if seed % 2 else lambda: pair.other.apply(pair.grads))
    pair.check()


def test_a_buffer():
    params, expected = (fastopt.pack(tensors(drawn(0))) for _ in range(2))
    optimizer, reference, grads = fastopt.Adam(0.01), fastopt.Adam(0.01), params.like()
    for view, array in zip(grads.arrays, tensors(drawn(1)), strict=True):
        torch.as_tensor(view, device="cuda").copy_(array)
    optimizer.build(params)
    reference.build(expected)
    graph = fastopt.capture(optimizer, grads)
    for _ in range(3):
        graph.replay()
        reference.apply(grads)
    assert_same_bits([params.flat], [expected.flat])


def test_replays_do_not_wait():
    pair = Pair("AdamW, skipping", warm=1)
    graph = fastopt.capture(pair.other, pair.grads)
    graph.replay()
    with Busy() as busy:
        for _ in range(5):
            graph.replay()
        assert busy.still


def test_replays_go_to_the_current_stream():
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        pair = Pair("Adam")
        graph = fastopt.capture(pair.other, pair.grads)
        pair.step(2, graph.replay)
        pair.eager.apply(pair.grads)
    with Busy() as busy:
        with torch.cuda.stream(side):
            graph.replay()
        torch.cuda.set_sync_debug_mode("default")
        side.synchronize()
        assert busy.still
    pair.check()


def test_raising_cannot_be_captured():
    optimizer, params = fastopt.Adam(nonfinite="raise"), tensors(drawn(0))
    optimizer.build(params)
    with pytest.raises((ValueError, RuntimeError), match="raise"):
        fastopt.capture(optimizer, tensors(drawn(1)))
    assert_same_bits(params, drawn(0))


# -- torch.cuda.graph --------------------------------------------------------------------------------------------------


def captured_by_torch(optimizer, grads, steps):
    optimizer.prepare(steps)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.apply(grads)
    return graph


@over_optimizers
def test_inside_a_graph_of_torch(name):
    pair = Pair(name, warm=2)
    graph = captured_by_torch(pair.other, pair.grads, 6)
    for seed in range(2, 8):
        pair.step(seed, graph.replay)
    pair.check()


def test_more_steps_can_be_prepared_later():
    pair = Pair("Adam, decaying rate", warm=1)
    graph = captured_by_torch(pair.other, pair.grads, 2)
    for window in range(3):
        for seed in range(2):
            pair.step(2 + 2 * window + seed, graph.replay)
        pair.other.prepare(2)
    pair.check()


def test_replays_beyond_the_prepared_ones_change_nothing():
    pair = Pair("Adam", warm=1)
    graph = captured_by_torch(pair.other, pair.grads, 2)
    pair.step(2, graph.replay)
    pair.step(3, graph.replay)
    graph.replay()
    assert_same_bits(pair.params, pair.expected, "parameter")
    with pytest.raises(RuntimeError, match="prepare"):
        pair.other.iterations  # noqa: B018


def test_a_whole_training_step_inside_a_graph_of_torch():
    """Forward, backward and update, as torch's documentation captures them."""
    torch.manual_seed(0)
    models = [torch.nn.Linear(16, 4).cuda() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [fastopt.Adam(0.01) for _ in models]
    x, y = torch.randn(32, 16, device="cuda"), torch.randn(32, 4, device="cuda")
    for model, optimizer in zip(models, optimizers, strict=True):
        optimizer.build([param.detach() for param in model.parameters()])

    def train(k):
        models[k].zero_grad(set_to_none=False)
        (models[k](x) - y).square().mean().backward()
        optimizers[k].apply([param.grad for param in models[k].parameters()])

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for k in (0, 1) * 3:
            train(k)
    torch.cuda.current_stream().wait_stream(side)
    optimizers[0].prepare(5)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        train(0)
    for _ in range(5):
        graph.replay()
        train(1)
    assert optimizers[0].iterations == 8
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)
