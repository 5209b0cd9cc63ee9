"""Captured steps: replays of a graph give the bits of steps."""

import numpy as np
import pytest
from fastopt.kernels.cuda import gpu as gpus_of_fastopt
from gpu_arrays import Interface
from gpu_twins import Twins, on_gpu

import fastopt
from fastopt import schedules
from fastopt.steps import gpu

pytestmark = pytest.mark.usefixtures("gpus")


def full(*values):
    """A parameter of tests that only run with all others."""
    return pytest.param(*values, marks=pytest.mark.full)


SHAPES = ((3, 4), (6,), ())


def drawn(seed, bad=False):
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]
    if bad:
        arrays[1][3] = np.nan
    return arrays


class Pair(Twins):
    """The steps of the optimizer on the GPU are captured, with gradients that stay where they are."""

    def __init__(self, make, params=lambda: drawn(0), **options):
        super().__init__(make, params, **options)
        self.grads = drawn(0)
        self.given = on_gpu(self.grads)

    def put(self, seed, bad=False):
        """The gradients of the next step, and a step on the host."""
        arrays = drawn(seed, bad)
        for there, array in zip(self.grads, arrays, strict=True):
            there[...] = array
        self.host.apply(arrays)

    def eager(self, seed, bad=False):
        """A step on both sides without a graph."""
        self.put(seed, bad)
        self.gpu.apply(self.given)


class Foreign:
    """A graph of somebody else, such as ``torch.cuda.graph``, in whose stream everybody works while it is made."""

    STREAM = 12345

    def __init__(self, pair):
        self._pair = pair
        self._device = gpus_of_fastopt.device(0)

    def capture(self, **options):
        """Capture a step of the pair's optimizer; what counts its calls is not asked."""
        place = self._place()
        callers_stream, place._stream = place._stream, lambda: self.STREAM
        self._device.begin_capture(self.STREAM)
        try:
            self._pair.gpu.apply(self._pair.given, **options)
        finally:
            self._graph = self._device.end_capture(self.STREAM)
            place._stream = callers_stream
        return self

    def _place(self):
        optimizer = self._pair.gpu
        return getattr(optimizer, "inner_optimizer", optimizer)._place

    def replay(self, seed=None, bad=False):
        """One replay; with a seed, a step on the host too."""
        if seed is not None:
            self._pair.put(seed, bad)
        self._graph.launch(0)


RATES = {"initial_learning_rate": 0.1, "decay_steps": 2, "decay_rate": 0.5}
OPTIMIZERS = {
    "Adam": lambda: fastopt.Adam(0.1),
    "schedule": lambda: fastopt.Adam(schedules.ExponentialDecay(**RATES)),
    "function": lambda: fastopt.Adam(lambda step: 0.1 / (1 + step)),
    "average": lambda: fastopt.Adam(0.1, use_ema=True, ema_overwrite_frequency=3, nonfinite="skip"),
    "clipped": lambda: fastopt.SGD(0.1, momentum=0.9, clipnorm=0.5),
    "Nadam": lambda: fastopt.Nadam(0.1, nonfinite="skip", global_clipnorm=1.0),
    "Lamb": lambda: fastopt.Lamb(0.1, nonfinite="skip", weight_decay=0.1),
    "accumulation": lambda: fastopt.Nadam(0.1, gradient_accumulation_steps=3, clipnorm=0.5, nonfinite="skip"),
    "scaled": lambda: fastopt.LossScaleOptimizer(fastopt.Adam(0.1, global_clipnorm=1.0), 8.0, 2),
    "scaled accumulation": lambda: fastopt.LossScaleOptimizer(fastopt.Lamb(gradient_accumulation_steps=2), 8.0, 2),
    "Adafactor": lambda: fastopt.Adafactor(0.1),
}
SKIPS = ("average", "Nadam", "Lamb", "accumulation", "scaled", "scaled accumulation")
COVERING = ("function", "Lamb", "accumulation", "scaled")
over_optimizers = pytest.mark.parametrize("name", [name if name in COVERING else full(name) for name in OPTIMIZERS])


def is_bad(name, seed):
    """Whether the gradients of a step hold a NaN: only for those that leave such steps out."""
    return name in SKIPS and seed in (3, 6, 7)


# -- fastopt.capture ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warm", [full(0), 2])
@over_optimizers
def test_replays_are_steps(name, warm):
    pair = Pair(OPTIMIZERS[name])
    for seed in range(20, 20 + warm):
        pair.eager(seed)
    graph = fastopt.capture(pair.gpu, pair.given)
    pair.check()
    for seed in range(1, 10):
        pair.put(seed, is_bad(name, seed))
        graph.replay()
        if seed % 3 == 0:
            pair.check()


@pytest.mark.parametrize("name", ["Adam", "accumulation"])
def test_settings_between_replays(name):
    pair = Pair(OPTIMIZERS[name])
    graph = fastopt.capture(pair.gpu, pair.given)
    for seed in range(1, 10):
        pair.set(learning_rate=0.3 / seed, weight_decay=0.1 * seed, beta_1=1 - 0.1 * seed)
        pair.put(seed, is_bad(name, seed))
        graph.replay()
    pair.check()


