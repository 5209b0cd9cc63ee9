"""All of fastopt on a GPU at once, upon a driver that runs kernels late: the CPU's bits, and no waiting."""

import contextlib
import gc
import re
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fastopt.kernels.cuda import gpu

import fastopt

pytestmark = pytest.mark.xdist_group("whole")

F32 = np.float32
SHAPES = ((5, 7), (80,))
SKIPPING = {"global_clipnorm": 1.0, "use_ema": True, "ema_momentum": 0.9, "nonfinite": "skip"}
OPTIMIZERS = {
    "SGD": lambda: fastopt.SGD(0.1),
    "Adam": lambda: fastopt.Adam(0.01, weight_decay=0.01, **SKIPPING),
    "Lamb": lambda: fastopt.Lamb(0.01, gradient_accumulation_steps=2, **SKIPPING),
    "scaled": lambda: fastopt.LossScaleOptimizer(fastopt.Adam(0.01), initial_scale=8.0, dynamic_growth_steps=3),
}
over_optimizers = pytest.mark.parametrize("name", OPTIMIZERS)


@pytest.fixture
def eagerness():
    """See `RunningDriver`."""
    return 0.5, 0.5


in_many_orders = pytest.mark.parametrize(
    "eagerness", [(0, 0), (0.5, 0.5), (0, 1), (1, 0)], ids=["late", "at random", "others first", "default first"]
)


@pytest.fixture
def cupy(monkeypatch, eagerness):
    """The library whose arrays are on the GPUs."""
    from cupy_stand_in import CuPy
    from running_driver import RunningDriver, install, remove

    driver = RunningDriver(eagerness, seed=1)
    cupy = CuPy(driver)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    install(monkeypatch, driver)
    yield cupy
    gc.collect()
    remove(driver)


def drawn(seed, shapes=SHAPES, dtype=F32):
    """Arrays of random numbers."""
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def broken(seed):
    """The same, one of them not finite."""
    arrays = drawn(seed)
    arrays[1][77] = np.inf
    return arrays


class Both:
    """The same optimizer on the CPU and on a GPU."""

    def __init__(self, cupy, make, arrays=None, ordinal=0, **options):
        self.cupy, self.ordinal = cupy, ordinal
        self.cpu, self.gpu = make(), make()
        self.arrays = drawn(0) if arrays is None else arrays
        self.params = self.on_gpu(self.arrays)
        self.cpu.build(self.arrays, **options)
        self.gpu.build(self.params, **options)

    def on_gpu(self, arrays):
        return [self.cupy.array(array, self.ordinal) for array in arrays]

    def apply(self, arrays, **options):
        """One step; the gradients on the GPU do not outlive it."""
        self.cpu.apply([array.copy() for array in arrays], **options)
        self.gpu.apply(self.on_gpu(arrays), **options)

    def check(self):
        for k, (found, expected) in enumerate(zip(self.params, self.arrays, strict=True)):
            assert_same_bits(found.get(), expected, f"parameter {k}")
        found, expected = self.gpu.state_dict(), self.cpu.state_dict()
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_same_bits(np.asarray(found[name]), np.asarray(value), name)


def assert_same_bits(found, expected, what):
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype), what
    assert found.tobytes() == expected.tobytes(), f"{what}: {found} instead of {expected}"


# -- steps -------------------------------------------------------------------------------------------------------------


@in_many_orders
def test_a_scale_that_adapts(cupy):
    """Losses are scaled, and steps done, in one stream after another."""
    both, streams = Both(cupy, OPTIMIZERS["scaled"]), [cupy.stream(), cupy.stream()]
    for seed in range(1, 8):
        arrays = (broken if seed in (1, 6) else drawn)(seed)
        both.cpu.apply([both.cpu.scale_loss(array) for array in arrays])
        with streams[seed % 2]:
            both.gpu.apply([both.gpu.scale_loss(array) for array in both.on_gpu(arrays)])
    with streams[seed % 2]:
        both.check()


