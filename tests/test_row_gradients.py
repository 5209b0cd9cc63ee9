"""Gradients for some rows: held to the dense engine, to NumPy in float64, and to themselves in another order."""

import tracemalloc
from typing import NamedTuple

import numba
import numpy as np
import oracles
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from rows import rows

import fastopt
from fastopt import RowGradient

EXAMPLES = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)

WHOLE = ("Lamb", "Adafactor", "Muon")
"""Optimizers that take no gradient for some rows of a matrix."""

EXACT = {"SGD": {}, "Adagrad": {}, "RowwiseAdagrad": {}}
"""Those that leave rows with a gradient of zero alone, so that both kinds of gradient mean the same."""

SHAPES = ((40,), (40, 3), (9, 64), (12, 2, 5), (3, 5000), (1, 4), (20_000, 2))


def drawn(rng, shape, dtype=np.float32, count=None):
    """A gradient: no row, one, few, many with repetitions, or all."""
    count = count if count is not None else int(rng.choice([0, 1, 5, 3 * shape[0]]))
    indices = rng.integers(0, shape[0], count) if rng.random() < 0.9 else rng.permutation(shape[0])
    values = 10.0 ** rng.uniform(-2, 1) * rng.normal(size=(len(indices), *shape[1:]))
    return RowGradient(indices, values.astype(dtype))


def built(name, params, overrides=None, **options):
    optimizer = getattr(fastopt, name)(**options)
    optimizer.build(params, overrides)
    return optimizer


class Pair(NamedTuple):
    """Two optimizers of one kind: one is given rows, the other all of the same gradient."""

    by_rows: fastopt.Optimizer
    dense: fastopt.Optimizer
    params: list
    twins: list

    @classmethod
    def of(cls, name, shapes=((40, 3), (3, 3)), dtype=np.float32, overrides=None, **options):
        rng = np.random.default_rng(0)
        params = [np.asarray(rng.normal(size=shape), dtype) for shape in shapes]
        twins = [param.copy() for param in params]
        options = {"learning_rate": 0.1} | options
        return cls(built(name, params, overrides, **options), built(name, twins, overrides, **options), params, twins)

    def step(self, grads, **options):
        self.by_rows.apply(grads, **options)
        self.dense.apply([densified(g, p) for g, p in zip(grads, self.params, strict=True)])

    def assert_alike(self, tolerance=0.0):
        slots, others = self.by_rows.slots, self.dense.slots
        found = [*self.params, *(array for name in slots for array in slots[name] if array is not None)]
        wanted = [*self.twins, *(array for name in others for array in others[name] if array is not None)]
        for array, other in zip(found, wanted, strict=True):
            if tolerance:
                np.testing.assert_allclose(array, other, rtol=tolerance, atol=tolerance)
            else:
                np.testing.assert_array_equal(array, other)


def densified(grad, param):
    return grad.to_dense(param.shape).astype(param.dtype) if isinstance(grad, RowGradient) else grad


# -- what a step means -------------------------------------------------------------------------------------------------


@rows("name", [name for name in oracles.RULES if name not in WHOLE])
def test_touched_rows_are_stepped_as_if_there_were_no_others(name):
    """Held to the rule in float64, applied to the touched rows alone: moments are theirs, the count is everybody's."""
    for own in ({}, oracles.RULES[name].own[0]):
        _assert_lazy(name, own, (20, 3), np.float64, 1e-9)
        _assert_lazy(name, own, (20, 3), np.float32, 2e-3)


def _assert_lazy(name, own, shape, dtype, tolerance):
    oracle = oracles.RULES[name](**{key: value for key, value in own.items() if key != "weight_decay"})
    decay = own.get("weight_decay", oracles.WEIGHT_DECAYS.get(name, 0.0))
    rng, rate = np.random.default_rng(1), oracle.rate
    param = rng.normal(size=shape).astype(dtype)
    expected = param.astype(np.float64)
    slots = oracle.slots(expected, "0")
    optimizer = built(name, [param], learning_rate=rate, **own)
    for t in range(1, 51):
        grad = drawn(rng, shape, dtype, count=int(rng.choice([0, 1, 5, 60])))
        optimizer.apply([grad])
        touched = np.unique(grad.indices)
        if len(touched):
            own_slots = {key: array[touched] for key, array in slots.items()}
            merged = grad.to_dense(shape)[touched].astype(np.float64)
            decayed = expected[touched] * (1 - rate * decay)
            expected[touched] = oracle.step(decayed, merged, own_slots, rate, t)
            for key, array in own_slots.items():
                slots[key][touched] = array
        np.testing.assert_allclose(param, expected, rtol=tolerance, atol=tolerance, err_msg=f"{name} {own}, step {t}")
    for key, array in optimizer.slots.items():
        np.testing.assert_allclose(array[0], slots[key], rtol=10 * tolerance, atol=10 * tolerance, err_msg=key)


