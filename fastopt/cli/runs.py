"""From what the user typed to optimizers and schedules: names, flags, values, lists of runs to compare."""

from __future__ import annotations

import ast
import contextlib
import difflib
import inspect
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numba

from fastopt import LossScaleOptimizer, Optimizer, schedules, set_num_threads
from fastopt.registry import find, names

SUITABLE: dict[str, dict[str, Any]] = {
    "SGD": {"learning_rate": 0.1},
    "Adagrad": {"learning_rate": 0.1},
    "Adadelta": {"learning_rate": 1.0},
    "Lion": {"learning_rate": 1e-4},
    # At its default of 0.1 the first step takes the weights to almost nothing, and a network does not come back.
    "Ftrl": {"learning_rate": 0.1, "initial_accumulator_value": 1e-6},
    "Adafactor": {"learning_rate": 0.01},
}
"""What `fastopt train` takes for hyper-parameters whose defaults do not suit its model, unless the user sets them."""


ABBREVIATIONS = {"lr": "learning_rate", "eps": "epsilon", "wd": "weight_decay", "betas": "beta_1"}
"""Of hyper-parameters, which people type out of habit."""


class UsageError(ValueError):
    """The user typed something that cannot be done; the message says what could."""


class Run(NamedTuple):
    """An optimizer to be made: its class and its arguments."""

    kind: type[Optimizer]
    arguments: dict[str, Any]

    @property
    def label(self) -> str:
        """Name and arguments, for tables and legends."""
        return " ".join([self.kind.__name__, *(f"{key}={_shown(value)}" for key, value in self.arguments.items())])

    def make(self) -> Optimizer:
        """The optimizer.

        Raises
        ------
        UsageError
            If the optimizer refuses an argument; the message is its own.
        """
        try:
            return self.kind(**self.arguments)
        except (ArithmeticError, TypeError, ValueError) as error:
            raise UsageError(str(error)) from error


def offered() -> list[str]:
    """The names of the optimizers that can train by themselves."""
    return [name for name in names() if find(name) is not LossScaleOptimizer]


def kind_of(name: str) -> type[Optimizer]:
    """The class of an optimizer's name, in any case.

    Raises
    ------
    UsageError
        If there is none, or none that can train by itself.
    """
    try:
        kind = find(name)
    except ValueError:
        listed = ", ".join(offered())
        raise UsageError(f"unknown optimizer {name!r}{_suggestion(name, offered())} The names are {listed}") from None
    if kind is LossScaleOptimizer:
        raise UsageError(
            "LossScaleOptimizer is not offered here: it wraps another optimizer, for gradients in half precision. "
            "Every optimizer takes --loss-scale-factor"
        )
    return kind


def plan_run(name: str, typed: Mapping[str, str | None]) -> Run:
    """The run of an optimizer's name and of what was typed for its hyper-parameters.

    Raises
    ------
    UsageError
        If there is no such optimizer or hyper-parameter, or a value cannot be read.
    """
    kind = kind_of(name)
    default = inspect.signature(kind).parameters["learning_rate"].default
    suitable = {"learning_rate": default} | SUITABLE.get(kind.__name__, {})
    return Run(kind, suitable | dict(_argument(kind, flag, text) for flag, text in typed.items()))


def plan_comparison(text: str, shared: Mapping[str, str | None]) -> list[Run]:
    """The runs of a list such as ``sgd:learning_rate=.1:momentum=.9,adam``.

    Parameters
    ----------
    text : str
        Runs between commas, within a run hyper-parameters between colons; neither separates inside brackets.
    shared : mapping
        Hyper-parameters of all runs, unless the run has its own.
    """
    check_brackets(text)
    runs = []
    for specification in filter(None, _split(text, ",")):
        name, own = _name_and_settings(specification)
        runs.append(plan_run(name, {**shared, **own}))
    if not runs:
        raise UsageError("there is no run to compare: write them as in sgd:learning_rate=.1:momentum=.9,adam")
    return runs