@in_many_orders
@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
def test_gradients_for_rows(cupy, nonfinite):
    """In one stream after another; a step that is refused, and one that is left out, among them."""
    both = Both(cupy, lambda: fastopt.Adam(0.1, clipnorm=1.0, nonfinite=nonfinite), drawn(0, ((30, 3), (80,))))
    streams, rng = [cupy.stream(), cupy.stream()], np.random.default_rng(1)
    for seed in range(1, 8):
        indices, (values, whole) = rng.integers(0, 30, 50), drawn(seed, ((50, 3), (80,)))
        indices[7] = 30 if seed == 3 else 0
        values[7, 1] = np.inf if seed == 5 and nonfinite == "skip" else 1.0
        refused = pytest.raises(ValueError, match="out of range") if seed == 3 else contextlib.nullcontext()
        with streams[seed % 2], refused:
            both.gpu.apply([fastopt.RowGradient(*both.on_gpu([indices, values])), *both.on_gpu([whole])])
        if seed != 3:
            both.cpu.apply([fastopt.RowGradient(indices, values), whole])
    with streams[seed % 2]:
        both.check()


@pytest.mark.parametrize("eagerness", [(0, 0), (0.02, 0.02)], ids=["late", "at random"])
def test_many_steps_ahead(cupy):
    """Each with uploads of its own, whose pinned memory is used again no earlier than it may be."""
    arrays = drawn(0, shapes=[(3,)])
    both = Both(cupy, lambda: fastopt.SGD(0.1), arrays=arrays)
    for seed in range(1, 101):
        both.cpu.learning_rate = both.gpu.learning_rate = 0.1 / seed
        both.apply(drawn(seed, shapes=[(3,)]))
    both.check()


# -- nothing waits -----------------------------------------------------------------------------------------------------

WAITING = re.compile("cu(.*Synchronize|Mem(Alloc|Free|FreeHost)|Stream(Create|Destroy)|EventDestroy|Library.*)$")


def calls_of(cupy, function):
    """How often a function calls which functions of the driver."""
    del cupy.driver.calls[:]
    function()
    return Counter(cupy.driver.calls)


@pytest.mark.parametrize("eagerness", [(0, 0)], ids=["late"])
@over_optimizers
def test_a_step_does_nothing_that_waits(cupy, name):
    """However late the GPU is: no step has been done when several have been enqueued."""
    both = Captured(cupy, OPTIMIZERS[name])
    both.gpu.apply(both.grads)
    graph = fastopt.capture(both.gpu, both.grads)
    before = both.params[0].numbers().copy()

    def steps():
        for rate in (0.1, 0.2, 0.3):
            both.gpu.learning_rate = rate
            both.gpu.apply(both.grads)
            graph.replay()

    assert not [call for call in calls_of(cupy, steps) if WAITING.match(call)]
    assert_same_bits(both.params[0].numbers(), before, "parameter")


@pytest.mark.parametrize("streams", [0, 1], ids=["default stream", "another stream"])
@pytest.mark.parametrize(("name", "launches"), [("SGD", 1), ("Adam", 2), ("Lamb", 3)])
def test_calls_of_a_step(cupy, name, launches, streams):
    """In another stream than the default one, which may have been made anew, the step before is waited for."""
    with cupy.stream() if streams else contextlib.nullcontext():
        _count_calls(cupy, name, launches, streams)


def _count_calls(cupy, name, launches, streams):
    both = Captured(cupy, OPTIMIZERS[name])
    for _ in range(4):
        both.gpu.apply(both.grads)
    both.gpu.state_dict()
    with cupy.gpu(0):
        calls = calls_of(cupy, lambda: [both.gpu.apply(both.grads) for _ in range(2)])
    expected = {"cuCtxGetCurrent": 4 + streams, "cuStreamIsCapturing": 1, "cuMemcpyHtoDAsync": 1, "cuEventRecord": 1}
    expected |= {"cuLaunchKernel": launches} | ({"cuStreamWaitEvent": 1} if streams else {})
    assert calls == {call: 2 * count for call, count in expected.items()}


