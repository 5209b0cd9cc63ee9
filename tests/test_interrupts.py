"""Signals, threads and steps in the middle of steps. That a step is whole or not begun is Python's own promise about
signals and C functions; `torture` interrupts steps, here for a few seconds, in `make torture` for a minute."""

import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torture
from fastopt.kernels import locks
from fastopt.kernels.cpu import launch

import fastopt

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timers"),
    # An interrupt may come while Python runs a callback that can raise nothing, such as hypothesis's of the collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
LARGE = 300_000


@pytest.fixture(autouse=True)
def gradients_are_recorded():
    """An interrupt at the end of `torch.no_grad`, which every step of torch's has, leaves recording off."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_grad_enabled(True)


def parameters(size=16, dtype=np.float32):
    return [np.full(size, 0.5, dtype), np.full((3, 2), 0.25, dtype)]


@pytest.mark.parametrize("looks", [False, True], ids=["interrupted", "looked at"])
@pytest.mark.parametrize(
    "name", ["SGD", "Adam, two dtypes", "Adam, accumulating", "Nadam, small", "LossScaleOptimizer"]
)
def test_steps_are_whole_or_not_begun(name, looks):
    tally = torture.Torture(name, torture.CORE[name](), looks).run(time.perf_counter() + 0.5)
    assert tally.interrupts and not tally.torn


@pytest.mark.parametrize("looks", [False, True], ids=["interrupted", "looked at"])
@pytest.mark.parametrize("name", ["AdamW, two dtypes", "AdamW, averaged", "NAdam"])
def test_steps_of_torch_are_whole_or_not_begun(name, looks):
    pytest.importorskip("torch")
    tally = torture.Torture(name, torture.TORCH[name](), looks).run(time.perf_counter() + 0.5)
    assert tally.interrupts and not tally.torn


@pytest.mark.parametrize("looks", [False, True], ids=["interrupted", "looked at"])
@pytest.mark.parametrize("name", torture.KERAS)
@pytest.mark.parametrize("backend", [pytest.param(b, marks=pytest.mark.keras_backend(b)) for b in ("numpy", "torch")])
def test_steps_of_keras_are_whole_or_not_begun(backend, name, looks, on_backend):
    tally = torture.Torture(name, torture.KERAS[name](), looks).run(time.perf_counter() + 0.5)
    assert tally.interrupts and not tally.torn


def test_torture_notices_a_torn_step(monkeypatch):
    """Between a kernel and the count that follows it, Python runs here."""

    def one_call(calls):
        def in_turn():
            for each in calls:
                each()
                time.sleep(1e-4)

        return in_turn

    monkeypatch.setattr(launch, "one_call", one_call)
    averaged = {"use_ema": True, "ema_overwrite_frequency": 1}  # such steps are never repeated in compiled code
    tally = torture.Torture("SGD", torture.core("SGD", torture.SMALL, **averaged), False).run(time.perf_counter() + 0.5)
    assert tally.torn


# -- averages in the parameters' place ---------------------------------------------------------------------------------


def averaging(front_end):
    """An optimizer that keeps an average and has stepped, and its parameters as arrays."""
    if front_end == "core":
        params = parameters()
        optimizer = fastopt.SGD(0.1, use_ema=True, ema_momentum=0.5)
        optimizer.build(params)
        for _ in range(3):
            optimizer.apply([np.ones_like(p) for p in params])
        return optimizer, params
    torch = pytest.importorskip("torch")
    import fastopt.torch as fused

    tensors = [torch.nn.Parameter(torch.from_numpy(p)) for p in parameters()]
    optimizer = fused.SGD(tensors, 0.1, ema=0.5)
    for _ in range(3):
        for p in tensors:
            p.grad = torch.ones_like(p)
        optimizer.step()
    return optimizer, [p.detach().numpy() for p in tensors]


@pytest.mark.parametrize("front_end", ["core", "torch"])
def test_interrupts_on_leaving_do_not_lose_the_training_weights(front_end, monkeypatch):
    """One comes as leaving begins, another as it is tried again: then `leave_evaluation` is there."""
    optimizer, params = averaging(front_end)
    training = [p.copy() for p in params]
    leave, coming = type(optimizer).leave_evaluation, []

    def interrupted(self):
        if coming:
            raise coming.pop()
        leave(self)

    monkeypatch.setattr(type(optimizer), "leave_evaluation", interrupted)
    for interrupts, is_back in ((1, True), (2, False)):
        coming[:] = [KeyboardInterrupt] * interrupts
        with pytest.raises(KeyboardInterrupt), optimizer.evaluation_weights():
            assert not np.array_equal(params[0], training[0])
        assert np.array_equal(params[0], training[0]) == is_back
    with pytest.raises(RuntimeError, match="leave_evaluation"):
        optimizer.apply([np.ones_like(p) for p in params]) if front_end == "core" else optimizer.step()
    optimizer.leave_evaluation()
    for now, before in zip(params, training, strict=True):
        assert now.tobytes() == before.tobytes()
    optimizer.leave_evaluation()  # once more changes nothing
    assert params[0].tobytes() == training[0].tobytes()
    with optimizer.evaluation_weights():
        pass


@pytest.mark.parametrize("front_end", ["core", "torch"])
def test_training_weights_come_back_whenever_interrupted(front_end):
    """A timer's signal comes at a random moment of entering and leaving; what it interrupts is then repeated."""
    optimizer, params = averaging(front_end)
    training = [p.tobytes() for p in params]
    rng, interrupts = np.random.default_rng(0), 0

    def handle(*_):
        raise torture.Interrupted

    before = signal.signal(signal.SIGALRM, handle)
    try:
        for _ in range(300):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 2e-4))
                with optimizer.evaluation_weights():
                    pass
                signal.setitimer(signal.ITIMER_REAL, 0)
            except torture.Interrupted:
                interrupts += 1
            optimizer.leave_evaluation()
            assert [p.tobytes() for p in params] == training
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupts


