"""Document 003: the optimizers of Keras 2.3."""

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

from fastopt.compat.keras_2_3 import optimizers

ERA = "keras_2_3"
NAMES = ("SGD", "RMSprop", "Adagrad", "Adadelta", "Adam", "Adamax", "Nadam")
TWO = [np.array([3.0, 4.0]), np.array([12.0])]  # norms 5 and 12, together 13


@pytest.mark.row(79, oracle="the defaults of the document's signatures")
@pytest.mark.parametrize("name", NAMES)
def test_a_name_gives_the_class_with_its_defaults(name):
    for spelling in (name, name.lower(), name.upper()):
        found = optimizers.get(spelling)
        assert type(found) is getattr(optimizers, name)
        assert found.get_config() == getattr(optimizers, name)().get_config()


@pytest.mark.parametrize(
    "clips, expected",
    [
        ({"clipnorm": 1.0}, [3 / 13, 4 / 13, 12 / 13]),
        ({"clipvalue": 0.5}, [0.5, 0.5, 0.5]),
        ({"clipnorm": 6.5, "clipvalue": 1.75}, [1.5, 1.75, 1.75]),
    ],
    ids=str,
)
@pytest.mark.row(80, oracle="5-12-13 by hand: one norm over all gradients, then elementwise")
def test_clipping(clips, expected):
    ((first, second),) = steps_of(optimizers.SGD(lr=1.0, **clips), [np.zeros(2), np.zeros(1)], [TWO])
    assert [*-first, *-second] == pytest.approx(expected)


@pytest.mark.parametrize("name, kwargs", [
    formula(name, 80, clipvalue=0.5, **with_epsilon(name)) for name in NAMES
])  # fmt: skip
def test_every_optimizer_clips(name, kwargs):
    assert_computes_what_the_formulas_say(ERA, name, kwargs)


@pytest.mark.parametrize(
    "name, documented",
    [
        pytest.param(name, documented, id=name, marks=pytest.mark.row(row, oracle="the document's signature"))
        for row, name, documented in [
            (81, "SGD", {"learning_rate": 0.01, "momentum": 0.0, "nesterov": False}),
            (83, "RMSprop", {"learning_rate": 0.001, "rho": 0.9}),
            (85, "Adagrad", {"learning_rate": 0.01}),
            (86, "Adadelta", {"learning_rate": 1.0, "rho": 0.95}),
            (87, "Adam", {"learning_rate": 0.001, "beta_1": 0.9, "beta_2": 0.999, "amsgrad": False}),
            (88, "Adamax", {"learning_rate": 0.002, "beta_1": 0.9, "beta_2": 0.999}),
            (89, "Nadam", {"learning_rate": 0.002, "beta_1": 0.9, "beta_2": 0.999}),
        ]
    ],
)
def test_signature(name, documented):
    found = documented_signature(era_class(ERA, name))
    assert found == documented
    assert list(found) == list(documented)