def test_an_optimizer_is_freed_with_its_last_reference(cupy):
    """Without the collector of garbage; page-locked memory alone is kept, for whoever needs some next."""

    def blocks():
        return len(cupy.driver.blocks) - len(spare)

    spare = gpu.device(0).spare
    params, before = [cupy.array(array) for array in drawn(0)], None
    gc.collect()
    gc.disable()
    try:
        for _ in range(4):
            optimizer = fastopt.ScheduleFreeAdamW(0.1)
            optimizer.build(params)
            for seed in (1, 2):
                optimizer.apply([cupy.array(array) for array in drawn(seed)])
                with optimizer.evaluation_weights():
                    assert optimizer.iterations == seed
            del optimizer
            before = before or blocks()
            assert blocks() <= before
    finally:
        gc.enable()


def test_averages_are_not_worked_out_in_a_capture(cupy):
    both = Both(cupy, lambda: fastopt.ScheduleFreeAdamW(0.1))
    both.apply(drawn(1))
    stream = cupy.stream()
    with stream:
        gpu.device(0).begin_capture(stream.ptr)
        try:
            with pytest.raises(RuntimeError, match="captured to a graph"), both.gpu.evaluation_weights():
                """Not reached."""
        finally:
            gpu.device(0).end_capture(stream.ptr)
    both.apply(drawn(2))
    both.check()


def test_a_rate_that_changes_the_context(cupy):
    """A function of the user's may leave another GPU current, as `torch.cuda.set_device` does."""

    def rate():
        if cupy.driver.contexts:
            cupy.driver.contexts[-1] = cupy.driver.context_of(1)
        return 0.1

    both = Both(cupy, lambda: fastopt.Adam(rate))
    with cupy.gpu(0):
        for seed in (1, 2, 3):
            both.apply(drawn(seed))
    both.check()


# -- streams -----------------------------------------------------------------------------------------------------------


@in_many_orders
@over_optimizers
def test_changing_streams(cupy, name):
    streams = [cupy.stream(), cupy.stream()]
    both = Both(cupy, OPTIMIZERS[name])
    for seed in range(1, 5):
        with streams[seed % 2] as stream:
            stream.wait(0)  # for the parameters' first values
            both.apply(drawn(seed))
    with stream:
        both.check()


@pytest.mark.full
@in_many_orders
def test_copies_that_stand_in_for_parameters(cupy):
    """Also in a graph: what the user has is read before each step, and written after it."""
    arrays = list(map(np.asfortranarray, drawn(0)))
    both, streams = Captured(cupy, lambda: fastopt.Adafactor(0.1), arrays=arrays), [cupy.stream(), cupy.stream()]
    for seed in range(1, 5):
        with streams[seed % 2] as stream:
            stream.wait(0)
            both.apply(drawn(seed))
    with stream:
        graph = fastopt.capture(both.gpu, both.grads)
        both.step(drawn(5), graph.replay)
        both.check()


@in_many_orders
def test_state_made_in_another_stream(cupy):
    """By building, by building anew, and by loading."""
    stream, side = cupy.stream(), cupy.stream()
    with stream:
        both = Both(cupy, lambda: fastopt.Adam(0.01, weight_decay=0.1, use_ema=True))
    for change in (
        lambda optimizer: None,
        lambda optimizer: optimizer.exclude_from_weight_decay(var_names=["0"]),
        lambda optimizer: optimizer.load_state_dict({"0/velocity": np.ones((5, 7))}, strict=False),
    ):
        with side:
            change(both.cpu)
            change(both.gpu)
        with stream:
            both.apply(drawn(1))
    with stream:
        both.check()


@in_many_orders
@pytest.mark.parametrize("make", [OPTIMIZERS["Adam"], lambda: fastopt.ScheduleFreeAdamW(0.01)], ids=["kept", "made"])
def test_averages_in_another_stream(cupy, make):
    both, side = Both(cupy, make), cupy.stream()
    for seed in range(1, 4):
        both.apply(drawn(seed))
        with side, both.cpu.evaluation_weights(), both.gpu.evaluation_weights():
            for found, expected in zip(both.params, both.arrays, strict=True):
                assert_same_bits(found.get(), expected, "average")
    with side:
        both.cpu.finalize_variable_values()
        both.gpu.finalize_variable_values()
    both.apply(drawn(4))
    both.check()


