"""A JSON file with sections that is written anew after every part: a run cut short leaves what it has."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any


class Result:
    """A JSON object on disk, one process at a time changing it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def read(self) -> dict[str, Any]:
        """All sections so far."""
        return dict(json.loads(self.path.read_text(encoding="utf-8"))) if self.path.exists() else {}

    def update(self, **sections: Any) -> None:
        """Replace whole sections; the file is there in full or not at all."""
        content = json.dumps(self.read() | sections, indent=1, allow_nan=False)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self.path.parent, suffix=".part")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content + "\n")
        os.chmod(name, 0o644)
        os.replace(name, self.path)
