"""What is an array, and what is none that NumPy has."""

from __future__ import annotations

from typing import Any

import numpy as np

from .libraries import library_of


def is_array(value: Any) -> bool:
    """Whether an object is an array on any device."""
    return isinstance(value, np.ndarray) or library_of(value) is not None


def check_array(name: str, array: Any) -> None:
    """Refuse what is no plain NumPy array.

    Parameters
    ----------
    name : str
        Names the array in the message, as "parameter w".
    array : object
        What was given.

    Raises
    ------
    TypeError
        If it is no NumPy array, or on another device.
    """
    if isinstance(array, np.ndarray) and not isinstance(array, np.ma.MaskedArray):
        return
    if library_of(array) is not None:
        raise TypeError(f"{name}: is on a CUDA device, and a numpy.ndarray is needed here: copy it to the host first")
    hint = ""
    if isinstance(array, np.ma.MaskedArray):
        hint = ": pass array.data"
    elif type(array).__module__.partition(".")[0] == "torch":
        hint = ": pass tensor.detach().numpy(), which shares its memory"
    elif isinstance(array, np.generic):
        hint = ", which cannot be updated in place: use a 0-d array"
    raise TypeError(f"{name}: expected a numpy.ndarray, got {type(array).__name__}{hint}")
