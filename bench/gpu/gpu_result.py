"""The one file that a GPU run leaves, and how commands are written in it."""

import os
import sys
from pathlib import Path

from fastopt.bench.result import Result

__all__ = ["Result", "shown"]

ROOT = str(Path(__file__).resolve().parents[2])


def shown(command):
    """A command line, without where this machine keeps Python and the checkout."""
    parts = ("python3" if part == sys.executable else str(part) for part in command)
    return " ".join(parts).replace(ROOT + os.sep, "")
