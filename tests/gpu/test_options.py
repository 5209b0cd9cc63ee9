"""What optimizers do besides their rule: skipping, scaling, averages, state; each as on the CPU."""

from typing import NamedTuple

import numpy as np
import pytest
from fastopt.kernels.compile import _jit
from on_gpu import assert_same_bits, assert_same_state, host, require, tensor, tensors, torch

import fastopt

require()

F32 = np.float32
SHAPES = ((33, 7), (5000,), ())


def drawn(seed):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(size=shape), F32) for shape in SHAPES]


def broken(seed, value):
    arrays = drawn(seed)
    arrays[1][4321] = value
    return arrays


class Both:
    """The same optimizer on CPU and GPU."""

    def __init__(self, make):
        self.cpu, self.gpu = make(), make()
        self.arrays, self.tensors = drawn(0), tensors(drawn(0))
        self.cpu.build(self.arrays)
        self.gpu.build(self.tensors)

    def apply(self, grads, **options):
        self.cpu.apply([None if grad is None else grad.copy() for grad in grads], **options)
        self.gpu.apply([None if grad is None else tensor(grad) for grad in grads], **options)

    def check(self):
        assert_same_bits(self.tensors, self.arrays, "parameter")
        assert_same_state(self.gpu, self.cpu)


def test_gradients_are_zeroed_in_the_step():
    both = Both(lambda: fastopt.Adam(0.01, global_clipnorm=1.0))
    for step in (1, 2):
        grads = tensors(drawn(step))
        both.cpu.apply(drawn(step))
        both.gpu.apply(grads, zero_grads=True)
        assert not any(grad.any() for grad in grads)
    both.check()


