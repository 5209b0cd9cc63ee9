"""What a peer is."""

from __future__ import annotations

import importlib.util

from ..cases import Case
from ..sides import Side


class Peer(Side):
    """Another library's way to do the step of a case, the fastest that it has.

    A class says with `missing` whether it can run at all, and with `lacks` why it cannot do a case.
    """

    norm_in_float32 = True
    package = ""
    """What has to be installed."""

    arrays_beside = 0.0
    """Arrays as large as the parameters that a step needs beside parameters, gradients and slots."""

    @classmethod
    def missing(cls) -> str | None:
        """Why this peer cannot run here."""
        return None if importlib.util.find_spec(cls.package) else f"{cls.package} is not installed"

    @classmethod
    def lacks(cls, case: Case) -> str | None:
        """Why it cannot do a case."""
        return None
