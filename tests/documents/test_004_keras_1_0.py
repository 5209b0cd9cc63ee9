"""Document 004: objectives, optimizers and activations of Keras 1.0."""

import numpy as np
import pytest
from documents.runs import (
    assert_computes_what_the_formulas_say,
    assert_same_steps,
    documented_signature,
    era_class,
    era_steps,
    formula,
    recorded_cases,
    rule_docstrings,
    steps_of,
    with_epsilon,
)

import fastopt
from fastopt.compat.keras_1_0 import activations, objectives, optimizers

ERA = "keras_1_0"
NAMES = ("SGD", "RMSprop", "Adagrad", "Adadelta", "Adam")
E, LN2 = np.e, np.log(2.0)
GREAT, TINY = -np.log(1e-7), np.log1p(1e-7)  # what the backend's epsilon makes of 0 and of 1


# -- objectives --------------------------------------------------------------------------------------------------------

# For each objective: true labels, predictions, and one value per data point, worked out by hand.
VALUES = {
    "mean_squared_error": (95, [[1, 2], [3, 4]], [[1.5, 2], [2, 6]], [0.125, 2.5]),
    "mean_absolute_error": (96, [[1, 2], [3, 4]], [[1.5, 2], [2, 6]], [0.25, 1.5]),
    "mean_absolute_percentage_error": (97, [[1, 2], [-4, 0]], [[1.5, 2], [-3, 1]], [25.0, 100 * (0.25 + 1e7) / 2]),
    "mean_squared_logarithmic_error": (98, [[0, E - 1]], [[E - 1, -5]], [(1 - TINY) ** 2]),
    "squared_hinge": (99, [[1, -1], [0, 1]], [[0.5, 0.5], [0.5, 0.5]], [1.25, 0.625]),
    "hinge": (100, [[1, -1], [0, 1]], [[0.5, 0.5], [0.5, 0.5]], [1.0, 0.75]),
    "binary_crossentropy": (101, [[1, 0], [1, 0]], [[0.5, 0.75], [0, 0]], [1.5 * LN2, (GREAT + TINY) / 2]),
    "categorical_crossentropy": (102, [[0, 1, 0], [1, 0, 0]], [[1, 2, 1], [0, 1, 1]], [LN2, GREAT]),
    "sparse_categorical_crossentropy": (103, [[1], [0]], [[1, 2, 1], [0.125, 0.5, 0.375]], [LN2, 3 * LN2]),
    "kullback_leibler_divergence": (
        104, [[0.5, 0.5], [1, 0]], [[0.25, 0.75], [0.5, 0.5]], [np.log(4 / 3) / 2, LN2 + 1e-7 * (LN2 - GREAT)]
    ),
    "poisson": (105, [[2.0, 0.0], [1.0, 1.0]], [[1.0, 4.0], [0.0, 0.0]], [(5 - 2 * TINY) / 2, GREAT]),
    "cosine_proximity": (106, [[3, 4], [1, 1]], [[4, 3], [-2, -2]], [-0.96 / 2, 0.5]),
}  # fmt: skip
ALIASES = {
    "mse": "mean_squared_error",
    "mae": "mean_absolute_error",
    "mape": "mean_absolute_percentage_error",
    "msle": "mean_squared_logarithmic_error",
}
BY_HAND = "numbers worked out by hand"


def of_row(name, *, oracle=BY_HAND):
    return pytest.param(name, marks=pytest.mark.row(VALUES[name][0], oracle=oracle))


def arrays(name):
    _, y_true, y_pred, expected = VALUES[name]
    return np.array(y_true, np.float64), np.array(y_pred, np.float64), expected


@pytest.mark.parametrize("name", [of_row(name) for name in VALUES])
def test_objective(name):
    y_true, y_pred, expected = arrays(name)
    values = getattr(objectives, name)(y_true, y_pred)
    assert values.shape == (len(y_true),), "one value per data point"
    np.testing.assert_allclose(values, expected, rtol=1e-12)


@pytest.mark.row(92, 93, oracle="the document's list of names; a function is passed on as it is")
def test_objectives_by_name_and_by_function():
    for name in VALUES:
        assert objectives.get(name) is getattr(objectives, name)
    assert objectives.get(mine) is mine
    with pytest.raises(Exception, match="unheard_of"):
        objectives.get("unheard_of")


def mine(y_true, y_pred):
    return np.mean((y_true - y_pred) ** 4, axis=-1)


@pytest.mark.parametrize("alias, name", [
    pytest.param(alias, name, marks=pytest.mark.row(VALUES[name][0], oracle="the document's list of names"))
    for alias, name in ALIASES.items()
])  # fmt: skip
def test_short_names(alias, name):
    assert objectives.get(alias) is getattr(objectives, name)
    assert getattr(objectives, alias) is getattr(objectives, name)


