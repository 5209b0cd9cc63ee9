"""What users override of Keras's optimizers: the authority is Keras's own optimizer with the same override."""

import ast
import inspect
import textwrap
import types
from contextlib import nullcontext

import numpy as np
import pytest
from keras_cases import (
    COPY_KEYWORD,
    NAMES,
    ON_BOTH_BACKENDS,
    assert_same_state,
    assert_same_variables,
    falls_back,
    gradients,
    is_fused,
    parameters,
    train,
    values,
    variables_of,
)

pytestmark = [pytest.mark.filterwarnings(COPY_KEYWORD), *ON_BOTH_BACKENDS]

SHAPES = ((4, 3), (3, 4), (4, 3), (3,))
FEW, MORE = gradients(3, SHAPES), gradients(4, SHAPES, seed=3)


@pytest.fixture(scope="module")
def fused(fast):
    """The module of the mixin."""
    from fastopt.keras import fused

    return fused


# -- overrides, each of which changes what is computed -----------------------------------------------------------------
# Each is called as original(*arguments), override(original, self, *arguments).


def _scaled(original, self, *arguments):
    """For what returns numbers."""
    return original(*arguments) * 0.5


def _half_the_gradients(original, self, grads, *rest):
    return original([grad * 0.5 for grad in grads], *rest)


def _half_the_gradient(original, self, grad, *rest):
    return original(grad * 0.5, *rest)


def _half_the_value(original, self, variable, value):
    return original(variable, value * 0.5)


def _twice(original, self, *arguments):
    original(*arguments)
    original(*arguments)


def _never(original, self, *arguments):
    return None


def _one_more(original, self):
    return original() + 1


def _for_vectors_only(original, self, variable):
    return len(variable.shape) == 1


def _exchanged(original, self, variable):
    """The state of two variables of one shape, exchanged."""
    index = original(variable)
    return {0: 2, 2: 0}.get(index, index)


def _keyed_by_path(original, self, variable):
    """Excludes what is excluded by identity no more."""
    return variable.path


DECAY = {"weight_decay": 0.5}
AVERAGE = {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2}
ACCUMULATED = {"gradient_accumulation_steps": 2}
MATRIX = {"learning_rate": 0.1}

OVERRIDES = {
    "_get_variable_index": (_exchanged, "Adam", {}),
    "_var_key": (_keyed_by_path, "Adam", {}),
    "_clip_gradients": (_half_the_gradients, "SGD", {}),
    "_clip_by_norm": (_scaled, "SGD", {"clipnorm": 0.1}),
    "_apply_weight_decay": (_twice, "Adam", DECAY),
    "_use_weight_decay": (_for_vectors_only, "Adam", DECAY),
    "learning_rate": (_scaled, "Adam", DECAY),
    "iterations": (_one_more, "Adam", {}),
    "_backend_update_step": (_half_the_gradients, "SGD", {}),
    "update_step": (_half_the_gradient, "SGD", {}),
    "assign": (_half_the_value, "Lion", {}),
    "assign_add": (_half_the_value, "Adam", {}),
    "assign_sub": (_half_the_value, "Adam", {}),
    "_backend_increment_gradient_accumulators": (_half_the_gradients, "SGD", ACCUMULATED),
    "_backend_reset_gradient_accumulators": (_never, "SGD", ACCUMULATED),
    "_update_model_variables_moving_average": (_twice, "SGD", AVERAGE),
    "_overwrite_model_variables_with_average_value": (_never, "SGD", AVERAGE),
    "_rms": (_scaled, "Adafactor", {}),
    "_should_use_adamw": (_for_vectors_only, "Muon", {"exclude_layers": ["v0"], **MATRIX}),
    "_adamw_update_step": (_half_the_gradient, "Muon", {"adam_lr_ratio": 1.0, "epsilon": 1.0, **MATRIX}),
    "_muon_update_step": (_half_the_gradient, "Muon", {"ns_steps": 1, **MATRIX}),
    "zeropower_via_newtonschulz5": (_scaled, "Muon", MATRIX),
    "transpose_last_axis": (_scaled, "Muon", MATRIX),
    "lr_adjust": (_scaled, "Muon", MATRIX),
}
"""By name: an override, an optimizer that calls it, and options with which it matters."""

HONOURED = {
    "_get_current_learning_rate": (_scaled, "Adam", DECAY),
    "_overwrite_variable_with_gradient": (_for_vectors_only, "Adam", DECAY),
    "_filter_empty_gradients": (lambda original, self, grads, v: original([g * 2 for g in grads], v), "SGD", {}),
    "_backend_apply_gradients": (_half_the_gradients, "Adam", DECAY),
    "apply": (_half_the_gradients, "Adam", DECAY),
}
"""The same for what is called as ever, around the fused pass."""

