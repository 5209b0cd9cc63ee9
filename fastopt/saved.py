"""State that leaves an optimizer and comes back: dicts of arrays, copies, pickles."""

from __future__ import annotations

from array import array as numbers
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from . import state
from .counts import Counts
from .flat import FlatBuffer
from .kernels.locks import Lock


class Saved:
    """The part of an optimizer that hands its state out and takes it over; `state` knows what that consists of."""

    _built: bool
    _copies: Any
    _counts: Counts
    _evaluating: bool
    _one_at_a_time: Callable[[], AbstractContextManager[Any]]
    _overrides: Any
    _place: Any
    _require_built: Callable[[str], None]
    _running: Any
    _stepping: Lock
    _structure: Any
    build: Callable[..., None]

    def state_dict(self) -> dict[str, Any]:
        """A copy of all state, flat: ``"path/slot"`` → array, counters → int or float. Fit for `numpy.savez`.

        Raises
        ------
        RuntimeError
            If the optimizer is not built.
        """
        self._require_built("state_dict()")
        return state.export(self)

    def load_state_dict(self, d: Mapping[str, Any], strict: bool = True, convert: bool = False) -> None:
        """Take over state from `state_dict`, or from `numpy.load` of it.

        Parameters
        ----------
        d : mapping
            Arrays are cast to the parameters' dtype.
        strict : bool
            Whether missing and unexpected names are errors; otherwise they are passed over.
        convert : bool
            Whether a state that is kept in other formats, see `fastopt.formats`, is converted; otherwise it is refused.

        Raises
        ------
        ValueError
            If names are missing or unexpected, or a shape is not right. Then nothing has changed.
        RuntimeError
            If the optimizer is not built.
        """
        self._require_built("load_state_dict()")
        with self._one_at_a_time():
            state.load(self, d, strict, convert)

    def __getstate__(self) -> dict[str, Any]:
        if self._evaluating:
            raise RuntimeError("inside evaluation_weights() the parameters are averages: leave it, then copy or pickle")
        if self._built and not self._place.copyable and not isinstance(self._structure, FlatBuffer):
            raise TypeError(
                "the parameters' library cannot copy or pickle its arrays: pack them with fastopt.pack, or keep "
                "get_config() and state_dict()"
            )
        kept = {key: value for key, value in self.__dict__.items() if key not in _MADE_ANEW}
        if self._built:
            kept["_restore"] = (self._structure, self._overrides, self._copies, state.export(self))
            kept["_excluded_arrays"] = []
        return kept

    def __setstate__(self, kept: dict[str, Any]) -> None:
        restore = kept.pop("_restore", None)
        self.__dict__.update(kept)
        self._stepping = Lock()
        self._counts = self._counts.copy()  # a shallow copy counts for itself
        if self._running is not None:
            self._running = numbers("d", self._running)
        if restore is not None:
            *built, arrays = restore
            self._built = False
            self.build(*built)
            state.load(self, arrays, strict=True)


_MADE_ANEW = (
    "_stepping",
    "_parameters", "_place", "_pinned", "_stand_ins", "_structure", "_overrides", "_copies", "_storage", "_index",
    "_plans",
    "_gradients", "_gpu", "_steps", "_repeated", "_kept_as", "_kept_seed",
)  # fmt: skip