def plan_schedules(
    texts: Sequence[str], shared: Mapping[str, str | None], examples: Mapping[str, Any]
) -> list[schedules.LearningRateSchedule]:
    """The schedules of calls, as `read_schedule` reads them, and of names, as in ``stepdecay:variant=code``.

    Parameters
    ----------
    shared : mapping
        Arguments of all schedules given by name, unless the schedule has its own.
    examples : mapping
        What required arguments are, where neither is given.

    Raises
    ------
    UsageError
        If there is no such schedule or argument, a value is refused, or ``shared`` has nobody to go to.
    """
    named = [text for text in texts if not _is_call(text)]
    if shared and not named:
        raise UsageError(f"{_flag(next(iter(shared)))} goes to schedules given by name, and there is none")
    return [_named_schedule(text, shared, examples) if text in named else read_schedule(text) for text in texts]


def _named_schedule(
    text: str, shared: Mapping[str, str | None], examples: Mapping[str, Any]
) -> schedules.LearningRateSchedule:
    check_brackets(text)
    name, own = _name_and_settings(text)
    try:
        kind = schedules.get(name)
    except ValueError as error:
        raise UsageError(str(error)) from None
    arguments = dict(_argument(kind, flag, value) for flag, value in {**shared, **own}.items())
    required = [key for key, value in inspect.signature(kind).parameters.items() if value.default is value.empty]
    try:
        return kind(**{**{key: examples[key] for key in required}, **arguments})
    except (ArithmeticError, TypeError, ValueError) as error:
        raise UsageError(f"{kind.__name__}: {error}") from error


def _name_and_settings(text: str) -> tuple[str, dict[str, str | None]]:
    """Take ``name:key=value:key`` apart."""
    name, *settings = _split(text, ":")
    pairs = (part.partition("=") for part in settings)
    return name, {_key(flag): value if equals else None for flag, equals, value in pairs}


def read_flags(tokens: Sequence[str]) -> dict[str, str | None]:
    """Hyper-parameters from ``--name value``, ``--name=value``, and ``--name`` alone, which gives None."""
    found: dict[str, str | None] = {}
    waiting = ""
    for token in tokens:
        if token.startswith("--"):
            flag, equals, text = token.partition("=")
            waiting = "" if equals else _key(flag)
            found[_key(flag)] = text if equals else None
        elif waiting:
            found[waiting], waiting = token, ""
        else:
            raise UsageError(f"{token!r} belongs to no flag: hyper-parameters are given as --momentum 0.9")
    return found


def read_value(text: str) -> Any:
    """A boolean, None, number, list or schedule, as Python or JSON write it; anything else is a string.

    Raises
    ------
    UsageError
        If brackets do not match, or a schedule refuses its arguments.
    """
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _is_call(text):
        return read_schedule(text)
    for read in (json.loads, ast.literal_eval, float):
        with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return read(text)
    check_brackets(text)
    return text


def check_brackets(text: str) -> None:
    """Refuse what would be a call or list if its brackets matched; those in quotes do not count.

    Raises
    ------
    UsageError
        If a bracket is not closed, or closes nothing.
    """
    waiting: list[str] = []
    for bracket in re.findall(r"[()\[\]{}]", re.sub(r"'[^']*'|\"[^\"]*\"", "", text)):
        if bracket in BRACKETS:
            waiting.append(bracket)
        elif not waiting or BRACKETS[waiting.pop()] != bracket:
            raise UsageError(f"{text}: {bracket!r} closes nothing")
    if waiting:
        raise UsageError(f"{text}: {waiting[-1]!r} was never closed")


BRACKETS = {"(": ")", "[": "]", "{": "}"}


def _is_call(text: str) -> bool:
    return re.match(r"\s*[A-Za-z_]\w*\s*\(", text) is not None


_WORDS = {"true": True, "false": False, "none": None, "null": None}