PROPERTIES = ("learning_rate", "iterations")


def _member(name, override):
    """An override as what a class statement of a subclass would hold; ``kind`` is set to the class afterwards."""

    def replaced(self, *arguments):
        inherited = getattr(super(replaced.kind, self), name)
        original = (lambda: inherited) if name in PROPERTIES else inherited
        return override(original, self, *arguments)

    return replaced, property(replaced) if name in PROPERTIES else replaced


def _subclass(kind, name, override):
    function, member = _member(name, override)
    function.kind = type("Mine", (kind,), {name: member})
    return function.kind


def _with_mixin_before(kind, name, override):
    function, member = _member(name, override)
    function.kind = type("Mixin", (), {name: member})
    return type("Mine", (function.kind, kind), {})


def _with_mixin_after(kind, name, override):
    """The mixin is an optimizer itself, and so comes between fastopt's class and Keras's base class."""
    function, member = _member(name, override)
    function.kind = type("Mixin", (_optimizer(kind),), {name: member})
    return type("Mine", (kind, function.kind), {})


def _optimizer(kind):
    """``keras.optimizers.Optimizer``, in the order of a class's bases."""
    return next(base for base in kind.__mro__ if base.__name__ == "Optimizer")


def _overridden_in_instance(optimizer, name, override):
    original = getattr(optimizer, name)
    setattr(optimizer, name, types.MethodType(lambda self, *arguments: override(original, self, *arguments), optimizer))


def _trained(keras, kind, options, steps=FEW):
    variables = variables_of(keras, parameters(SHAPES))
    optimizer = kind(**({"learning_rate": 0.1} | options))
    optimizer.build(variables)
    train(optimizer, keras, variables, steps)
    return optimizer, variables


def _differ(some, others):
    return any(not np.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(values(some), values(others), strict=True))


def _state(optimizer, variables):
    return [*variables, *(variable for variable in optimizer.variables if variable.dtype.startswith("float"))]


def _are_the_same(ours, theirs):
    assert_same_variables(ours[1], theirs[1])
    assert_same_state(ours[0], theirs[0])


# -- the table and Keras's source --------------------------------------------------------------------------------------


def _called(kind, name):
    """The names that Keras's versions of a method read from ``self``, of those that the class has."""
    for base in kind.__mro__:
        member = vars(base).get(name)
        function = inspect.unwrap(getattr(member, "fget", member)) if member else None
        if inspect.isfunction(function) and function.__module__.startswith("keras."):
            for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
                    yield node.attr


def _reached(kind, name):
    """All that Keras calls in place of which the pass works: from one method on, through what it calls."""
    reached, left = set(), [name]
    while left:
        for found in _called(kind, left.pop()):
            if hasattr(kind, found) and found not in reached:
                reached.add(found)
                left.append(found)
    return reached


def test_the_table_is_what_keras_calls_between_clipping_and_averaging(fast, fused):
    """Against the source of the installed Keras: nothing is missing, and nothing is there that it does not call."""
    reached = set.union(*(_reached(getattr(fast, name), "_backend_apply_gradients") for name in NAMES))
    assert reached - {"_get_current_learning_rate"} == set(fused.REPLACED)
    assert set(OVERRIDES) == set(fused.REPLACED)
    assert len(fused.REPLACED) == len(set(fused.REPLACED))


# -- every override ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OVERRIDES)
def test_a_subclass_with_a_method_of_its_own(name, keras, fast):
    override, optimizer, options = OVERRIDES[name]
    kinds = [getattr(module, optimizer) for module in (fast, keras.optimizers)]
    mine, its = (_subclass(kind, name, override) for kind in kinds)
    theirs = _trained(keras, its, options)
    variables = variables_of(keras, parameters(SHAPES))
    ours = mine(**({"learning_rate": 0.1} | options))
    with falls_back(ours, f"{name} of its own"):
        train(ours, keras, variables, FEW)
    _are_the_same((ours, variables), theirs)
    if name != "_var_key":  # that only says how variables are found again
        assert _differ(_state(*theirs), _state(*_trained(keras, kinds[1], options)))