@rows("name, shape, dtype", [(n, s, d) for n in EXACT for s in SHAPES for d in (np.float32, np.float64)])
def test_rows_without_a_gradient_are_like_rows_of_zeros(name, shape, dtype):
    rng, pair = np.random.default_rng(2), Pair.of(name, (shape, (3, 3)), dtype)
    for _ in range(10):
        pair.step([drawn(rng, shape, dtype), rng.normal(size=(3, 3)).astype(dtype)])
        pair.assert_alike()


OPTIONS = {
    "clipnorm": {"clipnorm": 0.5},
    "global_clipnorm": {"global_clipnorm": 1.0},
    "clipvalue": {"clipvalue": 0.1},
    "loss_scale": {"loss_scale_factor": 64.0},
    "nonfinite": {"nonfinite": "raise"},
    "schedule": {"learning_rate": fastopt.schedules.ExponentialDecay(0.1, 3, 0.5)},
    "average": {"use_ema": True, "ema_momentum": 0.9},
    "average that overwrites": {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3},
    "all": {"global_clipnorm": 3.0, "use_ema": True, "nonfinite": "skip", "loss_scale_factor": 0.5},
}


@rows("option, name", [(option, name) for option in OPTIONS for name in EXACT])
def test_options_mean_the_same_as_for_dense_gradients(option, name):
    overrides = {"1": {"learning_rate_multiplier": 0.5}, "2": {"trainable": False}}
    shapes = ((40, 3), (9, 64), (5, 2), (3, 3))
    pair = Pair.of(name, shapes, np.float64, overrides, **OPTIONS[option])
    rng = np.random.default_rng(3)
    for _ in range(12):
        pair.step([*(drawn(rng, shape, np.float64) for shape in shapes[:3]), rng.normal(size=(3, 3))])
        pair.assert_alike(1e-9)
        assert pair.by_rows.last_grad_norm == pytest.approx(pair.dense.last_grad_norm, rel=1e-12)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_averages_follow_exactly_when_a_row_is_touched_or_they_are_read(momentum):
    """Through steps of both kinds, without any, with another momentum, and read in every way."""
    pair = Pair.of("SGD", ((30, 4), (3, 3)), np.float64, use_ema=True, ema_momentum=momentum)
    rng = np.random.default_rng(4)
    for step in range(60):
        grad = drawn(rng, (30, 4), np.float64) if step % 7 else rng.normal(size=(30, 4))
        other = rng.normal(size=(3, 3))
        if step % 11 == 10:
            with pytest.warns(UserWarning, match="no gradient for 0"):
                pair.by_rows.apply([None, other])
            with pytest.warns(UserWarning, match="no gradient for 0"):
                pair.dense.apply([None, other])
        else:
            pair.step([grad, other])
        if step == 20:
            pair.by_rows.ema_momentum = pair.dense.ema_momentum = 0.7
        if step % 13 == 12:
            with pair.by_rows.evaluation_weights(), pair.dense.evaluation_weights():
                np.testing.assert_allclose(pair.params[0], pair.twins[0], rtol=1e-9, atol=1e-12)
    found, expected = pair.by_rows.state_dict(), pair.dense.state_dict()
    for key, array in expected.items():
        np.testing.assert_allclose(found[key], array, rtol=1e-9, atol=1e-12, err_msg=key)
    pair.by_rows.load_state_dict(expected)
    pair.dense.load_state_dict(expected)
    pair.step([drawn(rng, (30, 4), np.float64, count=3), rng.normal(size=(3, 3))])
    pair.by_rows.finalize_variable_values()
    pair.dense.finalize_variable_values()
    np.testing.assert_allclose(pair.params[0], pair.twins[0], rtol=1e-9, atol=1e-12)