@pytest.mark.parametrize("kind", [locks.Lock, locks.RLock])
def test_locks_come_free_whenever_interrupted(kind):
    lock, interrupts = kind(), 0

    def handle(*_):
        raise torture.Interrupted

    before = signal.signal(signal.SIGALRM, handle)
    try:
        until = time.perf_counter() + 0.5
        while time.perf_counter() < until:
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-4)
                while True:
                    with lock:
                        pass
            except torture.Interrupted:
                interrupts += 1
            with ThreadPoolExecutor(1) as other:
                assert other.submit(lock.acquire, False).result()
                other.submit(lock.release).result()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupts


# -- a step within a step ----------------------------------------------------------------------------------------------

UNDER_WAY = "a step of this optimizer is under way"


@pytest.mark.parametrize("size", [16, LARGE])
def test_a_callable_rate_must_not_step(size):
    params = parameters(size)
    grads = [np.ones_like(p) for p in params]

    def rate():
        if nested[0]:
            nested[0]()
        return 0.1

    nested = [None]
    optimizer = fastopt.SGD(rate, momentum=0.9)
    optimizer.build(params)
    optimizer.apply(grads)
    for act in (
        lambda: optimizer.apply(grads),
        lambda: optimizer.apply(grads, zero_grads=True),
        lambda: optimizer.exclude_from_weight_decay(var_names=["0"]),
        lambda: optimizer.load_state_dict(optimizer.state_dict()),
    ):
        before, state = [p.copy() for p in params], optimizer.state_dict()
        nested[0] = act
        with pytest.raises(RuntimeError, match=UNDER_WAY):
            optimizer.apply(grads)
        nested[0] = None
        assert all(np.array_equal(a, b) for a, b in zip(params, before, strict=True))
        now = optimizer.state_dict()
        assert all(np.array_equal(now[key], state[key]) for key in state)
    optimizer.apply(grads)
    assert optimizer.iterations == 2


def test_a_signal_handler_may_step_another_optimizer():
    """It comes wherever it comes, also between a launch lock's being taken and the launch."""
    one, other = (fastopt.SGD(0.01, global_clipnorm=1.0) for _ in range(2))
    own, others = parameters(LARGE), parameters(LARGE)
    one.build(own)
    other.build(others)
    grads = [np.ones_like(p) for p in own]

    def handle(*_):
        other.apply(grads)
        signal.setitimer(signal.ITIMER_REAL, 1e-3)  # not before: it would be a step of the same one within a step

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-3)
        until = time.perf_counter() + 0.5
        while time.perf_counter() < until:
            one.apply(grads)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert one.iterations and other.iterations
    with launch.exclusively:  # the same thread's
        other.apply(grads)


