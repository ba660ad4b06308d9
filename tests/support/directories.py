"""Directories in which a server can run that belongs to another user than the tests do."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def open_directory() -> Iterator[Path]:
    """Make a temporary directory that everybody can enter, and remove it.

    pytest's own tmp_path lies in a directory that is closed to others: the server, which does not
    run as root, could not get in.
    """
    with tempfile.TemporaryDirectory(prefix="tests-") as name:
        path = Path(name).resolve()
        path.chmod(0o755)
        yield path
