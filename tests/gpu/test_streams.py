"""Streams, threads and several GPUs: a step waits for nothing, and takes its place in the caller's stream."""

import concurrent.futures

import numpy as np
import pytest
from on_gpu import SPIN, Busy, assert_same_bits, assert_same_state, require, tensor, tensors, torch

import fastopt

require()

F32 = np.float32
SHAPES = ((33, 7), (50_000,), ())
SKIPPING = {"global_clipnorm": 1.0, "use_ema": True, "nonfinite": "skip", "weight_decay": 0.01}
OPTIMIZERS = {
    "Adam": lambda: fastopt.Adam(0.01),
    "Adam, skipping": lambda: fastopt.Adam(0.01, **SKIPPING),
    "SGD, clipped each": lambda: fastopt.SGD(0.01, momentum=0.9, clipnorm=1.0),
    "Lamb, accumulating": lambda: fastopt.Lamb(0.01, gradient_accumulation_steps=2, **SKIPPING),
    "Adafactor": lambda: fastopt.Adafactor(0.01),
    "scaled": lambda: fastopt.LossScaleOptimizer(fastopt.Adam(0.01)),
}
over_optimizers = pytest.mark.parametrize("name", OPTIMIZERS)


def drawn(seed):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(size=shape), F32) for shape in SHAPES]


def built(name, device="cuda"):
    """An optimizer that has done a step, and its parameters."""
    optimizer, params = OPTIMIZERS[name](), tensors(drawn(0), device)
    optimizer.build(params)
    optimizer.apply(tensors(drawn(1), device))
    return optimizer, params


# -- nothing waits -----------------------------------------------------------------------------------------------------


@over_optimizers
def test_steps_do_not_wait_for_the_gpu(name):
    optimizer, params = built(name)
    reference, expected = built(name)
    grads = [tensors(drawn(seed)) for seed in range(2, 10)]
    for step in grads:
        reference.apply(step)
    with Busy() as busy:
        for step in grads:
            optimizer.apply(step)
        assert busy.still
    assert_same_bits(params, expected, "parameter")
    assert_same_state(optimizer, reference)


def test_zeroing_gradients_and_setting_a_rate_do_not_wait():
    optimizer, _ = built("Adam, skipping")
    grads = tensors(drawn(2))
    with Busy() as busy:
        optimizer.learning_rate = 0.5
        optimizer.apply(grads, zero_grads=True)
        assert busy.still
    assert not any(grad.any() for grad in grads)


def test_scaling_a_loss_does_not_wait():
    optimizer, _ = built("scaled")
    loss = torch.ones((), device="cuda")
    with Busy() as busy:
        scaled = optimizer.scale_loss(loss)
        assert busy.still
    assert scaled.item() == 2.0**15


def test_a_flat_buffer_does_not_wait():
    params = fastopt.pack(tensors(drawn(0)))
    grads, optimizer = params.like(), fastopt.Adam()
    optimizer.build(params)
    optimizer.apply(grads)
    with Busy() as busy:
        optimizer.apply(grads)
        assert busy.still


@pytest.mark.parametrize("read", ["iterations", "last_grad_norm", "last_step_skipped"])
def test_what_is_read_is_waited_for(read):
    optimizer, _ = built("Adam, skipping")
    grads = tensors(drawn(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(SPIN)
    end = torch.cuda.Event()
    end.record()
    optimizer.apply(grads)
    getattr(optimizer, read)
    assert end.query()


# -- the caller's stream -----------------------------------------------------------------------------------------------


@over_optimizers
def test_steps_on_a_side_stream_overtake_the_default_stream(name):
    reference, expected = built(name)
    grads, side = tensors(drawn(2)), torch.cuda.Stream()
    reference.apply(grads)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        optimizer, params = built(name)
    with Busy() as busy:
        with torch.cuda.stream(side):
            optimizer.apply(grads)
        torch.cuda.set_sync_debug_mode("default")
        side.synchronize()
        assert busy.still
    assert_same_bits(params, expected, "parameter")


@pytest.mark.parametrize("side", [False, True])
def test_a_step_follows_what_its_stream_does_before(side):
    optimizer, param, grad = fastopt.SGD(0.5), tensor(np.zeros(1000, F32)), tensor(np.zeros(1000, F32))
    optimizer.build([param])
    stream = torch.cuda.Stream() if side else torch.cuda.current_stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SPIN // 4)
        grad.fill_(2.0)
        optimizer.apply([grad], zero_grads=True)
        grad.add_(param)
    torch.cuda.synchronize()
    assert bool((param == -1.0).all())
    assert bool((grad == -1.0).all())


def test_steps_on_changing_streams():
    """Each waits for the one before, as the caller says; the state follows."""
    optimizer, params = built("Adam, skipping")
    reference, expected = built("Adam, skipping")
    streams = [torch.cuda.Stream(), torch.cuda.Stream(), torch.cuda.default_stream()]
    steps = [tensors(drawn(seed)) for seed in range(2, 11)]
    previous = torch.cuda.current_stream()
    for number, grads in enumerate(steps):
        stream = streams[number % 3]
        stream.wait_stream(previous)
        with torch.cuda.stream(stream):
            optimizer.apply(grads)
        previous = stream
    torch.cuda.synchronize()
    for grads in steps:
        reference.apply(grads)
    assert_same_bits(params, expected, "parameter")
    assert_same_state(optimizer, reference)


def test_the_current_stream_of_cupy():
    cupy = pytest.importorskip("cupy")
    param, grad, optimizer = cupy.zeros(1000, F32), cupy.ones(1000, F32), fastopt.SGD(0.5)
    cupy.cuda.get_current_stream().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        optimizer.build([param])
        optimizer.apply([grad])
    with Busy() as busy:
        with stream:
            optimizer.apply([grad])
        torch.cuda.set_sync_debug_mode("default")
        stream.synchronize()
        assert busy.still
    assert (param.get() == -1.0).all()


# -- threads and GPUs --------------------------------------------------------------------------------------------------


def trained(name, steps=60):
    """Parameters after steps on a stream of one's own."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        optimizer, params = built(name)
        for seed in range(2, 2 + steps):
            optimizer.apply(tensors(drawn(seed)))
    stream.synchronize()
    return params


def test_two_threads_step_two_optimizers():
    names = ["Adam, skipping", "Lamb, accumulating"]
    alone = [trained(name) for name in names]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        together = list(pool.map(trained, names))
    for found, expected in zip(together, alone, strict=True):
        assert_same_bits(found, expected, "parameter")


needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@needs_two
@over_optimizers
def test_another_gpu_than_the_current_one(name):
    first, second = built(name), built(name, "cuda:1")
    for seed in (2, 3):
        first[0].apply(tensors(drawn(seed)))
        second[0].apply(tensors(drawn(seed), "cuda:1"))
    assert torch.cuda.current_device() == 0
    assert_same_bits(second[1], first[1], "parameter")


@needs_two
def test_gradients_on_another_gpu_are_refused():
    optimizer, params = built("Adam")
    before = [param.clone() for param in params]
    with pytest.raises((TypeError, ValueError), match=r"GPU|device"):
        optimizer.apply(tensors(drawn(2), "cuda:1"))
    assert_same_bits(params, before)
