"""Many cheap cases in one test: what `parametrize` does, without a test for each, and with every failure reported."""

import functools
import inspect

import pytest

_Param = type(pytest.param())


class RowsFailed(ExceptionGroup):
    """Some rows of a test failed; ``labels`` names them, in the order of the errors."""

    def __new__(cls, labels, errors):
        group = super().__new__(cls, f"these rows failed: {'; '.join(labels)}", errors)
        group.labels = labels
        return group


def rows(names, values, ids=None):
    """Decorator: call the test with each of the values in turn. Arguments as of `pytest.mark.parametrize`.

    All rows run, whatever becomes of others. Rows share the test's fixtures, and none has marks of its own.
    """
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    values = list(values)
    labels = list(ids or [None] * len(values)) if not callable(ids) else map(ids, values)
    cases = [_Row(names, value, label) for value, label in zip(values, labels, strict=True)]
    assert cases, "a test without rows proves nothing"
    assert len({case.label for case in cases}) == len(cases), "two rows have the same name"

    def fold(test):
        signature = inspect.signature(test)
        missing = set(names) - set(signature.parameters)
        assert not missing, f"{test.__name__} does not take {missing}"

        @functools.wraps(test)
        def in_turn(**fixtures):
            _run([functools.partial(test, **fixtures, **row.arguments) for row in cases], cases)

        left = [parameter for name, parameter in signature.parameters.items() if name not in names]
        in_turn.__signature__ = signature.replace(parameters=left)
        return in_turn

    return fold


class _Row:
    def __init__(self, names, value, label):
        given = value if isinstance(value, _Param) else pytest.param(*(value if len(names) > 1 else (value,)))
        assert not given.marks, "rows have no marks of their own"
        self.arguments = dict(zip(names, given.values, strict=True))
        self.label = label or given.id or ", ".join(f"{name}={value!r}"[:200] for name, value in self.arguments.items())


def _run(calls, cases):
    failed, skipped = {}, []
    for call, row in zip(calls, cases, strict=True):
        try:
            call()
        except pytest.skip.Exception as reason:
            skipped.append(reason)
        except RowsFailed as inner:
            failed |= {f"{row.label}, {label}": e for label, e in zip(inner.labels, inner.exceptions, strict=True)}
        except (Exception, pytest.fail.Exception) as error:
            failed[row.label] = error if isinstance(error, Exception) else AssertionError(str(error))
    if failed:
        raise RowsFailed(list(failed), list(failed.values()))
    if skipped:
        pytest.skip(f"{len(skipped)} of {len(cases)} rows, the others passed: {skipped[0]}")