class Foreign:
    """An array with ``__cuda_array_interface__`` that its library works on in another stream."""

    def __init__(self, cupy, values, stream):
        with stream:
            self.array = cupy.array(values)
        self.stream = stream
        self.__cuda_array_interface__ = {
            "shape": values.shape,
            "typestr": values.dtype.str,
            "data": (self.array.data.ptr, False),
            "stream": stream.ptr,
            "version": 3,
        }

    def set(self, values):
        with self.stream:
            self.array.set(values)

    def get(self):
        with self.stream:
            return self.array.get()


@in_many_orders
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_gradients_of_another_stream(cupy, name):
    both, side = Both(cupy, OPTIMIZERS[name]), cupy.stream()
    for seed in range(1, 5):
        both.cpu.apply(drawn(seed))
        both.gpu.apply([Foreign(cupy, array, side) for array in drawn(seed)])
    both.check()


@in_many_orders
@pytest.mark.parametrize("zero_grads", [False, True])
def test_gradients_that_another_stream_writes_anew(cupy, zero_grads):
    both, side = Both(cupy, OPTIMIZERS["Adam"], overrides={"1": {"trainable": False}}), cupy.stream()
    grads = [Foreign(cupy, array, side) for array in drawn(1)]
    for seed in range(1, 4):
        for grad, values in zip(grads, drawn(seed), strict=True):
            grad.set(values)
        both.cpu.apply(drawn(seed))
        both.gpu.apply(grads, zero_grads=zero_grads)
        for grad, values in zip(grads, drawn(seed), strict=True):
            assert_same_bits(grad.get(), np.zeros_like(values) if zero_grads else values, "gradient")
        for grad, values in zip(grads, drawn(20), strict=True):
            grad.set(values)
    for grad, values in zip(grads, drawn(20), strict=True):
        assert_same_bits(grad.get(), values, "gradient")
    both.check()


def test_streams_that_are_gone(cupy):
    both, side = Both(cupy, OPTIMIZERS["Adam"]), cupy.stream()
    side.wait(0)
    both.cpu.apply(drawn(1))
    both.gpu.apply([Foreign(cupy, array, side) for array in drawn(1)])
    with side:
        both.apply(drawn(2))
    side.destroy()
    both.gpu.prepare(2)
    both.apply(drawn(3))
    both.check()


# -- graphs ------------------------------------------------------------------------------------------------------------


class Captured(Both):
    """`Both`, whose gradients on the GPU stay where they are."""

    def __init__(self, cupy, make, **options):
        super().__init__(cupy, make, **options)
        self.grads = self.on_gpu(self.arrays)

    def step(self, arrays, replay):
        """One step on the CPU, and a replay."""
        for grad, values in zip(self.grads, arrays, strict=True):
            grad.set(values)
        self.cpu.apply([array.copy() for array in arrays])
        replay()


@over_optimizers
def test_replays(cupy, name):
    both = Captured(cupy, OPTIMIZERS[name])
    both.apply(drawn(1))
    graph = fastopt.capture(both.gpu, both.grads)
    for seed in range(2, 7):
        both.cpu.learning_rate = both.gpu.learning_rate = 0.1 / seed
        both.step((broken if seed == 4 and name != "SGD" else drawn)(seed), graph.replay)
        if seed == 5:
            both.apply(drawn(20))
    both.check()


@pytest.mark.parametrize("warm", [0, 1])
def test_replays_over_parameters_of_two_dtypes(cupy, warm):
    def of_two_dtypes(seed):
        return [drawn(seed)[0], drawn(seed, dtype=np.float64)[1]]

    both = Captured(cupy, lambda: fastopt.SGD(0.1), arrays=of_two_dtypes(0))
    for _ in range(warm):
        both.apply(of_two_dtypes(9))
    graph = fastopt.capture(both.gpu, both.grads)
    for seed in range(2, 4):
        both.step(of_two_dtypes(seed), graph.replay)
    both.check()