@pytest.mark.parametrize("size", [20_000, LARGE])
@pytest.mark.parametrize("options", [{}, {"global_clipnorm": 1.0}], ids=str)
def test_threads_that_share_an_optimizer_are_refused(size, options):
    """Every step is done as a whole or refused: what was counted is what the parameters show."""
    params = [np.zeros(size, np.float32)]
    optimizer = fastopt.SGD(2.0**-20, **options)
    optimizer.build(params)
    steps, refused = [0, 0], [0, 0]

    def train(k):
        for _ in range(300):
            try:
                optimizer.apply([np.full(size, 1e-3, np.float32)])
                steps[k] += 1
            except RuntimeError as error:
                assert UNDER_WAY in str(error)
                refused[k] += 1

    threads = [threading.Thread(target=train, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert optimizer.iterations == sum(steps) and sum(steps) + sum(refused) == 600
    alone = fastopt.SGD(2.0**-20, **options)
    expected = [np.zeros(size, np.float32)]
    alone.build(expected)
    for _ in range(sum(steps)):
        alone.apply([np.full(size, 1e-3, np.float32)])
    assert params[0].tobytes() == expected[0].tobytes()


def test_no_mode_of_torch_runs_python_between_kernels_and_counts():
    """`torch.set_default_device` is such a mode: functions of torch called under it run Python code."""
    torch = pytest.importorskip("torch")
    from torch.overrides import TorchFunctionMode

    import fastopt.torch

    class Recorder(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            called.append(getattr(function, "__name__", ""))
            return function(*args, **(kwargs or {}))

    called = []
    p = torch.nn.Parameter(torch.ones(40, 30))
    optimizer = fastopt.torch.Adam([p], fused_zero_grad=True)
    optimizer.state[p]["step"] = torch.zeros((), dtype=torch.bfloat16)  # counted by torch's functions
    for _ in range(3):
        p.grad = torch.ones(30, 40).t()  # zeroed by torch's functions
        called.clear()  # the first step makes state by them too
        with Recorder():
            optimizer.step()
        assert not p.grad.any() and optimizer.state[p]["step"].dtype == torch.bfloat16
    assert int(optimizer.state[p]["step"]) == 3
    assert not any(name.endswith("_") and not name.startswith("__") for name in called), called


def test_torch_state_is_not_loaded_within_a_step():
    torch = pytest.importorskip("torch")
    import fastopt.torch

    p = torch.nn.Parameter(torch.ones(4))
    optimizer = fastopt.torch.Adam([p], 0.1)
    p.grad = torch.ones(4)
    optimizer.step()

    class Rate(float):
        def __float__(self):
            act()
            return 0.1

    acts = [
        lambda: optimizer.load_state_dict(optimizer.state_dict()),
        lambda: optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]}),
    ]
    for act in acts:  # noqa: B007
        optimizer.param_groups[0]["lr"] = Rate(0.1)
        with pytest.raises(RuntimeError, match=UNDER_WAY):
            optimizer.step()
    assert int(optimizer.state[p]["step"]) == 1 and len(optimizer.param_groups) == 1


def test_what_users_keep_in_torch_state_stays():
    torch = pytest.importorskip("torch")
    import fastopt.torch

    p, q = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    optimizer = fastopt.torch.Adam([p, q], 0.1)
    p.grad = q.grad = torch.ones(4)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    q.grad = None
    optimizer.step()
    optimizer.state[q]["note"] = 1
    optimizer.step()
    assert optimizer.state[q]["note"] == 1


def test_torch_refuses_a_step_within_a_step():
    torch = pytest.importorskip("torch")
    import fastopt.torch

    p = torch.nn.Parameter(torch.ones(4))
    optimizer = fastopt.torch.SGD([p], 0.1)

    class Rate(float):
        def __float__(self):
            optimizer.step()
            return 0.1

    p.grad = torch.ones(4)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = Rate(0.1)
    with pytest.raises(RuntimeError, match=UNDER_WAY):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert torch.allclose(p, torch.full((4,), 0.8))