@pytest.mark.parametrize("name", ["average", "scaled", "accumulation"])
def test_replays_steps_and_a_second_graph_alternate(name):
    pair = Pair(OPTIMIZERS[name])
    graphs = [fastopt.capture(pair.gpu, pair.given), fastopt.capture(pair.gpu, pair.given, zero_grads=True)]
    for seed in range(1, 13):
        pair.put(seed, is_bad(name, seed))
        (graphs[0].replay, graphs[1].replay, lambda: pair.gpu.apply(pair.given))[seed % 3]()
        assert all(grad.any() != (seed % 3 == 1) for grad in pair.grads)
    pair.check()


def test_replays_leave_later_gradients_alone():
    """Steps with other gradients do not turn a graph to these."""
    pair = Pair(OPTIMIZERS["Adam"])
    graph = fastopt.capture(pair.gpu, pair.given)
    for seed in (1, 2, 3):
        elsewhere = drawn(seed)
        pair.host.apply(elsewhere)
        pair.gpu.apply(on_gpu(elsewhere))
        pair.put(10 + seed)
        graph.replay()
    pair.check()


@pytest.mark.parametrize("name", ["Muon", full("Adafactor")])
def test_parameters_that_are_stood_in_for(name):
    """The copies that such steps need belong to the graph."""
    pair = Pair(lambda: getattr(fastopt, name)(0.05), lambda: [array.copy(order="F") for array in drawn(0)])
    graph = fastopt.capture(pair.gpu, pair.given)
    pair.check()
    for seed in (1, 2, 3):
        for params in (pair.host_params, [array.memory for array in pair.gpu_params]):
            params[0] += seed
        pair.put(seed)
        graph.replay()
    pair.check()


def test_gradients_that_share_memory():
    """They are zeroed after the step, in the graph too."""
    owners = np.ones(20, np.float32), np.ones(20, np.float32)

    def grads(owner):
        return [owner[:12].reshape(3, 4), owner[10:16], owner[19:].reshape(())]

    twins = Twins(lambda: fastopt.SGD(0.1), lambda: drawn(0))
    graph = fastopt.capture(twins.gpu, on_gpu(grads(owners[1])), zero_grads=True)
    assert owners[1].all()
    for seed in (1, 2):
        for owner in owners:
            owner[...] = seed
        twins.host.apply(grads(owners[0]), zero_grads=True)
        graph.replay()
        assert owners[1].tolist() == owners[0].tolist() == 16 * [0.0] + 3 * [seed] + [0.0]
    twins.check()


def test_a_capture_of_an_optimizer_that_was_rebuilt():
    pair = Pair(lambda: fastopt.Adam(weight_decay=0.1))
    graph = fastopt.capture(pair.gpu, pair.given)
    pair.gpu.exclude_from_weight_decay(var_names=["0"])
    with pytest.raises(RuntimeError, match="rebuilt since this step was captured: capture it again"):
        graph.replay()


def test_a_replay_among_averaged_weights():
    pair = Pair(OPTIMIZERS["average"])
    graph = fastopt.capture(pair.gpu, pair.given)
    with pair.gpu.evaluation_weights(), pytest.raises(RuntimeError, match="leave the context first"):
        graph.replay()


def test_what_cannot_be_captured():
    with pytest.raises(TypeError, match="optimizer must be an Optimizer, got list"):
        fastopt.capture([], [])
    optimizer = fastopt.Adam()
    with pytest.raises(RuntimeError, match="not built"):
        fastopt.capture(optimizer, [])
    optimizer.build(drawn(0))
    with pytest.raises(RuntimeError, match=r"capture\(\) and prepare\(\) are for steps on a GPU"):
        fastopt.capture(optimizer, drawn(0))
    pair = Pair(lambda: fastopt.Adam(nonfinite="raise"))
    with pytest.raises(RuntimeError, match=r'nonfinite="raise" waits for the GPU.*use "skip"'):
        fastopt.capture(pair.gpu, pair.given)
    with pytest.raises(ValueError, match="expected shape"):
        fastopt.capture(pair.gpu, [*pair.given[:2], pair.given[0]])
    pair.eager(1)
    pair.check()


# -- a graph of somebody else ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warm", [full(0), 2])
@over_optimizers
def test_foreign_replays_are_steps(name, warm):
    """Of which the host does not hear."""
    pair = Pair(OPTIMIZERS[name])
    for seed in range(20, 20 + warm):
        pair.eager(seed)
    pair.gpu.prepare(9)
    graph = Foreign(pair).capture()
    pair.check()
    for seed in range(1, 10):
        graph.replay(seed, is_bad(name, seed))
        if seed % 4 == 0:
            pair.check()
    pair.check()