@pytest.mark.filterwarnings("ignore:.*gradient")
@pytest.mark.parametrize("options", [{}, {"global_clipnorm": 1.0, "gradient_accumulation_steps": 2}])
def test_parameters_without_a_gradient_are_left_alone(options):
    both = Both(lambda: fastopt.AdamW(0.01, use_ema=True, **options))
    for step in range(1, 7):
        grads = drawn(step)
        if step in (2, 4):
            grads[step // 3] = None
        both.apply(grads)
    both.check()


@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm"])
def test_norms_can_be_read(clip):
    both = Both(lambda: fastopt.SGD(0.1, **{clip: 0.5}))
    for step in (1, 2):
        both.apply(drawn(step))
        assert both.gpu.last_grad_norm == both.cpu.last_grad_norm
    expected = np.sqrt(sum(float(np.sum(grad.astype(np.float64) ** 2)) for grad in drawn(2)))
    np.testing.assert_allclose(both.gpu.last_grad_norm, expected, rtol=1e-12)
    both.check()


def test_without_a_clipping_norm_there_is_none():
    both = Both(fastopt.Adam)
    both.apply(drawn(1))
    assert both.gpu.last_grad_norm is None
    assert both.gpu.last_step_skipped is False


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("options", [{}, {"global_clipnorm": 1.0}, {"use_ema": True}])
def test_skipped_steps_leave_everything_as_it_was(value, options):
    both = Both(lambda: fastopt.Adam(0.01, nonfinite="skip", **options))
    for step in range(1, 8):
        skipped = step in (1, 4, 5)
        both.apply(broken(step, value) if skipped else drawn(step))
        assert both.gpu.last_step_skipped is skipped
    assert both.gpu.iterations == 4
    both.check()


def test_skipped_steps_without_looking():
    """The device decides: nothing is read between the steps."""
    rates = fastopt.schedules.ExponentialDecay(0.01, decay_steps=2, decay_rate=0.5)
    both = Both(lambda: fastopt.Adam(rates, nonfinite="skip", use_ema=True))
    for step in range(1, 30):
        both.apply(broken(step, np.inf) if step % 3 else drawn(step))
    assert both.gpu.iterations == 9
    both.check()


def test_float64_infinities_whose_squares_are_not_alone_infinite():
    """1e200 is finite though its square is not."""
    for value, skipped in ((1e200, False), (np.inf, True)):
        param, grad = tensor(np.ones(3)), tensor(np.array([0.0, value, 1.0]))
        optimizer = fastopt.SGD(0.1, nonfinite="skip")
        optimizer.build([param])
        optimizer.apply([grad])
        assert optimizer.last_step_skipped is skipped


def test_raising_leaves_everything_as_it_was():
    both = Both(lambda: fastopt.Adam(0.01, nonfinite="raise"))
    both.apply(drawn(1))
    with pytest.raises(FloatingPointError, match=r"gradient 1 .*nothing was updated"):
        both.gpu.apply(tensors(broken(2, np.nan)))
    both.check()
    both.apply(drawn(3))
    both.check()


def test_nan_is_kept_where_it_is_asked_for():
    both = Both(lambda: fastopt.Adam(0.01, clipvalue=0.5))
    both.apply(broken(1, np.nan))
    assert np.isnan(host(both.tensors[1])[4321])
    assert np.isfinite(host(both.tensors[0])).all()


def scaled():
    return fastopt.LossScaleOptimizer(fastopt.Adam(0.01, use_ema=True), initial_scale=2.0**10, dynamic_growth_steps=2)


@pytest.mark.parametrize("look", [True, False])
def test_the_loss_scale_lives_on_the_device(look):
    both = Both(scaled)
    for step in range(1, 13):
        both.apply(broken(step, np.inf) if step in (3, 4, 9) else drawn(step))
        if look:
            assert both.gpu.dynamic_scale == both.cpu.dynamic_scale
            assert both.gpu.step_counter == both.cpu.step_counter
            assert both.gpu.last_step_skipped == both.cpu.last_step_skipped
    assert (both.gpu.dynamic_scale, both.gpu.step_counter) == (both.cpu.dynamic_scale, both.cpu.step_counter)
    both.check()


def test_a_loss_is_scaled_by_what_the_device_holds():
    both = Both(scaled)
    loss = torch.tensor(3.0, device="cuda", requires_grad=True)
    assert both.gpu.scale_loss(loss).item() == 3.0 * 2**10
    both.apply(broken(1, np.inf))
    result = both.gpu.scale_loss(loss)
    result.backward()
    assert result.item() == 3.0 * 2**9
    assert loss.grad.item() == 2**9


def test_evaluation_weights():
    both = Both(lambda: fastopt.Adam(0.01, use_ema=True, ema_momentum=0.9))
    for step in (1, 2, 3):
        both.apply(drawn(step))
    with both.cpu.evaluation_weights(), both.gpu.evaluation_weights():
        assert_same_bits(both.tensors, both.arrays, "average")
    both.check()
    both.apply(drawn(4))
    both.check()


def test_schedule_free_evaluation_weights():
    both = Both(lambda: fastopt.ScheduleFreeAdamW(0.01, warmup_steps=2))
    for step in (1, 2, 3):
        both.apply(drawn(step))
    with both.cpu.evaluation_weights(), both.gpu.evaluation_weights():
        for one, other in zip(both.tensors, both.arrays, strict=True):
            np.testing.assert_allclose(host(one), other, rtol=1e-6, atol=1e-6)
    both.check()


def test_averages_for_good():
    both = Both(lambda: fastopt.SGD(0.1, use_ema=True))
    both.apply(drawn(1))
    both.apply(drawn(2))
    for optimizer in (both.cpu, both.gpu):
        optimizer.finalize_variable_values()
    both.check()


def test_rates_that_are_set():
    both = Both(lambda: fastopt.Adam(0.01))
    for step in (1, 2, 3):
        both.cpu.learning_rate = both.gpu.learning_rate = 0.1 / step
        both.apply(drawn(step))
    both.check()


def test_overrides():
    both = Both(lambda: fastopt.AdamW(0.01, weight_decay=0.1))
    overrides = {"^0$": {"learning_rate_multiplier": 0.1, "weight_decay": 0.0}, "^2$": {"trainable": False}}
    both.cpu, both.gpu = fastopt.AdamW(0.01), fastopt.AdamW(0.01)
    both.cpu.build(both.arrays, overrides)
    both.gpu.build(both.tensors, overrides)
    both.apply(drawn(1))
    both.apply(drawn(2))
    both.check()


def test_state_moves_between_cpu_and_gpu(tmp_path):
    def make():
        return fastopt.Adam(0.01, use_ema=True, gradient_accumulation_steps=2)

    both, other = Both(make), Both(make)
    for step in (1, 2, 3):
        both.apply(drawn(step))
    np.savez(tmp_path / "state.npz", **both.gpu.state_dict())
    with np.load(tmp_path / "state.npz") as state:
        other.cpu.load_state_dict(state)
    other.gpu.load_state_dict(both.cpu.state_dict())
    for array, param, value in zip(other.arrays, other.tensors, both.arrays, strict=True):
        array[...] = value
        param.copy_(tensor(value))
    for step in (4, 5, 6):
        both.apply(drawn(step))
        other.apply(drawn(step))
    both.check()
    other.check()
    assert_same_bits(other.tensors, both.tensors)


def test_a_state_that_does_not_fit_changes_nothing():
    both = Both(fastopt.Adam)
    both.apply(drawn(1))
    state = both.gpu.state_dict()
    state["1/momentum"] = np.zeros(3, F32)
    with pytest.raises(ValueError, match="1/momentum"):
        both.gpu.load_state_dict(state)
    both.check()


class Scalars(NamedTuple):
    learning_rate: float
    momentum: float


def heavy_ball(param, grad, slots, s):
    (velocity,) = slots
    velocity = s.momentum * velocity + grad
    return param - s.learning_rate * velocity, (velocity,)


def test_rules_of_users():
    options = {"slots": {"velocity": 0.0}, "defaults": {"learning_rate": 0.01, "momentum": 0.9}}
    HeavyBall = fastopt.register_rule("HeavyBallOnGpu", heavy_ball, Scalars, **options)
    both = Both(lambda: HeavyBall(0.1, global_clipnorm=1.0, use_ema=True))
    for step in (1, 2, 3):
        both.apply(drawn(step))
    both.check()


def test_the_second_step_compiles_nothing():
    optimizer, params = fastopt.RMSprop(0.01, momentum=0.5), tensors(drawn(0))
    optimizer.build(params)
    optimizer.apply(tensors(drawn(1)))
    before = _jit.compilations, _jit.loads
    optimizer.apply(tensors(drawn(2)))
    assert (_jit.compilations, _jit.loads) == before