@pytest.mark.row(94, oracle="the mean over data points, in NumPy; its slope by central differences")
@pytest.mark.parametrize(
    "name", [name for name in VALUES if name not in ("sparse_categorical_crossentropy", "cosine_proximity")]
)
def test_the_optimisation_target_is_the_mean_over_data_points(name):
    y_true, y_pred = np.array([[0.7, 0.3], [0.2, 0.8]]), np.array([[0.6, 0.4], [0.35, 0.65]])
    target, slope = fastopt.losses.value_and_grad(name)(y_true, y_pred)
    assert target == pytest.approx(np.mean(getattr(objectives, name)(y_true, y_pred)))
    for index in np.ndindex(y_pred.shape):
        step = np.zeros_like(y_pred)
        step[index] = 1e-6
        ends = [np.mean(getattr(objectives, name)(y_true, y_pred + sign * step)) for sign in (1, -1)]
        assert slope[index] == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-7)


@pytest.mark.row(102, 103, oracle="categorical_crossentropy of the same labels as a binary matrix")
def test_sparse_labels_need_one_dimension_more():
    y_pred = np.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])
    sparse = objectives.sparse_categorical_crossentropy(np.expand_dims([1, 2], -1), y_pred)
    np.testing.assert_allclose(sparse, objectives.categorical_crossentropy(np.eye(3)[[1, 2]], y_pred), rtol=1e-12)
    np.testing.assert_allclose(sparse, -np.log([0.5, 0.3]), rtol=1e-12)


@pytest.mark.row(103, oracle="the document's spelling")
def test_the_documents_typo_is_no_name():
    with pytest.raises(Exception, match="sparse_categorical_crossentrop"):
        objectives.get("sparse_categorical_crossentrop")


# -- optimizers --------------------------------------------------------------------------------------------------------


@pytest.mark.row(107, oracle="the defaults of the document's signatures")
@pytest.mark.parametrize("name", NAMES)
def test_a_name_gives_the_class_with_its_defaults(name):
    for spelling in (name, name.lower()):
        assert type(optimizers.get(spelling)) is getattr(optimizers, name)
        assert optimizers.get(spelling).get_config() == getattr(optimizers, name)().get_config()
    given = optimizers.SGD(lr=0.5)
    assert optimizers.get(given) is given


@pytest.mark.parametrize("name, documented", [
    pytest.param(name, documented, id=name, marks=pytest.mark.row(row, oracle="the document's signature"))
    for row, name, documented in [
        (110, "SGD", {"lr": 0.01, "momentum": 0.0, "decay": 0.0, "nesterov": False}),
        (111, "RMSprop", {"lr": 0.001, "rho": 0.9, "epsilon": 1e-06}),
        (112, "Adagrad", {"lr": 0.01, "epsilon": 1e-06}),
        (113, "Adadelta", {"lr": 1.0, "rho": 0.95, "epsilon": 1e-06}),
        (114, "Adam", {"lr": 0.001, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-08}),
    ]
])  # fmt: skip
def test_signature(name, documented):
    found = documented_signature(era_class(ERA, name))
    assert found == documented
    assert list(found) == list(documented)


TWO = [np.array([3.0, 4.0]), np.array([12.0])]  # norms 5 and 12, together 13


@pytest.mark.parametrize("clips, expected", [
    pytest.param({"clipnorm": 1.0}, [3 / 13, 4 / 13, 12 / 13], marks=pytest.mark.row(108, oracle="5-12-13 by hand")),
    pytest.param({"clipvalue": 0.5}, [0.5, 0.5, 0.5], marks=pytest.mark.row(109, oracle="by hand")),
])  # fmt: skip
def test_clipping(clips, expected):
    ((first, second),) = steps_of(optimizers.SGD(lr=1.0, **clips), [np.zeros(2), np.zeros(1)], [TWO])
    assert [*-first, *-second] == pytest.approx(expected)


