"""Where releases besides the three profiles differ from `keras_2_2`, and how to have them all the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

ALL = ("SGD", "RMSprop", "Adagrad", "Adadelta", "Adam", "Adamax", "Nadam")
WITH_EPSILON = ALL[1:]
DECAY_AND_EPSILON = ALL[1:-1]


class Difference(NamedTuple):
    """One way in which some releases are unlike 2.2.4."""

    releases: tuple[str, ...]
    classes: tuple[str, ...]
    what: str
    arguments: Mapping[str, Any] = {}  # to give to the class of keras_2_2; what is missing here cannot be had
    drops: tuple[str, ...] = ()  # arguments that a class of the release ignores
    unknown: Mapping[str, type[Exception]] = {}  # arguments that the release refuses, and how
    absent_from_config: tuple[str, ...] = ()


DIFFERENCES = (
    Difference(
        ("1.1.0", "1.2.2"), WITH_EPSILON, "epsilon is 1e-8; None is refused",
        arguments={"epsilon": 1e-8},
    ),
    Difference(
        ("1.1.0",), ALL, "an unknown argument is an Exception, not a TypeError",
    ),
    Difference(
        ("1.1.0",), ("Adam",), "there is no AMSGrad: Exception",
        unknown={"amsgrad": Exception}, absent_from_config=("amsgrad",),
    ),
    Difference(
        ("1.2.2",), ("Adam",), "there is no AMSGrad: TypeError",
        unknown={"amsgrad": TypeError}, absent_from_config=("amsgrad",),
    ),
    Difference(
        ("1.1.0",), DECAY_AND_EPSILON, "configs lack decay, so a round trip loses it",
        absent_from_config=("decay",),
    ),
    Difference(
        ("1.1.0",), ("Adamax",), "decay is accepted and ignored: leave it out",
        drops=("decay",),
    ),
    Difference(
        ("1.1.0", "1.2.2"), ("SGD", "RMSprop", "Adagrad", "Adadelta"),
        "without a decay the count of updates stays 0, also in weights lists",
    ),
    Difference(
        ("1.1.0", "1.2.2"), ALL,
        "set_weights cuts the longer of two lists off; here a wrong length is an error",
    ),
    Difference(
        ("1.1.0", "1.2.2"), ("Adam",), "weights lists end before the arrays of AMSGrad: `weights_of`, `load_weights`",
    ),
    Difference(
        ("1.1.0", "1.2.2"), ALL,
        "get wants a class's name or its lower-case alias, and takes {'name': …, **kwargs}: `keras_1_0.optimizers.get`",
    ),
)  # fmt: skip


def arguments_for(release: str, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with which the class ``name`` of `keras_2_2` behaves as ``release``'s does with ``given``.

    Raises
    ------
    ValueError
        If the table does not know the release.
    Exception, TypeError
        As the release does, if it lacks one of the arguments.
    """
    if not any(release in row.releases for row in DIFFERENCES):
        raise ValueError(f"the table has no release {release!r}")
    if name not in ALL:
        raise ValueError(f"Keras {release} has no {name}: the names are {', '.join(ALL)}")
    arguments = dict(given)
    for row in DIFFERENCES:
        if release in row.releases and name in row.classes:
            for key in row.unknown.keys() & given.keys():
                raise row.unknown[key](f"Unexpected keyword argument passed to optimizer: {key}")
            arguments = {**row.arguments, **{key: arguments[key] for key in arguments if key not in row.drops}}
    return arguments


def as_text() -> str:
    """The table, a line per difference."""
    lines = []
    for row in DIFFERENCES:
        passed = ", ".join(f"{key}={value!r}" for key, value in row.arguments.items())
        who = "all classes" if row.classes == ALL else ", ".join(row.classes)
        lines.append(f"- {', '.join(row.releases)}: {who}: {row.what}{f'; pass {passed}' if passed else ''}.")
    return "\n".join(lines)
