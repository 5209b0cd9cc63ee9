"""Which engine runs an array's steps: the only place that knows which devices exist."""

from __future__ import annotations

from typing import Any

import numpy as np


def check_array(path: str, array: Any, role: str) -> None:
    """Refuse what no engine can take.

    Parameters
    ----------
    path : str
        Names the array in the message.
    array : object
        What was given.
    role : str
        "parameter" or "gradient".

    Raises
    ------
    TypeError
        If it is no plain NumPy array, or lives on a device that this version does not reach.
    """
    if isinstance(array, np.ndarray) and not isinstance(array, np.ma.MaskedArray):
        return
    if hasattr(array, "__cuda_array_interface__"):
        raise TypeError(f"{role} {path}: is on a CUDA device; this version of fastopt updates NumPy arrays")
    hint = ""
    if isinstance(array, np.ma.MaskedArray):
        hint = ": pass array.data"
    elif type(array).__module__.partition(".")[0] == "torch":
        hint = ": pass tensor.detach().numpy(), which shares its memory"
    elif isinstance(array, np.generic):
        hint = ", which cannot be updated in place: use a 0-d array"
    raise TypeError(f"{role} {path}: expected a numpy.ndarray, got {type(array).__name__}{hint}")


def engine(plan: Any) -> Any:
    """The engine that does the steps of a `Plan`."""
    from .kernels import engines

    return engines.engine_for(plan.scalars)(plan)