@pytest.mark.parametrize("case", recorded_cases(ERA, {
    ("SGD",): (81,),
    ("SGD", "lr", "momentum", "nesterov"): (81, 82, 90),
    ("SGD", "lr", "decay", "momentum", "nesterov"): (78, 81, 90),
    ("SGD", "lr", "clipvalue"): (80,),
    ("RMSprop",): (83,),
    ("Adagrad",): (85,),
    ("Adadelta",): (86,),
    ("Adam",): (87,),
    ("Adam", "amsgrad"): (87,),
    ("Adamax",): (88,),
    ("Nadam",): (89,),
}))  # fmt: skip
def test_computes_what_the_release_computed(case):
    assert_same_steps(era_steps(ERA, case.optimizer, case.kwargs), case.steps, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name, kwargs", [
    formula("SGD", 82, learning_rate=0.5),
    formula("SGD", 82, momentum=0.5),
    formula("SGD", 82, momentum=0.5, nesterov=True),
    formula("SGD", 81, 90, decay=0.5),
    formula("RMSprop", 83, learning_rate=0.1),
    formula("RMSprop", 84, rho=0.5),
    formula("RMSprop", 83, 90, epsilon=0.1),
    formula("RMSprop", 83, 90, decay=0.5),
    formula("Adagrad", 85, learning_rate=0.5),
    formula("Adagrad", 90, epsilon=0.1),
    formula("Adagrad", 90, decay=0.5),
    formula("Adadelta", 86, learning_rate=0.5),
    formula("Adadelta", 86, rho=0.5),
    formula("Adadelta", 86, 90, decay=0.5),
    formula("Adam", 87, learning_rate=0.1),
    formula("Adam", 87, beta_1=0.5),
    formula("Adam", 87, beta_2=0.5, amsgrad=True),
    formula("Adam", 90, epsilon=0.1, decay=0.5),
    formula("Adamax", 88, learning_rate=0.1, beta_1=0.5, beta_2=0.5),
    formula("Adamax", 90, epsilon=0.1, decay=0.5),
    formula("Nadam", 89, learning_rate=0.1, beta_1=0.5, beta_2=0.5),
    formula("Nadam", 89, 90, epsilon=0.1, schedule_decay=0.5),
])  # fmt: skip
def test_each_argument(name, kwargs):
    assert_computes_what_the_formulas_say(ERA, name, kwargs)


@pytest.mark.row(90, oracle="Keras 2.3.1: lr is an alias, and it wins")
@pytest.mark.parametrize("name", NAMES)
def test_lr_is_another_name_of_learning_rate(name):
    kind = era_class(ERA, name)
    assert kind(lr=0.5).get_config() == kind(learning_rate=0.5).get_config()
    assert kind(learning_rate=0.25, lr=0.5).learning_rate == 0.5


@pytest.mark.row(90, oracle="the defaults of Keras 2.3.1's configs")
def test_hidden_arguments_have_the_defaults_of_2_2():
    for name in NAMES:
        config = era_class(ERA, name)().get_config()
        assert config.get("epsilon", 1e-7) == 1e-7
        assert config.get("decay", 0.0) == 0.0
    assert era_class(ERA, "Nadam")().get_config()["schedule_decay"] == 0.004


@pytest.mark.row(90, oracle="Keras 2.3.1's error")
def test_other_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match="Unexpected keyword argument passed to optimizer: unheard_of"):
        optimizers.SGD(unheard_of=1)


@pytest.mark.row(85, oracle="1/sqrt(number of updates) of equal gradients, by hand")
def test_adagrad_learns_less_with_every_update():
    steps = steps_of(optimizers.Adagrad(learning_rate=1.0, epsilon=0.0), [np.zeros(1)], [[np.array([3.0])]] * 3)
    assert np.diff([0.0, *(step[0][0] for step in steps)]) == pytest.approx(-1 / np.sqrt([1, 2, 3]))


@pytest.mark.row(86, oracle="rho keeps that fraction of the squared gradients, by hand")
def test_rho_is_the_fraction_kept():
    optimizer = optimizers.Adadelta(rho=0.75)
    steps_of(optimizer, [np.zeros(1)], [[np.array([2.0])], [np.array([0.0])]])
    assert optimizer.slots["accumulated_grad"][0] == pytest.approx([0.75 * 0.25 * 4.0])


@pytest.mark.parametrize("module, source", [
    pytest.param(module, source, marks=pytest.mark.row(row, oracle="the papers that the document names"))
    for row, module, source in [
        (84, "rmsprop", "https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf"),
        (85, "adagrad", "https://jmlr.org/papers/v12/duchi11a.html"),
        (86, "adadelta", "https://arxiv.org/abs/1212.5701"),
        (87, "adam", "https://arxiv.org/abs/1412.6980"),
        (87, "adam", "https://openreview.net/forum?id=ryQu7f-RZ"),
        (88, "adamax", "section 7"),
        (89, "nadam", "Dozat"),
        (89, "sgd", "Sutskever"),
    ]
])  # fmt: skip
def test_the_rules_name_their_papers(module, source):
    assert source in rule_docstrings(module)
