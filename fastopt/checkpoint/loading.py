"""A checkpoint's file, and how what it holds is taken over, or becomes an optimizer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from .. import state
from . import extra as extras
from .contents import between_steps, checked_path, code_of, core_of, dtype_of
from .description import Description, described
from .faults import CheckpointError
from .tensors import Stored, opened


class Checkpoint:
    """A checkpoint's open file, all of which has been checked as far as can be without an optimizer."""

    def __init__(self, path: str, arrays: Mapping[str, Stored], text: str) -> None:
        self.path = path
        with self.naming_the_file():
            self.description: Description = described(text)
            self._by_kind: dict[str, dict[str, Stored]] = {"state": {}, "params": {}, "extra": {}}
            for name, array in arrays.items():
                kind, _, rest = name.partition("/")
                if kind not in self._by_kind:
                    raise ValueError(f"it holds an array {name[:200]!r}, which is no part of a checkpoint")
                self._by_kind[kind][rest] = array
            self.params = self._by_kind["params"]
            self._check_params()
            of_extra = self._by_kind["extra"]
            if of_extra.keys() != set(map(str, range(len(of_extra)))):
                raise ValueError("its extra does not have the arrays that it names")
            self.extra = extras.decoded(self.description.extra, [of_extra[str(k)] for k in range(len(of_extra))])

    @contextmanager
    def naming_the_file(self) -> Iterator[None]:
        """Context in which whatever is wrong with the file is a `CheckpointError`."""
        try:
            yield
        except CheckpointError:
            raise
        except (TypeError, ValueError, ImportError) as error:
            raise CheckpointError(f"{self.path}: {error}") from error

    def _check_params(self) -> None:
        told = self.description.parameters if self.description.params else {}
        if told.keys() != self.params.keys():
            raise ValueError("it does not hold the parameters that it names")
        for path, parameter in told.items():
            array = self.params[path]
            if array.shape != parameter.shape or array.code not in parameter.codes:
                raise ValueError(f"it does not hold parameter {path} as it says")

    def state(self) -> dict[str, Any]:
        """What `Optimizer.load_state_dict` takes, arrays in the file."""
        arrays = {name: array.as_bits() for name, array in self._by_kind["state"].items()}
        return {**arrays, **self.description.state}


@contextmanager
def opened_checkpoint(path: str | os.PathLike[str]) -> Iterator[Checkpoint]:
    """Context with a checkpoint that has been checked."""
    name = checked_path(path)
    with opened(name) as (arrays, text):
        yield Checkpoint(name, arrays, text)


def load_into(optimizer: Any, path: str | os.PathLike[str], strict: bool, convert: bool) -> Any:
    """See `Optimizer.load`."""
    core_of(optimizer)._require_built("load()")
    with opened_checkpoint(path) as checkpoint:
        take_over(optimizer, checkpoint, strict, convert)
        return checkpoint.extra


def take_over(optimizer: Any, checkpoint: Checkpoint, strict: bool, convert: bool) -> None:
    """Check that a checkpoint fits an optimizer, then write what it holds."""
    core = core_of(optimizer)
    with between_steps(core):
        if checkpoint.params and core._evaluating:
            raise RuntimeError("inside evaluation_weights() the parameters are averages: leave it, then load others")
        with checkpoint.naming_the_file():
            if strict:
                _check_same(core, checkpoint.description)
            params = _params_to_write(core, checkpoint)
            writes = optimizer._taking_over(checkpoint.state(), strict, convert)
        state.write(core, [*params, *writes])


def _check_same(core: Any, description: Description) -> None:
    """Refuse a checkpoint of other parameters, or of others random numbers."""
    theirs = {path: parameter.shape for path, parameter in description.parameters.items()}
    own = {parameter.path: parameter.in_place.shape for parameter in core._parameters}
    missing, unexpected = [p for p in own if p not in theirs], [p for p in theirs if p not in own]
    if missing or unexpected:
        raise ValueError(
            f"it is of other parameters: missing {missing[:5] or 'nothing'}, unexpected {unexpected[:5] or 'nothing'}; "
            "strict=False passes over them"
        )
    for path, shape in own.items():
        if theirs[path] != shape:
            raise ValueError(f"parameter {path}: expected shape {shape}, got {theirs[path]}")
    if state.TOLD in description.state and description.seed != core._kept_seed:
        raise ValueError(
            f"it was rounded with seed={description.seed}, and this optimizer has seed={core._kept_seed}: make it with "
            "the other seed, or load with strict=False, and other random numbers"
        )