def read_schedule(text: str) -> schedules.LearningRateSchedule:
    """The schedule of a call such as ``CosineDecay(0.01, decay_steps=500)``, whose arguments are literals or schedules.

    Raises
    ------
    UsageError
        If there is no such schedule, or it refuses its arguments.
    """
    check_brackets(text)
    try:
        schedule = _evaluate(ast.parse(text.strip(), mode="eval").body)
    except SyntaxError as error:
        raise UsageError(f"{text}: {error.msg}") from error
    except (ArithmeticError, TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{text}: {error}") from error
    if not isinstance(schedule, schedules.LearningRateSchedule):
        raise UsageError(f"{text}: expected a schedule, as CosineDecay(0.01, decay_steps=500)")
    return schedule


def _evaluate(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        named = {keyword.arg or "**": _evaluate(keyword.value) for keyword in node.keywords}
        return schedules.get(node.func.id)(*map(_evaluate, node.args), **named)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_evaluate(item) for item in node.elts]
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"{ast.unparse(node)} is neither a number, a list nor a schedule") from None


def _argument(kind: type[Any], flag: str, text: str | None) -> tuple[str, Any]:
    parameters = inspect.signature(kind).parameters
    switched_off = flag.removeprefix("no_") if text is None else flag
    key = flag if flag in parameters else switched_off
    if key not in parameters:
        flags = [_flag(name) for name in parameters]
        meant = _suggestion(_flag(_full_name(flag, parameters)), flags)
        raise UsageError(f"{kind.__name__} has no {_flag(flag)}{meant} It has {', '.join(flags)}")
    is_switch = isinstance(parameters[key].default, bool)
    if text is None and not is_switch:
        raise UsageError(f"{_flag(key)} needs a value")
    value = key == flag if text is None else read_value(text)
    if is_switch and value not in (True, False):
        raise UsageError(f"{_flag(key)} is true or false, got {text!r}")
    if key.endswith("learning_rate"):
        _check_rate(_flag(key), text, value)
    return key, bool(value) if is_switch else value


def _check_rate(flag: str, text: str | None, value: object) -> None:
    """Refuse words, and rates below zero, with which every step would climb."""
    if isinstance(value, str):
        raise UsageError(f"{flag} takes a number or a schedule, as 0.01 or CosineDecay(0.01, 500), got {text!r}")
    if isinstance(value, (int, float)) and value < 0:
        raise UsageError(f"{flag} must not be negative, as every step would climb then, got {text}")


def _full_name(flag: str, known: Iterable[str]) -> str:
    """Return the name that an abbreviation of other libraries stands for."""
    meant = ABBREVIATIONS.get(flag, flag)
    return next((name for name in known if name.endswith(meant)), flag)


def _suggestion(typed: str, known: Iterable[str]) -> str:
    by_lower_case = {name.lower(): name for name in known}
    close = difflib.get_close_matches(typed.lower(), by_lower_case, n=1)
    return f", did you mean {by_lower_case[close[0]]}?" if close else "."


def cap_threads(threads: int | None) -> None:
    """Limit the threads of steps; None leaves it.

    Raises
    ------
    UsageError
        If there are not so many.
    """
    if threads is None:
        return
    most = numba.config.NUMBA_NUM_THREADS
    if threads > most:
        raise UsageError(f"--threads {threads}: there are {most} here, or as many as NUMBA_NUM_THREADS says")
    set_num_threads(threads)


def _key(flag: str) -> str:
    return flag.strip().lstrip("-").replace("-", "_")


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _split(text: str, separator: str) -> list[str]:
    """The parts of a text between separators that are not inside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _shown(value: Any) -> str:
    if isinstance(value, schedules.LearningRateSchedule):
        return shown_schedule(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def shown_schedule(schedule: schedules.LearningRateSchedule) -> str:
    """The call that makes the schedule, without what is default."""
    arguments = []
    for key, parameter in inspect.signature(type(schedule)).parameters.items():
        value = getattr(schedule, key)
        if parameter.default is parameter.empty:
            arguments.append(_shown(value))
        elif value != parameter.default:
            arguments.append(f"{key}={_shown(value)}")
    return f"{type(schedule).__name__}({', '.join(arguments)})"