@rows("kinds", ["ddddrrrddddrd", "rrrrrr", "drdrdrdrdr", "ddddddrddddddr"])
def test_steps_of_both_kinds_alternate(kinds):
    """Also after steps that compiled code repeats by itself."""
    pair, rng = Pair.of("SGD", momentum=0.0, use_ema=True), np.random.default_rng(5)
    for kind in kinds:
        grad = drawn(rng, (40, 3))
        pair.step([grad if kind == "r" else grad.to_dense((40, 3)), rng.normal(size=(3, 3)).astype(np.float32)])
        np.testing.assert_array_equal(pair.params[0], pair.twins[0])
    pair.assert_alike(1e-5)


@rows("elements", [3, 40_000])
def test_averages_follow_before_compiled_code_repeats_steps(elements):
    """Steps of rows, one without a gradient, then whole ones that repeat."""
    pair = Pair.of("SGD", ((elements, 1), (2,)), np.float64, use_ema=True, ema_momentum=0.5)
    for row in (0, 0, 1):
        pair.step([RowGradient(np.array([row]), np.ones((1, 1))), np.ones(2)])
    for _ in range(3):
        for optimizer in (pair.by_rows, pair.dense):
            with pytest.warns(UserWarning, match="no gradient for 0"):
                optimizer.apply([None, np.ones(2)])
    for _ in range(5):
        pair.step([np.ones((elements, 1)), np.ones(2)])
    pair.assert_alike(1e-12)


def test_state_that_is_read_in_the_middle_of_a_step_spoils_no_average():
    """As by a signal's handler, between the making of a step's calls and the calls."""
    pair = Pair.of("SGD", ((5, 2),), np.float64, use_ema=True, ema_momentum=0.5)
    grads = [RowGradient(np.array([row]), np.ones((1, 2))) for row in range(3)]
    for grad in grads:
        pair.step([grad])
    engine = pair.by_rows._plans[0].engine
    make = engine.calls

    def read_in_between(options):
        calls = make(options)
        pair.by_rows.state_dict()
        return calls

    engine.calls = read_in_between
    for grad in grads:
        pair.step([grad])
    del engine.calls
    for _ in range(3):
        pair.step([np.ones((5, 2))])
    pair.assert_alike(1e-12)


def test_many_places_of_a_small_table_use_threads_by_themselves():
    """A process may hold one launch on threads at a time: see `launch.exclusively`."""
    optimizer = built("SGD", [np.zeros((50, 16), np.float32)])
    for places in (3, 20_000):
        optimizer.apply([RowGradient(np.zeros(places, np.int64), np.ones((places, 16), np.float32))])
        engine = optimizer._plans[0].engine
        assert not engine.on_threads and engine.uses_threads == (places == 20_000)


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_a_gradient_that_is_not_finite_changes_nothing(nonfinite):
    pair = Pair.of("Adam", nonfinite=nonfinite, use_ema=True)
    bad = RowGradient(np.array([3, 7]), np.array([[1, 2, 3], [1, np.inf, 3]], np.float32))
    before, state = [param.copy() for param in pair.params], pair.by_rows.state_dict()
    if nonfinite == "raise":
        with pytest.raises(FloatingPointError, match="gradient 0 is not finite"):
            pair.by_rows.apply([bad, np.ones((3, 3), np.float32)])
    else:
        pair.by_rows.apply([bad, np.ones((3, 3), np.float32)])
        assert pair.by_rows.last_step_skipped
    for param, old in zip(pair.params, before, strict=True):
        np.testing.assert_array_equal(param, old)
    for key, array in pair.by_rows.state_dict().items():
        np.testing.assert_array_equal(array, state[key])


