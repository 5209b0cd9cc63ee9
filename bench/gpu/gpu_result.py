"""The one file that a GPU run leaves: written anew after every part, so that a run cut short leaves what it has."""

import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])


def shown(command):
    """A command line, without where this machine keeps Python and the checkout."""
    parts = ("python3" if part == sys.executable else str(part) for part in command)
    return " ".join(parts).replace(ROOT + os.sep, "")


class Result:
    """A JSON object on disk, one process at a time changing it."""

    def __init__(self, path):
        self.path = Path(path)

    def read(self):
        """All sections so far."""
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def update(self, **sections):
        """Replace whole sections; the file is there in full or not at all."""
        content = json.dumps(self.read() | sections, indent=1, allow_nan=False)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self.path.parent, suffix=".part")
        with os.fdopen(descriptor, "w") as file:
            file.write(content + "\n")
        os.chmod(name, 0o644)
        os.replace(name, self.path)