@pytest.mark.parametrize("case", recorded_cases(ERA, {
    ("SGD",): (110,),
    ("SGD", "lr", "momentum", "nesterov"): (110,),
    ("SGD", "lr", "decay", "momentum", "nesterov"): (110,),
    ("SGD", "lr", "clipvalue"): (109,),
    ("RMSprop",): (111,),
    ("Adagrad",): (112,),
    ("Adadelta",): (113,),
    ("Adam",): (114,),
}))  # fmt: skip
def test_computes_what_the_release_computed(case):
    assert_same_steps(era_steps(ERA, case.optimizer, case.kwargs), case.steps, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name, kwargs", [
    *(formula(name, 108, clipnorm=1.0, **with_epsilon(name)) for name in NAMES),
    *(formula(name, 109, clipvalue=0.5, **with_epsilon(name)) for name in NAMES),
    formula("SGD", 110, lr=0.1, decay=0.5),
    formula("SGD", 110, momentum=0.5, nesterov=True),
    formula("RMSprop", 111, lr=0.1),
    formula("RMSprop", 111, rho=0.5),
    formula("RMSprop", 111, epsilon=0.1),
    formula("Adagrad", 112, lr=0.1),
    formula("Adagrad", 112, epsilon=0.1),
    formula("Adadelta", 113, lr=0.5),
    formula("Adadelta", 113, rho=0.5),
    formula("Adadelta", 113, epsilon=1e-3),
    formula("Adam", 114, lr=0.1),
    formula("Adam", 114, 115, beta_1=0.5, beta_2=0.5),
    formula("Adam", 114, epsilon=0.1),
])  # fmt: skip
def test_each_argument(name, kwargs):
    assert_computes_what_the_formulas_say(ERA, name, kwargs)


@pytest.mark.row(111, 112, oracle="g / sqrt(a + epsilon), by hand")
@pytest.mark.parametrize(
    "kwargs", [{"name": "RMSprop", "rho": 0.0}, {"name": "Adagrad"}], ids=lambda kwargs: kwargs["name"]
)
def test_epsilon_is_inside_the_root(kwargs):
    optimizer = optimizers.get(kwargs | {"lr": 1.0, "epsilon": 7.0})
    assert steps_of(optimizer, [np.zeros(1)], [[np.array([3.0])]]) == [[-3 / 4]]  # outside: 3 / (3 + 7)


@pytest.mark.row(115, oracle="a zero gradient moves nothing, where 0/0 would give NaN")
@pytest.mark.parametrize("name", NAMES)
def test_epsilon_prevents_division_by_zero(name):
    assert steps_of(era_class(ERA, name)(), [np.ones(2)], [[np.zeros(2)]] * 2)[-1][0].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("module, source", [
    pytest.param(module, source, marks=pytest.mark.row(row, oracle="the papers that the document names"))
    for row, module, source in [(113, "adadelta", "1212.5701"), (114, "adam", "1412.6980")]
])  # fmt: skip
def test_the_rules_name_their_papers(module, source):
    assert source in rule_docstrings(module)


# -- activations -------------------------------------------------------------------------------------------------------

ACTIVATIONS = {
    "softplus": (121, [0.0, np.log(E - 1), -800.0], [LN2, 1.0, 0.0]),
    "softsign": (122, [3.0, -1.0, 0.0], [0.75, -0.5, 0.0]),
    "relu": (123, [3.0, -1.0, 0.0], [3.0, 0.0, 0.0]),
    "tanh": (124, [np.arctanh(0.5), -np.arctanh(0.25), 0.0], [0.5, -0.25, 0.0]),
    "sigmoid": (125, [np.log(3.0), -np.log(3.0), 0.0], [0.75, 0.25, 0.5]),
    "hard_sigmoid": (126, [1.0, -1.0, 2.5, -2.5, 2.75], [0.7, 0.3, 1.0, 0.0, 1.0]),
    "linear": (127, [3.0, -1.0, 0.0], [3.0, -1.0, 0.0]),
}


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.row(row, oracle=BY_HAND)) for name, (row, *_) in ACTIVATIONS.items()
])  # fmt: skip
def test_activation(name):
    _, x, expected = ACTIVATIONS[name]
    np.testing.assert_allclose(getattr(activations, name)(np.array(x)), expected, rtol=1e-12, atol=1e-300)
    as_matrix = getattr(activations, name)(np.array([x, x]))
    np.testing.assert_allclose(as_matrix, [expected, expected], rtol=1e-12, atol=1e-300)


@pytest.mark.row(120, oracle="1 : 2 : 5 by hand")
def test_softmax_is_over_the_last_axis():
    x = np.log([1.0, 2.0, 5.0])
    for shape in ((1, 3), (4, 3), (2, 4, 3)):
        result = activations.softmax(np.broadcast_to(x, shape).copy())
        np.testing.assert_allclose(result, np.broadcast_to([0.125, 0.25, 0.625], shape), rtol=1e-12)


@pytest.mark.row(120, oracle="the document: two or three dimensions only")
@pytest.mark.parametrize("shape", [(3,), (2, 2, 2, 3)])
def test_softmax_refuses_other_shapes(shape):
    with pytest.raises(Exception, match="softmax"):
        activations.softmax(np.zeros(shape))


@pytest.mark.row(117, oracle="the document's list of names; a function is passed on as it is")
def test_activations_by_name_and_by_function():
    for name in ("softmax", *ACTIVATIONS):
        assert activations.get(name) is getattr(activations, name)
    assert activations.get(np.tanh) is np.tanh
