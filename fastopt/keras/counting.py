"""Keras's count of steps, where the fused pass makes it.

Keras moves the parameters and then, some Python later, calls ``_iterations.assign_add(1)``: what interrupts a step in
between finds parameters that have moved and a count that has not. So the pass counts too, in the call that moves the
parameters, and what Keras calls after it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any


def counting(variable: Any, memory: Any, calls: int) -> list[Callable[[], Any]]:
    """C functions that set the count of steps, and have Keras's own change nothing.

    Parameters
    ----------
    variable : keras.Variable
        ``optimizer._iterations``.
    memory : NumpyMemory or TorchMemory
        Of Keras's backend.
    calls : int
        The new count.
    """
    if "assign_add" not in vars(variable):
        variable._counted_by_pass = []
        variable.assign_add = MethodType(assign_add, variable)
    forget(variable)
    return [memory.assigning(variable, calls), partial(variable._counted_by_pass.append, calls)]


def forget(variable: Any) -> None:
    """Let Keras's next count be one: a step that was interrupted behind the pass may have left it out."""
    vars(variable).get("_counted_by_pass", []).clear()


def assign_add(variable: Any, value: Any) -> Any:
    """Do what `keras.Variable.assign_add` does, unless the pass has counted. Of its name, for `pickle`."""
    counted = variable._counted_by_pass
    if counted and value == 1:
        counted.clear()
        return variable.value
    return type(variable).assign_add(variable, value)