def _params_to_write(core: Any, checkpoint: Checkpoint) -> list[Callable[[], Any]]:
    """What writes the parameters that the file holds, and the optimizer has."""
    writes: list[Callable[[], Any]] = []
    chosen = [parameter for parameter in core._parameters if parameter.path in checkpoint.params]
    if chosen:
        core._gradients.check_parameters()
    for parameter in chosen:
        stored, array = checkpoint.params[parameter.path], parameter.in_place
        if stored.shape != array.shape:
            raise ValueError(f"parameter {parameter.path}: expected shape {array.shape}, got {stored.shape}")
        if stored.code != code_of(parameter):
            theirs = checkpoint.description.parameters[parameter.path].dtype
            raise ValueError(f"parameter {parameter.path}: is {theirs} there, and {dtype_of(parameter)} here: cast it")
        if not array.flags.writeable:
            raise ValueError(f"parameter {parameter.path}: has been made read-only and cannot be loaded in place")
        writes.append(partial(state.fill, core._place, array, stored.as_bits() if parameter.kept_as else stored))
    return writes


# -- making the optimizer ----------------------------------------------------------------------------------------------


class Loaded(NamedTuple):
    """What `fastopt.load` returns: an optimizer, its parameters, and what was ``extra`` for `Optimizer.save`."""

    optimizer: Any
    params: Any
    extra: Any


def load(path: str | os.PathLike[str], params: Any = None, *, convert: bool = False) -> Loaded:
    """Make the optimizer of a checkpoint that `Optimizer.save` has written, as it was, parameters included.

    Parameters
    ----------
    path : str or path
        Of a file that you trust: regular expressions in it are searched for, such as those of Muon's
        ``exclude_layers``, and some take for ever. `Optimizer.load` searches for none.
    params : as of `Optimizer.build`, optional
        Arrays to go on with, of the same paths and shapes; if the file holds parameters, they are filled in place.
        None: new NumPy arrays, as the file has them.
    convert : bool
        As of `Optimizer.load_state_dict`: for parameters in another order of memory, where the state is kept in 8 bits.

    Returns
    -------
    Loaded
        ``(optimizer, params, extra)``. The optimizer is built; ``params`` are those given, or a dict of arrays by path.

    Raises
    ------
    CheckpointError
        If the file is damaged, no checkpoint, of a newer fastopt; if the optimizer cannot be made of it, as it has a
        Python function as learning rate or a class of your own that is not registered; or if there are no parameters.
    OSError
        If it cannot be read.
    TypeError, ValueError
        If ``params`` are not what `Optimizer.build` takes.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> opt = fastopt.Adam(1e-2)
    >>> opt.build({"w": np.ones(3, np.float32)})
    >>> saving = opt.save("/tmp/fastopt-example.safetensors", params=True, extra={"epoch": 3})
    >>> fastopt.load("/tmp/fastopt-example.safetensors")
    Loaded(optimizer=Adam(learning_rate=0.01, beta_1=0.9, beta_2=0.999, epsilon=1e-07, amsgrad=False), \
params={'w': array([1., 1., 1.], dtype=float32)}, extra={'epoch': 3})
    """
    with opened_checkpoint(path) as checkpoint:
        description = checkpoint.description
        if params is None and not description.params:
            raise CheckpointError(f"{checkpoint.path}: it holds no parameters: pass params, or save(params=True)")
        optimizer = _made(checkpoint)
        if params is None:
            with checkpoint.naming_the_file():
                params = {path: parameter.array() for path, parameter in description.parameters.items()}
                optimizer.build(params, description.overrides)
        else:
            optimizer.build(params, description.overrides)
        take_over(optimizer, checkpoint, strict=True, convert=convert)
        return Loaded(optimizer, params, checkpoint.extra)


def _made(checkpoint: Checkpoint) -> Any:
    """The optimizer, not built."""
    from ..formats import check_seed
    from ..hyper_parameters import checked_exclusion
    from ..registry import deserialize

    description = checkpoint.description
    if description.optimizer is None:
        raise CheckpointError(
            f"{checkpoint.path}: the optimizer cannot be made from it ({description.why_not}): make it yourself, build "
            "it, and call its load()"
        )
    try:
        optimizer = deserialize(description.optimizer)
        core = core_of(optimizer)
        check_seed("seed", description.seed)
        core.seed, core._excluded = description.seed, checked_exclusion(description.excluded)
    except MemoryError:
        raise
    except Exception as error:
        raise CheckpointError(f"{checkpoint.path}: the optimizer that it describes cannot be made: {error}") from error
    return optimizer