def test_replays_zero_what_no_kernel_zeroes(cupy):
    both = Captured(cupy, lambda: fastopt.SGD(0.1), overrides={"1": {"trainable": False}})
    graph = fastopt.capture(both.gpu, both.grads, zero_grads=True)
    assert all(grad.get().any() for grad in both.grads), "a capture does nothing"
    both.step(drawn(2), graph.replay)
    assert not any(grad.get().any() for grad in both.grads)
    both.check()


@in_many_orders
@pytest.mark.parametrize("between", [False, True])
def test_replays_over_gradients_of_another_stream(cupy, between):
    both, side = Captured(cupy, lambda: fastopt.SGD(0.1)), cupy.stream()
    both.grads = [Foreign(cupy, array, side) for array in drawn(1)]
    graph = fastopt.capture(both.gpu, both.grads)
    for seed in range(2, 5):
        if between:
            both.apply(drawn(20 + seed))
        both.step(drawn(seed), graph.replay)
    both.check()


class ForeignGraph:
    """What a framework captures in a stream of its own, in the mode that torch captures in."""

    def __init__(self, cupy, step):
        self.cupy, stream, driver = cupy, cupy.stream(), cupy.driver
        with cupy.gpu(0):
            driver.cuStreamBeginCapture(stream.ptr, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL)
        with stream:
            step()
        with cupy.gpu(0):
            error, graph = driver.cuStreamEndCapture(stream.ptr)
            assert not error
            self.graph = driver.cuGraphInstantiate(graph, 0)[1]
        stream.destroy()

    def replay(self):
        with self.cupy.gpu(0):
            self.cupy.driver.cuGraphLaunch(self.graph, self.cupy.current(0))


@over_optimizers
def test_inside_a_foreign_graph(cupy, name):
    both = Captured(cupy, OPTIMIZERS[name])
    both.apply(drawn(1))
    both.gpu.prepare(4)
    graph = ForeignGraph(cupy, lambda: both.gpu.apply(both.grads))
    for seed in range(2, 5):
        both.step(drawn(seed), graph.replay)
    assert both.gpu.iterations == both.cpu.iterations
    both.apply(drawn(6))
    both.check()


@in_many_orders
def test_foreign_replays_in_another_stream(cupy):
    """The next step of fastopt's own, and what reads counters, finds them done."""
    both, side = Captured(cupy, OPTIMIZERS["Adam"]), cupy.stream()
    both.gpu.prepare(5)
    graph = ForeignGraph(cupy, lambda: both.gpu.apply(both.grads))
    with side:
        side.wait(0)
        for seed in range(2, 4):
            both.step(drawn(seed), graph.replay)
    assert both.gpu.iterations == 2
    with side:
        both.gpu.learning_rate = both.cpu.learning_rate = 0.5
        both.step(drawn(5), graph.replay)
        both.apply(drawn(6))
        both.check()


# -- threads and GPUs --------------------------------------------------------------------------------------------------


def test_steps_while_another_thread_captures(cupy):
    both, stream = Captured(cupy, OPTIMIZERS["Adam"]), cupy.stream()
    mode = cupy.driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL

    def in_context(name, *arguments):
        with cupy.gpu(0):
            return getattr(cupy.driver, name)(*arguments)[0]

    with ThreadPoolExecutor(1) as other:
        assert not other.submit(in_context, "cuStreamBeginCapture", stream.ptr, mode).result()
        for seed in range(1, 4):
            both.step(drawn(seed), lambda: both.gpu.apply(both.grads))
        both.check()
        assert not other.submit(in_context, "cuStreamEndCapture", stream.ptr).result()


def test_threads_with_optimizers_of_their_own(cupy):
    def trained(name):
        with cupy.stream():
            both = Both(cupy, OPTIMIZERS[name])
            for seed in range(1, 6):
                both.apply(drawn(seed))
            both.check()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(trained, ["Adam", "scaled"]))


def test_two_gpus(cupy):
    pairs = [Both(cupy, OPTIMIZERS["Adam"], ordinal=ordinal) for ordinal in (0, 1)]
    for seed in range(1, 5):
        for ordinal, both in enumerate(pairs):
            both.apply(drawn(seed + ordinal))
    for both in pairs:
        both.check()
    assert cupy.driver.contexts == []
