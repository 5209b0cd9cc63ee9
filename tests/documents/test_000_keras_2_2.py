"""Document 000: the optimizers of Keras 2.2."""

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

from fastopt.compat.keras_2_2 import optimizers

ERA = "keras_2_2"
NAMES = ("SGD", "RMSprop", "Adagrad", "Adadelta", "Adam", "Adamax", "Nadam")


# -- by instance, by name ----------------------------------------------------------------------------------------------


@pytest.mark.row(3, oracle="the defaults of the document's signatures")
@pytest.mark.parametrize("name", [*NAMES, "sgd", "rmsprop", "aDaM"])
def test_a_name_gives_the_class_with_its_defaults(name):
    found = optimizers.get(name)
    kind = {name.lower(): getattr(optimizers, name) for name in NAMES}[name.lower()]
    assert type(found) is kind
    assert found.get_config() == kind().get_config()


@pytest.mark.row(3, oracle="Keras 2.2.4's error")
def test_an_unknown_name():
    with pytest.raises(ValueError, match="unheard_of"):
        optimizers.get("unheard_of")


@pytest.mark.row(4, oracle="the document's import")
def test_the_import_path():
    assert {name: era_class(ERA, name) for name in NAMES} == {name: getattr(optimizers, name) for name in NAMES}


# -- clipping ----------------------------------------------------------------------------------------------------------

TWO = [np.array([3.0, 4.0]), np.array([12.0])]  # norms 5 and 12, together 13


def clipped_by(**clips):
    """The clipped gradients: SGD at rate 1 from zero shows them."""
    ((first, second),) = steps_of(optimizers.SGD(lr=1.0, **clips), [np.zeros(2), np.zeros(1)], [TWO])
    return [*-first, *-second]


@pytest.mark.row(6, oracle="5-12-13 by hand: one norm over all gradients")
def test_clipnorm_is_one_norm_over_all_gradients():
    assert clipped_by(clipnorm=6.5) == pytest.approx([1.5, 2.0, 6.0])
    assert clipped_by(clipnorm=1.0) == pytest.approx([3 / 13, 4 / 13, 12 / 13])
    assert clipped_by(clipnorm=13.5) == [3.0, 4.0, 12.0], "g * 1 / max(1, norm) leaves short gradients alone"


@pytest.mark.row(7, oracle="by hand")
def test_clipvalue_is_elementwise_and_comes_after_clipnorm():
    assert clipped_by(clipvalue=3.5) == [3.0, 3.5, 3.5]
    assert clipped_by(clipnorm=6.5, clipvalue=1.75) == pytest.approx([1.5, 1.75, 1.75])


@pytest.mark.parametrize("name, kwargs", [
    *(formula(name, 6, **with_epsilon(name), clipnorm=1.0) for name in NAMES),
    *(formula(name, 7, **with_epsilon(name), clipvalue=0.5) for name in NAMES),
])  # fmt: skip
def test_every_optimizer_clips(name, kwargs):
    assert_computes_what_the_formulas_say(ERA, name, kwargs)


# -- signatures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, documented",
    [
        pytest.param(name, documented, id=name, marks=pytest.mark.row(row, oracle="the document's signature"))
        for row, name, documented in [
            (8, "SGD", {"lr": 0.01, "momentum": 0.0, "decay": 0.0, "nesterov": False}),
            (13, "RMSprop", {"lr": 0.001, "rho": 0.9, "epsilon": None, "decay": 0.0}),
            (18, "Adagrad", {"lr": 0.01, "epsilon": None, "decay": 0.0}),
            (21, "Adadelta", {"lr": 1.0, "rho": 0.95, "epsilon": None, "decay": 0.0}),
            (
                24,
                "Adam",
                {"lr": 0.001, "beta_1": 0.9, "beta_2": 0.999, "epsilon": None, "decay": 0.0, "amsgrad": False},
            ),
            (29, "Adamax", {"lr": 0.002, "beta_1": 0.9, "beta_2": 0.999, "epsilon": None, "decay": 0.0}),
            (32, "Nadam", {"lr": 0.002, "beta_1": 0.9, "beta_2": 0.999, "epsilon": None, "schedule_decay": 0.004}),
        ]
    ],
)
def test_signature(name, documented):
    found = documented_signature(era_class(ERA, name))
    assert found == documented
    assert list(found) == list(documented)


# -- what the release computed, and what each argument does ------------------------------------------------------------