@pytest.mark.parametrize("name", ["Adam", "Nadam", "accumulation"])
def test_rates_set_between_foreign_replays(name):
    pair = Pair(OPTIMIZERS[name])
    pair.gpu.prepare(12)
    graph = Foreign(pair).capture(zero_grads=True)
    for seed in range(1, 13):
        pair.set(learning_rate=0.3 / seed)
        graph.replay(seed, is_bad(name, seed))
    pair.check()


@pytest.mark.parametrize("name", ["Adam", "average", "accumulation", "scaled"])
def test_steps_between_foreign_replays(name):
    pair = Pair(OPTIMIZERS[name])
    pair.eager(30)
    pair.gpu.prepare(20)
    graph = Foreign(pair).capture()
    for seed in range(1, 13):
        if seed % 3:
            graph.replay(seed, is_bad(name, seed))
        else:
            pair.eager(seed, is_bad(name, seed))
    pair.check()


def test_more_replays_than_were_prepared():
    """They change nothing, and say so once."""
    pair = Pair(OPTIMIZERS["average"])
    pair.gpu.prepare(2)
    graph = Foreign(pair).capture()
    for seed in (1, 2):
        graph.replay(seed)
    for _ in range(3):
        graph.replay()
    with pytest.raises(RuntimeError, match=r"replayed more often than prepared for: call prepare\(steps\).*2 calls"):
        _ = pair.gpu.iterations
    pair.check()
    pair.eager(3)
    pair.gpu.prepare(1)
    graph.replay(4)
    pair.check()


def test_a_ring_that_grows_under_a_graph(monkeypatch):
    """Captured launches find the new one."""
    monkeypatch.setattr(gpu, "RING", 4)
    pair = Pair(OPTIMIZERS["Nadam"])
    pair.gpu.prepare(2)
    foreign, own = Foreign(pair).capture(), fastopt.capture(pair.gpu, pair.given)
    foreign.replay(1)
    pair.gpu.prepare(40)
    for seed in range(2, 30):
        foreign.replay(seed, seed % 5 == 0)
    pair.put(30)
    own.replay()
    pair.check()


def test_more_replays_than_the_ring_has_places(monkeypatch):
    monkeypatch.setattr(gpu, "RING", 4)
    pair = Pair(OPTIMIZERS["Adam"])
    own = fastopt.capture(pair.gpu, pair.given)
    for seed in range(1, 12):
        pair.put(seed)
        own.replay()
    pair.gpu.prepare(3)
    foreign = Foreign(pair).capture()
    for seed in range(1, 12):
        if seed % 3 == 1:
            pair.gpu.prepare(3)
        foreign.replay(seed)
    pair.check()


def test_state_loaded_between_foreign_replays():
    """What was prepared before is void; what is prepared anew is what replays take."""
    pair = Pair(OPTIMIZERS["Nadam"])
    pair.gpu.prepare(10)
    graph = Foreign(pair).capture()
    graph.replay(1)
    state = pair.host.state_dict()
    graph.replay(2)
    pair.host.load_state_dict(state)
    pair.gpu.load_state_dict(state)
    pair.gpu.prepare(2)
    for seed in (3, 4):
        graph.replay(seed)
    pair.check()


def test_a_capture_without_programs():
    pair = Pair(OPTIMIZERS["Adam"])
    pair.eager(1)
    with pytest.raises(RuntimeError, match=r"call prepare\(steps\) before capturing"):
        Foreign(pair).capture()
    pair.check()
    pair.gpu.prepare(1)
    Foreign(pair).capture().replay(2)
    pair.check()


def test_a_capture_that_would_wait():
    pair = Pair(lambda: fastopt.Adam(nonfinite="raise"))
    pair.gpu.prepare(1)
    with pytest.raises(RuntimeError, match='nonfinite="raise" waits for the GPU'):
        Foreign(pair).capture()
    pair.eager(1)
    pair.check()


def test_counters_may_be_read_while_others_capture():
    pair = Pair(OPTIMIZERS["average"])
    pair.eager(1)
    device = gpus_of_fastopt.device(0)
    device.begin_capture(Foreign.STREAM)
    try:
        pair.check()
    finally:
        device.end_capture(Foreign.STREAM)


@pytest.mark.parametrize(
    ("steps", "error", "message"),
    [(0, ValueError, "steps"), (1.5, TypeError, "steps"), (True, TypeError, "steps")],
)
def test_numbers_of_steps_that_make_no_sense(steps, error, message):
    pair = Pair(OPTIMIZERS["Adam"])
    with pytest.raises(error, match=message):
        pair.gpu.prepare(steps)


def test_a_capture_on_a_stream_that_was_never_used_before():
    """A capture may neither wait for what is enqueued outside nor be waited for."""
    (array,), (grad,) = ([np.ones(5, np.float32)] for _ in range(2))
    optimizer = fastopt.Adam()
    optimizer.build([Interface(array, stream=7)])
    optimizer.apply([Interface(grad, stream=9)])
    graph = fastopt.capture(optimizer, [Interface(grad, stream=9)])
    graph.replay()
    assert optimizer.iterations == 2