@pytest.mark.parametrize("name", HONOURED)
def test_a_method_that_is_called_around_the_fused_pass(name, keras, fast):
    override, optimizer, options = HONOURED[name]
    kinds = [getattr(module, optimizer) for module in (fast, keras.optimizers)]
    ours, theirs = (_trained(keras, _subclass(kind, name, override), options) for kind in kinds)
    assert is_fused(ours[0])
    _are_the_same(ours, theirs)
    assert _differ(theirs[1], _trained(keras, kinds[1], options)[1])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.full] * (optimizer in ("Adafactor", "Muon")))  # more kernels to compile
        for name, (_, optimizer, _) in OVERRIDES.items()
        if name not in (*PROPERTIES, "_should_use_adamw")
    ],
)
def test_an_instance_that_gets_a_method_between_steps(name, keras, fast):
    """Against a subclass of Keras's class: its own, on the torch backend, has another step, which does not ask."""
    override, optimizer, options = OVERRIDES[name]
    options = options | ({"ema_overwrite_frequency": 1} if options is AVERAGE else {})
    pairs = []
    for kind in (getattr(fast, optimizer), type("Mine", (getattr(keras.optimizers, optimizer),), {})):
        pairs.append(_trained(keras, kind, options, FEW[:2]))
    assert is_fused(pairs[0][0])
    for made, variables in pairs:
        _overridden_in_instance(made, name, override)
        if name == "_var_key":
            made._trainable_variables_indices = {variable.path: k for k, variable in enumerate(variables)}
        with falls_back(made, f"{name} of its own") if made is pairs[0][0] else nullcontext():
            train(made, keras, variables, MORE)
    _are_the_same(*pairs)
    ours, variables = pairs[0]
    delattr(ours, name)
    if name != "_var_key":
        train(ours, keras, variables, MORE[:1])
        assert is_fused(ours)


# -- every way of overriding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["_clip_gradients", "learning_rate", "iterations"])
@pytest.mark.parametrize("way", [_with_mixin_before, _with_mixin_after])
def test_mixins(way, name, keras, fast):
    override, _, options = OVERRIDES[name]
    mine, its = (way(module.Adam, name, override) for module in (fast, keras.optimizers))
    theirs = _trained(keras, its, options)
    variables = variables_of(keras, parameters(SHAPES))
    ours = mine(learning_rate=0.1, **options)
    with falls_back(ours, f"{name} of its own"):
        train(ours, keras, variables, FEW)
    _are_the_same((ours, variables), theirs)


def test_a_mixin_behind_ours_with_another_pass(keras, fast):
    mine, its = (
        _with_mixin_after(module.Adam, "_backend_apply_gradients", _half_the_gradients)
        for module in (fast, keras.optimizers)
    )
    variables, ours, theirs = variables_of(keras, parameters(SHAPES)), mine(0.1), _trained(keras, its, {})
    with falls_back(ours, "_backend_apply_gradients of its own"):
        train(ours, keras, variables, FEW)
    _are_the_same((ours, variables), theirs)


@pytest.mark.parametrize("where", ["the classes", "the base class"])
def test_a_class_that_is_patched_between_steps(where, keras, fast, monkeypatch):
    """As tests do, and libraries that centre gradients."""
    ours, theirs = (_trained(keras, module.SGD, {}) for module in (fast, keras.optimizers))
    assert is_fused(ours[0])
    kinds = (fast.SGD, keras.optimizers.SGD) if where == "the classes" else (_optimizer(fast.SGD),)
    with monkeypatch.context() as patch:
        for kind in kinds:
            original = kind._clip_gradients
            patch.setattr(kind, "_clip_gradients", lambda self, grads, do=original: do(self, [g * 0.5 for g in grads]))
        with falls_back(ours[0], "_clip_gradients of its own"):
            train(ours[0], keras, ours[1], MORE)
        train(theirs[0], keras, theirs[1], MORE)
    _are_the_same(ours, theirs)
    for optimizer, variables in (ours, theirs):
        train(optimizer, keras, variables, FEW)
    assert is_fused(ours[0])
    _are_the_same(ours, theirs)


def test_an_object_that_changes_its_class(keras, fast):
    ours, theirs = (_trained(keras, module.SGD, {}) for module in (fast, keras.optimizers))
    for (optimizer, variables), module in ((ours, fast), (theirs, keras.optimizers)):
        optimizer.__class__ = _subclass(module.SGD, "_clip_gradients", _half_the_gradients)
        with falls_back(optimizer, "_clip_gradients of its own") if module is fast else nullcontext():
            train(optimizer, keras, variables, MORE)
    _are_the_same(ours, theirs)


def test_a_setter_in_a_mixin_behind_ours(keras, fast):
    """The rate is set as the mixin says."""

    def with_doubled_rate(kind):
        base = _optimizer(kind)
        rate = property(
            lambda self: base.learning_rate.fget(self), lambda self, v: base.learning_rate.fset(self, 2 * v)
        )
        return type("Mine", (kind, type("Mixin", (base,), {"learning_rate": rate})), {})

    found = []
    for module in (fast, keras.optimizers):
        optimizer = with_doubled_rate(module.SGD)(0.1)
        optimizer.learning_rate = 0.25
        found.append(float(optimizer.get_config()["learning_rate"]))
    assert found == [0.5, 0.5]


