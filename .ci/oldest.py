"""Print requirements: the lowest versions that pyproject.toml allows of all that fastopt and the named extras bring,
exactly; what only its tests need, as it stands."""

import re
import sys
import tomllib
from pathlib import Path


def main() -> None:
    """Run as a script."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lowest = {}
    for requirement in [*project["dependencies"], *(each for name in sys.argv[1:] for each in extras[name])]:
        name, version = re.match(r"([\w-]+)>=([\w.]+)", requirement).groups()
        lowest[name] = version  # an extra asks for more than fastopt alone
    for name, version in lowest.items():
        print(f"{name}=={version}")
    for requirement in extras["test"]:
        if not requirement.startswith("fastopt["):
            print(requirement)


if __name__ == "__main__":
    main()