def test_a_rule_of_ones_own_takes_rows():
    class Scalars(NamedTuple):
        learning_rate: float

    def sign_step(param, grad, slots, s):
        (total,) = slots
        return param - s.learning_rate * grad, (total + grad,)

    kind = fastopt.register_rule("SumOfRows", sign_step, Scalars, slots={"total": 0.0}, defaults={"learning_rate": 0.5})
    table = np.zeros((5, 2), np.float32)
    optimizer = kind()
    optimizer.build([table])
    optimizer.apply([RowGradient(np.array([4, 1, 4]), np.ones((3, 2), np.float32))])
    assert table[:, 0].tolist() == [0.0, -0.5, 0.0, 0.0, -1.0]
    assert optimizer.slots["total"][0][:, 1].tolist() == [0.0, 1.0, 0.0, 0.0, 2.0]


# -- how it is handed over ---------------------------------------------------------------------------------------------


@st.composite
def gradients(draw):
    """A shape, and a gradient of any index type, order, strides and dtype."""
    shape = draw(array_shapes(min_dims=1, max_dims=3, max_side=6))
    count = draw(st.integers(0, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    indices = rng.integers(0, shape[0], count).astype(draw(st.sampled_from([np.int32, np.int64])))
    values = rng.normal(size=(count, *shape[1:])).astype(draw(st.sampled_from([np.float32, np.float64])))
    way = draw(st.sampled_from(["plain", "fortran", "backwards", "every other", "broadcast", "offset"]))
    if way == "fortran":
        values = np.asfortranarray(values)
    elif way == "backwards":
        indices, values = indices[::-1], values[::-1]
    elif way == "every other":
        indices, values = np.repeat(indices, 2)[::2], np.repeat(values, 2, axis=0)[::2]
    elif way == "broadcast" and count:
        values = np.broadcast_to(values[:1], values.shape)
    elif way == "offset":
        values = np.concatenate([values[..., :1], values], axis=-1)[..., 1:] if values.ndim > 1 else values
    return shape, RowGradient(indices, values)


@EXAMPLES
@given(gradients(), st.sampled_from([np.float32, np.float64]), st.sampled_from(["C", "inner axes turned"]))
def test_any_order_type_and_strides(case, dtype, order):
    shape, grad = case
    param = np.zeros(shape, dtype)
    if order != "C" and len(shape) == 3:
        param = np.zeros((shape[0], shape[2], shape[1]), dtype).transpose(0, 2, 1)
    optimizer = built("SGD", [param], learning_rate=1.0)
    optimizer.apply([grad])
    expected = np.zeros(shape, dtype)
    np.add.at(expected, grad.indices, np.asarray(grad.values, dtype))
    np.testing.assert_array_equal(-param, expected)


@rows("threads", [1, 2, 3, 8])
def test_bits_depend_on_neither_threads_nor_the_order_of_rows(threads, monkeypatch):
    """The order of a row's own values stays; norms are among what is compared."""
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 8)
    _assert_same_bits(threads, 6000, (5000, 32))
    _assert_same_bits(threads, 50_000, (5000, 3))  # so many are sorted in parts


def _assert_same_bits(threads, places, shape):
    rng = np.random.default_rng(6)
    indices = rng.integers(0, shape[0], places)
    values = rng.normal(size=(places, shape[1])).astype(np.float32)
    grouped = np.argsort(rng.permutation(shape[0])[indices], kind="stable")  # rows in another order
    results = []
    for order, own_threads in ((slice(None), 1), (grouped, threads)):
        before = fastopt.get_num_threads()
        fastopt.set_num_threads(own_threads, yields=False)
        try:
            table = np.ones(shape, np.float32)
            optimizer = built("Adam", [table], learning_rate=0.1, clipnorm=1.0)
            for _ in range(3):
                optimizer.apply([RowGradient(indices[order], values[order])])
            results.append((table, *(array[0] for array in optimizer.slots.values()), optimizer.last_grad_norm))
        finally:
            fastopt.set_num_threads(before, yields=True)
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_in_structures_flat_buffers_and_pairs():
    grad = RowGradient(np.array([2, 0, 2]), np.ones((3, 2), np.float32))
    expected = [[-1.0, -1.0], [0.0, 0.0], [-2.0, -2.0]]
    params = {"table": np.zeros((3, 2), np.float32), "bias": np.zeros(2, np.float32)}
    optimizer = built("SGD", params, learning_rate=1.0)
    optimizer.apply({"bias": np.ones(2, np.float32), "table": grad})
    assert params["table"].tolist() == expected and params["bias"].tolist() == [-1.0, -1.0]
    buffer = fastopt.pack({"table": np.zeros((3, 2), np.float32), "bias": np.zeros(2, np.float32)})
    optimizer = built("SGD", buffer, learning_rate=1.0)
    optimizer.apply({"table": grad, "bias": np.ones(2, np.float32)})
    assert buffer.views["table"].tolist() == expected
    table = np.zeros((3, 2), np.float32)
    optimizer = fastopt.SGD(1.0)
    optimizer.apply([grad], [table])
    optimizer.apply_gradients([(grad, table)])
    assert table.tolist() == (2 * np.array(expected)).tolist()


@pytest.mark.parametrize("skips", [False, True])
def test_zero_grads_zeroes_values(skips):
    values, whole = np.ones((2, 3), np.float32), np.ones((3, 3), np.float32)
    if skips:
        values[0, 0] = np.nan
    params = [np.zeros((5, 3), np.float32), np.zeros((3, 3), np.float32)]
    optimizer = built("SGD", params, learning_rate=1.0, nonfinite="skip")
    optimizer.apply([RowGradient(np.array([1, 1]), values), whole], zero_grads=True)
    assert not values.any() and not whole.any()
    assert params[0][1].tolist() == ([0.0] * 3 if skips else [-2.0] * 3)


def test_from_dense_and_back():
    dense = np.zeros((6, 2), np.float32)
    dense[1], dense[4] = (0, 3), (np.nan, 0)
    grad = RowGradient.from_dense(dense)
    assert grad.indices.tolist() == [1, 4]
    np.testing.assert_array_equal(grad.to_dense((6, 2)), dense)
    assert repr(grad) == "RowGradient(2 rows of shape (2,), float32)"
    assert RowGradient.from_dense(np.zeros((3, 0), np.float32)).indices.size == 0


def test_a_step_needs_no_memory_of_the_tables_size():
    table = np.zeros((1_000_000, 16), np.float32)
    optimizer = built("Adam", [table])
    grad = RowGradient(np.arange(0, 1_000_000, 2000), np.ones((500, 16), np.float32))
    optimizer.apply([grad])
    tracemalloc.start()
    optimizer.apply([grad])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < table.nbytes / 100
    assert np.count_nonzero(table[:, 0]) == 500


# -- what is refused ---------------------------------------------------------------------------------------------------

VALUES = np.ones((2, 3), np.float32)
MADE_WRONG = {
    "a list": (lambda: RowGradient([1, 2], VALUES), TypeError, "indices must be an array, got list"),
    "float indices": (lambda: RowGradient(np.ones(2), VALUES), TypeError, "int32 or int64"),
    "short indices": (lambda: RowGradient(np.ones(2, np.int16), VALUES), TypeError, "int32 or int64"),
    "unsigned": (lambda: RowGradient(np.ones(2, np.uint64), VALUES), TypeError, "int32 or int64"),
    "foreign order": (lambda: RowGradient(np.ones(2, ">i4"), VALUES), TypeError, "native byte order"),
    "two axes": (lambda: RowGradient(np.ones((2, 1), np.int64), VALUES), ValueError, "one axis"),
    "counts": (lambda: RowGradient(np.ones(3, np.int64), VALUES), ValueError, "a row for each of the 3 indices"),
    "half": (lambda: RowGradient(np.ones(2, np.int64), VALUES.astype(np.float16)), TypeError, "float32 or float64"),
    "no values": (lambda: RowGradient(np.ones(2, np.int64), None), TypeError, "values must be an array"),
    "from a number": (lambda: RowGradient.from_dense(np.float32(3)), ValueError, "an axis of rows"),
    "to another shape": (lambda: RowGradient(np.array([1, 5]), VALUES).to_dense((5, 3)), ValueError, "out of range"),
}


@rows("name", MADE_WRONG)
def test_making_one_is_refused(name):
    make, kind, message = MADE_WRONG[name]
    with pytest.raises(kind, match=message):
        make()


def of(*indices, values=VALUES, dtype=np.int64):
    return RowGradient(np.array(indices, dtype), values)


REFUSED = {
    "negative": (lambda p: of(1, -1), {}, ValueError, "index -1 at place 1 is out of range: the parameter has 5 rows"),
    "too large": (lambda p: of(5, 1), {}, ValueError, "index 5 at place 0"),
    "far too large": (lambda p: of(2**62, 1), {}, ValueError, "out of range"),
    "far below": (lambda p: of(-(2**31), 1, dtype=np.int32), {}, ValueError, "out of range"),
    "shape": (lambda p: of(1, 2, values=np.ones((2, 4), np.float32)), {}, ValueError, "values of shape"),
    "axes": (lambda p: of(1, 2, values=np.ones((2, 3, 1), np.float32)), {}, ValueError, "values of shape"),
    "the parameter": (lambda p: of(0, 1, values=p[:2]), {}, ValueError, "overlaps a parameter"),
    "read-only": (lambda p: of(1, 2, values=np.broadcast_to(VALUES[:1], (2, 3))), {"zero_grads": True}, ValueError,
                  "read-only"),
}  # fmt: skip


def test_what_was_checked_stays_as_it_was():
    """Neither can the arrays be exchanged, nor is an index used that another thread wrote after the check."""
    grad = of(1, 2)
    with pytest.raises(AttributeError):
        grad.indices = np.array([7, 8])
    table = np.zeros((5, 3), np.float32)
    optimizer = built("SGD", [table], learning_rate=1.0)
    optimizer.apply([grad])  # writes the scalars, too
    table[:] = 0
    optimizer._gradients.read([grad], False)
    (plan,), rows = optimizer._plans, optimizer._gradients.rows
    plan.take_rows(rows)
    grad.indices[:] = 2**40
    assert plan.engine.rows.work.count == 2
    for each in plan.engine.calls(0):
        each()
    assert table[[1, 2]].all()
    assert not table[[0, 3, 4]].any()
    for refused in (lambda: plan.take_rows(rows), lambda: optimizer.apply([grad])):
        with pytest.raises(ValueError, match="index 1099511627776 at place 0 is out of range"):
            refused()
    assert not plan.engine.has_rows
    table[:] = 0
    optimizer.apply([np.ones_like(table)])  # which is not left out, as rows were
    assert np.all(table == -1)


@rows("name", REFUSED)
def test_a_gradient_that_does_not_fit_is_refused_with_nothing_written(name):
    make, options, kind, message = REFUSED[name]
    _assert_refused("Adam", {}, make, options, kind, message)


@rows("name", [*WHOLE, "accumulation"])
def test_what_needs_whole_gradients_refuses(name):
    if name == "accumulation":
        what = {"gradient_accumulation_steps": 2}
        return _assert_refused("SGD", what, lambda p: of(1, 2), {}, ValueError, "cannot be accumulated")
    _assert_refused(name, {}, lambda p: of(1, 2), {}, TypeError, "needs whole gradients: pass RowGradient.to_dense")


def _assert_refused(name, own, make, options, kind, message):
    rng = np.random.default_rng(7)
    params = [rng.normal(size=(5, 3)).astype(np.float32), rng.normal(size=(2, 2)).astype(np.float32)]
    optimizer = built(name, params, **own)
    whole = np.ones((2, 2), np.float32)
    optimizer.apply([np.ones((5, 3), np.float32), whole])
    before, state = [param.copy() for param in params], optimizer.state_dict()
    with pytest.raises(kind, match=message):
        optimizer.apply([make(params[0]), whole], **options)
    for param, old in zip(params, before, strict=True):
        np.testing.assert_array_equal(param, old)
    after = optimizer.state_dict()
    assert after.keys() == state.keys() and all(np.array_equal(after[key], state[key]) for key in state)
    optimizer.apply([np.ones((5, 3), np.float32), whole])


def test_rows_must_lie_in_one_piece_and_exist():
    optimizer = built("SGD", [np.asfortranarray(np.zeros((5, 3), np.float32))])
    with pytest.raises(ValueError, match="does not lie in one piece"):
        optimizer.apply([of(1, 2)])
    optimizer = built("SGD", [np.zeros((), np.float32)])
    with pytest.raises(ValueError, match="has no axis"):
        optimizer.apply([of(1, 2, values=np.ones(2, np.float32))])
