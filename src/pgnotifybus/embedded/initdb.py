"""Make a data directory. Layer: embedded."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgnotifybus.embedded.account import Account
from pgnotifybus.embedded.cluster import EmbeddedServerError
from pgnotifybus.embedded.installations import Installation

_TIMEOUT = 120.0  # seconds; it takes one on a fast disk


def environment() -> dict[str, str]:
    """Return the environment for PostgreSQL's programs: no PG* settings, the C locale."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**kept, "LC_ALL": "C"}


def initdb(
    installation: Installation, account: Account, data_dir: Path, password: str | None
) -> None:
    """Make a data directory with the superuser `postgres`, UTF-8 and the C locale.

    Either the whole directory comes into being or none: a process killed in the middle leaves
    only a directory of another name, which the next call removes.

    Args:
        installation: The programs; they decide the version.
        account: Who will own the directory.
        data_dir: Absent or empty; its parent exists and lets the account through.
        password: Asked for over TCP; None lets everybody on this machine in. The Unix socket
            never asks: only who may enter its directory gets there.

    Raises:
        EmbeddedServerError: It failed; the message holds what initdb said.
    """
    unfinished = data_dir.with_name(f"{data_dir.name}.new")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(mode=0o700)
    account.own(unfinished)
    with _password_file(account, password) as password_file:
        command = [
            str(installation.bin_dir / "initdb"),
            f"--pgdata={unfinished}",
            "--username=postgres",
            "--encoding=UTF8",
            "--locale=C",
            "--auth-local=trust",
            f"--auth-host={'trust' if password_file is None else 'scram-sha-256'}",
            *([] if password_file is None else [f"--pwfile={password_file}"]),
            "--no-sync",
            "--no-instructions",
        ]
        try:
            answer = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                cwd="/",
                env=environment(),
                timeout=_TIMEOUT,
                check=False,
                # Ctrl-C goes to us alone: we end the child, and clear up after it.
                start_new_session=True,
                **account.switch,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise EmbeddedServerError(f"initdb could not run for {data_dir}: {error}") from error
    if answer.returncode != 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        said = "\n".join(f"    {line}" for line in answer.stdout.splitlines()[-15:])
        raise EmbeddedServerError(
            f"initdb could not make {data_dir}; check free space and permissions there. "
            f"It said:\n{said}"
        )
    unfinished.rename(data_dir)


@contextmanager
def _password_file(account: Account, password: str | None) -> Iterator[Path | None]:
    """Hand a password over in a file: on the command line everybody would see it."""
    if password is None:
        yield None
        return
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix="pgnotifybus-") as file:
        file.write(f"{password}\n")
        file.flush()
        path = Path(file.name)
        account.own(path)
        yield path
