"""What the project asks to be installed: its own file, the pins, and all that a distribution brings with it."""

import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines()]


def pinned() -> dict[str, SpecifierSet]:
    """Return the version that is pinned here of each distribution; pins for other systems and Pythons are left out."""
    return {canonicalize_name(pin.name): pin.specifier for pin in PINS if pin.marker is None or pin.marker.evaluate()}


def closure(name: str, extras: set[str]) -> set[str]:
    """Return the names of all distributions that installing `name[extras]` brings here."""
    found: set[str] = set()
    waiting = [(name, frozenset(extras))]
    seen = set(waiting)
    while waiting:
        current, wanted = waiting.pop()
        found.add(canonicalize_name(current))
        for text in metadata.requires(current) or ():
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in wanted | {""}):
                following = (requirement.name, frozenset(requirement.extras))
                if following not in seen:
                    seen.add(following)
                    waiting.append(following)
    return found