# -- around ours -------------------------------------------------------------------------------------------------------


def test_a_subclass_under_loss_scale(keras, fast):
    """Steps that are skipped, too: Keras's LossScaleOptimizer decides before the inner optimizer is asked."""
    steps = [[grad * 4 for grad in grads] for grads in (*FEW, *MORE)]
    steps[2][1] = np.full(SHAPES[1], np.inf, np.float32)
    pairs = []
    for module in (fast, keras.optimizers):
        inner = _subclass(module.SGD, "_clip_gradients", _half_the_gradients)(0.1)
        optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0, dynamic_growth_steps=3)
        variables = variables_of(keras, parameters(SHAPES))
        with falls_back(inner, "_clip_gradients of its own") if module is fast else nullcontext():
            train(optimizer, keras, variables, steps)
        pairs.append((optimizer, variables))
    _are_the_same(*pairs)
    assert int(pairs[0][0].iterations) == len(steps) - 1


@pytest.mark.parametrize("name", ["scale_loss", "check_finite", "_stateful_handle_finite_grads"])
def test_a_loss_scale_with_methods_of_its_own_around_the_fused_pass(name, keras, fast):
    def of_one(original, self, *arguments):
        return original(*arguments) if name != "check_finite" else keras.ops.convert_to_tensor(True)

    pairs = []
    for module in (fast, keras.optimizers):
        optimizer = _subclass(keras.optimizers.LossScaleOptimizer, name, of_one)(module.SGD(0.1), initial_scale=4.0)
        variables = variables_of(keras, parameters(SHAPES))
        train(optimizer, keras, variables, MORE)
        pairs.append((optimizer, variables))
    assert is_fused(pairs[0][0].inner_optimizer)
    _are_the_same(*pairs)


def test_a_class_of_a_users_rule_says_that_it_has_no_other_update(keras, fast):
    import fastopt

    kind = fast.adapt(fastopt.Lion, "tests", __name__)
    optimizer = _subclass(kind, "_clip_gradients", _half_the_gradients)(0.1)
    variables = variables_of(keras, parameters(SHAPES))
    before = values(variables)
    with pytest.raises(RuntimeError, match=r"no update but the fused one.*_clip_gradients of its own"):
        train(optimizer, keras, variables, FEW)
    for variable, value in zip(variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


# -- what else is not Keras's ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["its class", "itself"])
def test_a_variable_that_is_assigned_to_in_a_way_of_its_own(of, keras, fast):
    """Against Keras's optimizer on the same kind of variables; one that calls `assign`, on both backends."""

    def halving(variable):
        original = variable._direct_assign
        variable._direct_assign = lambda value: original(value * 0.5)

    class Halved(keras.Variable):
        def _direct_assign(self, value):
            super()._direct_assign(value * 0.5)

    pairs = []
    for module in (fast, keras.optimizers):
        kind = Halved if of == "its class" else keras.Variable
        variables = [kind(np.array(array), name=f"v{k}") for k, array in enumerate(parameters(SHAPES))]
        if of == "itself":
            halving(variables[1])
        optimizer = module.Lamb(0.1)
        optimizer.build(variables)
        with falls_back(optimizer, "_direct_assign of its own") if module is fast else nullcontext():
            train(optimizer, keras, variables, FEW)
        pairs.append((optimizer, variables))
    _are_the_same(*pairs)
    assert _differ(pairs[1][1], _trained(keras, keras.optimizers.Lamb, {})[1])


@pytest.mark.parametrize("name", ["Adam", "Nadam"])
def test_state_that_is_exchanged_between_steps(name, keras, fast):
    pairs = [_trained(keras, getattr(module, name), {"use_ema": True}) for module in (fast, keras.optimizers)]
    for optimizer, variables in pairs:
        optimizer._momentums = optimizer.add_optimizer_variables(variables, "another_momentum", "ones")
        train(optimizer, keras, variables, MORE)
    assert is_fused(pairs[0][0])
    _are_the_same(*pairs)


def test_an_optimizer_that_is_built_again(keras, fast):
    """For more variables, as after layers are unfrozen: state begins anew, as in Keras."""
    pairs = []
    for module in (fast, keras.optimizers):
        variables = variables_of(keras, parameters(SHAPES))
        optimizer = module.Adam(0.1, use_ema=True, weight_decay=0.5)
        optimizer.build(variables[:2])
        train(optimizer, keras, variables, [grads[:2] for grads in FEW])
        optimizer.built = False
        optimizer.build(variables)
        train(optimizer, keras, variables, MORE)
        pairs.append((optimizer, variables))
    assert is_fused(pairs[0][0])
    _are_the_same(*pairs)