@pytest.mark.parametrize("case", recorded_cases(ERA, {
    ("SGD",): (8,),
    ("SGD", "lr", "momentum", "nesterov"): (9, 10, 12),
    ("SGD", "lr", "decay", "momentum", "nesterov"): (2, 11),
    ("SGD", "lr", "clipvalue"): (7,),
    ("RMSprop",): (13, 16),
    ("Adagrad",): (18, 20),
    ("Adadelta",): (21, 23),
    ("Adam",): (24, 26),
    ("Adam", "amsgrad"): (28,),
    ("Adamax",): (29, 30, 31),
    ("Nadam",): (32, 33, 34),
}))  # fmt: skip
def test_computes_what_the_release_computed(case):
    assert_same_steps(era_steps(ERA, case.optimizer, case.kwargs), case.steps, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name, kwargs", [
    formula("SGD", 9, lr=0.5),
    formula("SGD", 10, momentum=0.5),
    formula("SGD", 11, lr=0.1, decay=0.5),
    formula("SGD", 12, lr=0.1, momentum=0.5, nesterov=True),
    formula("RMSprop", 14, lr=0.1),
    formula("RMSprop", 15, rho=0.5),
    formula("RMSprop", 16, epsilon=0.1),
    formula("RMSprop", 17, decay=0.5),
    formula("Adagrad", 20, lr=0.5),
    formula("Adagrad", 20, epsilon=0.1),
    formula("Adagrad", 20, decay=0.5),
    formula("Adadelta", 22, 23, lr=0.5),
    formula("Adadelta", 23, rho=0.5),
    formula("Adadelta", 23, epsilon=1e-3),
    formula("Adadelta", 22, 23, decay=0.5),
    formula("Adam", 24, lr=0.1),
    formula("Adam", 25, beta_1=0.5),
    formula("Adam", 25, beta_2=0.5),
    formula("Adam", 26, epsilon=0.1),
    formula("Adam", 27, decay=0.5),
    formula("Adam", 28, beta_2=0.5, amsgrad=True),
    formula("Adamax", 31, lr=0.1),
    formula("Adamax", 31, beta_1=0.5),
    formula("Adamax", 31, beta_2=0.5),
    formula("Adamax", 31, epsilon=0.1),
    formula("Adamax", 31, decay=0.5),
    formula("Nadam", 34, lr=0.1),
    formula("Nadam", 34, beta_1=0.5),
    formula("Nadam", 34, beta_2=0.5),
    formula("Nadam", 34, epsilon=0.1),
    formula("Nadam", 33, schedule_decay=0.5),
])  # fmt: skip
def test_each_argument(name, kwargs):
    assert_computes_what_the_formulas_say(ERA, name, kwargs)


@pytest.mark.row(16, 20, 23, 26, 31, 34, oracle="K.epsilon() of Keras 2.2.4, 1e-7")
@pytest.mark.parametrize("name", NAMES[1:])
def test_no_epsilon_means_the_backends(name):
    assert era_class(ERA, name)(epsilon=None).get_config()["epsilon"] == 1e-7


# -- what the document says of them ------------------------------------------------------------------------------------


def moves(optimizer, gradients):
    """By how much one parameter moves at each step."""
    positions = [
        0.0,
        *(step[0][0] for step in steps_of(optimizer, [np.zeros(1)], [[np.array([g])] for g in gradients])),
    ]
    return np.abs(np.diff(positions))


@pytest.mark.row(11, oracle="lr / (1 + decay * iterations), by hand")
def test_decay_comes_after_every_update():
    assert moves(optimizers.SGD(lr=0.1, decay=0.5), [1.0] * 4) == pytest.approx([0.1, 0.1 / 1.5, 0.05, 0.04])


@pytest.mark.row(10, oracle="a ravine by hand: momentum sums along it and cancels across it")
def test_momentum_speeds_up_and_dampens():
    assert moves(optimizers.SGD(lr=1.0, momentum=0.5), [1.0] * 4) == pytest.approx([1.0, 1.5, 1.75, 1.875])
    assert moves(optimizers.SGD(lr=1.0, momentum=0.5), [1.0, -1.0] * 2) == pytest.approx([1.0, 0.5, 0.75, 0.625])


@pytest.mark.row(14, oracle="a step is proportional to the rate")
def test_the_rate_of_rmsprop_scales_its_steps():
    assert moves(optimizers.RMSprop(lr=0.1), [1.0] * 3) == pytest.approx(100 * moves(optimizers.RMSprop(), [1.0] * 3))


@pytest.mark.row(19, oracle="1/sqrt(number of updates) of equal gradients, by hand")
def test_adagrad_takes_smaller_steps_where_it_took_more():
    assert moves(optimizers.Adagrad(lr=1.0, epsilon=0.0), [3.0] * 4) == pytest.approx(1 / np.sqrt([1, 2, 3, 4]))
    often, seldom = np.array([3.0, 0.0]), np.array([3.0, 3.0])
    steps = steps_of(optimizers.Adagrad(lr=1.0, epsilon=1e-30), [np.zeros(2)], [[often], [often], [often], [seldom]])
    last = np.abs(steps[3][0] - steps[2][0])
    assert last == pytest.approx([0.5, 1.0]), "every parameter has its own rate"


@pytest.mark.row(22, oracle="a window forgets: rho**n of a great gradient is left after n updates, a sum keeps it")
def test_adadelta_keeps_learning():
    gradients = [1e3] + [1.0] * 400
    adadelta, adagrad = moves(optimizers.Adadelta(), gradients), moves(optimizers.Adagrad(), gradients)
    assert adadelta[-1] > 10 * adadelta[1]
    assert adagrad[-1] <= adagrad[1]


@pytest.mark.row(30, oracle="the paper's section 7: the norm is max(beta_2 * norm, size of the gradient), by hand")
def test_adamax_divides_by_the_greatest_gradient():
    steps = moves(optimizers.Adamax(lr=1.0, beta_1=0.0, beta_2=0.5, epsilon=0.0), [4.0, 1.0, -3.0, 1.0])
    assert steps == pytest.approx([1.0, 1 / 2, 1.0, 1 / 1.5])


@pytest.mark.row(33, oracle="Keras 2.2.4, whose Nadam takes no decay")
def test_nadam_has_no_decay():
    with pytest.raises(TypeError, match="decay"):
        optimizers.Nadam(decay=0.1)


@pytest.mark.row(35, oracle="the papers that documents 000 and 003 name")
@pytest.mark.parametrize("module, source", [
    ("rmsprop", "lecture_slides_lec6"),
    ("adagrad", "duchi11a"),
    ("adadelta", "1212.5701"),
    ("adam", "1412.6980"),
    ("adam", "ryQu7f-RZ"),
    ("adamax", "1412.6980"),
    ("nadam", "Dozat"),
])  # fmt: skip
def test_the_rules_name_their_papers(module, source):
    assert source in rule_docstrings(module)
