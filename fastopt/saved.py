"""State that leaves an optimizer and comes back: dicts of arrays, copies, pickles."""

from __future__ import annotations

import os
from array import array as numbers
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from . import state
from .checkpoint import contents, loading
from .checkpoint.saving import Saving
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
            state.write(self, self._taking_over(d, strict, convert))

    def _taking_over(self, d: Mapping[str, Any], strict: bool, convert: bool) -> list[Callable[[], Any]]:
        """Check a state; what writes it."""
        return state.taking_over(self, d, strict, convert)

    def _not_arrays(self) -> dict[str, Any]:
        """What a state has beside its arrays."""
        return state.not_arrays(self)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        params: bool = False,
        extra: Any = None,
        keep: int = 1,
        background: bool = False,
        progress: Callable[[int, int], Any] | None = None,
    ) -> Saving:
        """Write a checkpoint: all that is needed to go on bit for bit, in one file, which is there as a whole or not.

        What is at ``path`` stays there until the new file is on the disk. It is a *safetensors* file, see
        docs/checkpoints.md; arrays are written from where they lie, without a copy of them all.

        Parameters
        ----------
        path : str or path
        params : bool
            Whether the parameters are written, too.
        extra : any, optional
            What the training loop has of its own: None, bools, numbers, str, bytes, lists, tuples, dicts and NumPy
            arrays, nested, such as ``{"epoch": 3, "rng": rng.bit_generator.state}``.
        keep : int >= 1
            How many checkpoints to have: the last ones are ``path.1``, ``path.2``, …, as many as were there.
        background : bool
            Return at once, and write from a copy of the state, made here, while training goes on.
        progress : function, optional
            Called with the bytes written so far, and all that will be, after some megabytes each. What it raises ends
            the saving.

        Returns
        -------
        fastopt.checkpoint.saving.Saving
            ``wait()`` returns when the file is on the disk, or raises what went wrong; ``done()`` says whether it is.
            Without ``background`` it is.

        Raises
        ------
        RuntimeError
            If the optimizer is not built, in the middle of a step, or, with ``params``, in `evaluation_weights`.
        TypeError, ValueError
            If ``extra`` holds something else, or an argument makes no sense.
        OSError
            If the system cannot write it. Then what was at ``path`` is there, and nothing else is.
        """
        return contents.save(self, path, params, extra, keep, background, progress)

    def load(self, path: str | os.PathLike[str], *, strict: bool = True, convert: bool = False) -> Any:
        """Take over a checkpoint that `save` has written: the state, and the parameters if it holds them, in place.

        Hyper-parameters stay as they are, other than the learning rate: `fastopt.load` makes the optimizer, too.

        Parameters
        ----------
        path : str or path
        strict : bool
            Whether parameters and state must be the same as here by name; otherwise others are passed over.
        convert : bool
            As of `load_state_dict`.

        Returns
        -------
        any
            What was ``extra`` for `save`.

        Raises
        ------
        fastopt.CheckpointError
            If the file is damaged, no checkpoint, of a newer fastopt, or does not fit. Then nothing has changed.
        OSError
            If it cannot be read.
        RuntimeError
            If the optimizer is not built, in the middle of a step, or in `evaluation_weights` and the file holds
            parameters.
        """
        return loading.load_into(self, path, strict, convert)

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
