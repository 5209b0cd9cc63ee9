"""What programs of old did with the variables of an optimizer: ``K.set_value(optimizer.lr, 0.01)``.

In the releases ``lr`` and ``iterations`` were variables of the backend. Here they are numbers that know where they come
from, as they were when they were read; all other hyper-parameters are plain attributes, to be assigned to.

>>> from fastopt.compat import backend as K, keras_2_2
>>> sgd = keras_2_2.SGD(lr=0.1)
>>> K.set_value(sgd.lr, K.get_value(sgd.lr) / 2)
>>> sgd.lr
0.05
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = ["get_value", "set_value"]


class Variable:
    """A number that is an attribute of an optimizer: with the methods of Theano's variables. Copies are plain."""

    def __new__(cls, value: Any, optimizer: Any, name: str) -> Any:
        """The number that ``optimizer`` has under ``name``."""
        self = super().__new__(cls, value)  # type: ignore[call-arg]
        self._optimizer, self._name = optimizer, name
        return self

    _optimizer: Any
    _name: str
    _plain: ClassVar[Any]  # the type of plain numbers

    def get_value(self) -> Any:
        """Return what the attribute is now, a plain number."""
        return self._plain(getattr(self._optimizer, self._name))

    def set_value(self, value: Any) -> None:
        """Assign to the attribute."""
        setattr(self._optimizer, self._name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._plain, (self._plain(self),)


class FloatVariable(Variable, float):
    """A float."""

    _plain = float


class IntVariable(Variable, int):
    """An int."""

    _plain = int


def get_value(variable: Any) -> Any:
    """The present value of an optimizer's ``lr`` or ``iterations``.

    Raises
    ------
    TypeError
        If it is another number.
    """
    return _checked(variable).get_value()


def set_value(variable: Any, value: Any) -> None:
    """Set an optimizer's ``lr`` or ``iterations``.

    Raises
    ------
    TypeError
        If it is another number: assign to the attribute of the optimizer.
    TypeError, ValueError
        If the optimizer refuses the value.
    """
    _checked(variable).set_value(value)


def _checked(variable: Any) -> Any:
    if not (hasattr(variable, "get_value") and hasattr(variable, "set_value")):
        raise TypeError(
            f"{variable!r} is a plain {type(variable).__name__}, no lr or iterations read from an optimizer: "
            "other hyper-parameters are plain attributes, assign to them (optimizer.momentum = 0.9)"
        )
    return variable
