"""Print requirements: of all that users install with fastopt the lowest versions that pyproject.toml allows, exactly;
what only its tests need, as it stands."""

import re
import tomllib
from pathlib import Path

EXTRAS = ("keras", "ptx", "demo")


def main() -> None:
    """Run as a script."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    users = project["dependencies"] + [requirement for name in EXTRAS for requirement in extras[name]]
    for requirement in users:
        name, version = re.match(r"([\w-]+)>=([\w.]+)", requirement).groups()
        print(f"{name}=={version}")
    for requirement in extras["test"]:
        if not requirement.startswith("fastopt["):
            print(requirement)


if __name__ == "__main__":
    main()
