"""Which server: --dsn, DATABASE_URL, libpq's PG* variables, or the embedded one. Layer: cli."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping

from rich.console import Console

from pgnotifybus.cli import secrecy
from pgnotifybus.cli.outcomes import CommandFailed, UsageProblem, say
from pgnotifybus.core.dsn import MALFORMED, take_apart
from pgnotifybus.errors import MissingExtra
from pgnotifybus.links.sources import Connector, Driver, connector

# Any of these says where a server is; PGUSER or PGPASSWORD alone do not.
_PLACES = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGSERVICE")


def chosen(option: str | None, environ: Mapping[str, str] | None = None) -> str | None:
    """The DSN that the user gave: as option or in the environment; None if none was.

    Args:
        option: The value of --dsn.
        environ: The environment; None takes the process's.

    Raises:
        UsageProblem: If the one that counts is malformed or of another kind of database; the
            message repeats nothing of it.
    """
    environ = os.environ if environ is None else environ
    if (dsn := given(option)) is not None:
        return dsn
    if url := environ.get("DATABASE_URL"):
        return checked(url, "DATABASE_URL")
    if any(environ.get(name) for name in _PLACES):
        return ""  # libpq and asyncpg read the variables themselves
    return None


def given(option: str | None) -> str | None:
    """The DSN of --dsn, also if it was taken out of the arguments; None if there was none.

    Raises:
        UsageProblem: If it is malformed or of another kind of database.
    """
    option = secrecy.handed_dsn() if option is None else option
    return None if option is None else checked(option, "--dsn")


def checked(dsn: str, origin: str) -> str:
    """The DSN without SQLAlchemy's name of a driver that makes no difference here.

    Raises:
        UsageProblem: If it is malformed or of another kind of database.
    """
    if not dsn.strip():
        raise UsageProblem(f"{origin} is empty: {MALFORMED}")
    try:
        plain, dialect = take_apart(dsn)
    except ValueError as error:
        raise UsageProblem(str(error).replace("the DSN", origin, 1)) from None
    kept = "+asyncpg" if dialect == "asyncpg" else ""
    return plain.replace("postgresql://", f"postgresql{kept}://", 1) if dialect else plain


def for_psycopg(dsn: str) -> str:
    """The same DSN for psycopg, whatever driver it names."""
    return re.sub(r"\A(postgres(?:ql)?)\+\w+://", r"\1://", dsn)


@contextlib.contextmanager
def server(option: str | None) -> Iterator[str]:
    """The DSN of the server to use, for as long as it is used; starts the embedded one if needed.

    Raises:
        UsageProblem: If the DSN is malformed.
        MissingExtra: If there is neither a DSN nor an embedded server.
        EmbeddedServerError: If the embedded server did not start.
        CommandFailed: If its directory cannot be made or written to.
    """
    dsn = chosen(option)
    if dsn is not None:
        yield dsn
        return
    try:
        from pgnotifybus.embedded import default_data_dir, find, shared_server

        version = find().version
        place = default_data_dir(version)
    except MissingExtra:
        raise MissingExtra(
            "embedded", "or say which server: --dsn, DATABASE_URL or PGHOST"
        ) from None
    say(f"no --dsn, DATABASE_URL or PGHOST is given: using the embedded server in {place}")
    with contextlib.ExitStack() as stack:
        with starting(version):
            try:
                embedded = stack.enter_context(shared_server())
            except OSError as error:  # of the directory; all others are an EmbeddedServerError
                named = "" if error.filename is None else f"{error.filename}: "
                raise CommandFailed(
                    f"cannot keep an embedded server in {place}: {named}{error.strerror}. Say "
                    "which server (--dsn, DATABASE_URL or PGHOST), or set PGNOTIFYBUS_DATA_DIR to "
                    "a directory of yours"
                ) from None
        yield embedded.dsn


@contextlib.contextmanager
def starting(version: int) -> Iterator[None]:
    """Tell that an embedded server is being started, for as long as it is."""
    console = Console(stderr=True)
    text = f"starting PostgreSQL {version} ..."
    if console.is_terminal:
        with console.status(text):
            yield
    else:
        say(text)
        yield


def connects(dsn: str, driver: Driver | None) -> Connector:
    """What connects to a DSN; no I/O.

    Raises:
        UsageProblem: If the DSN is malformed.
        MissingExtra: If the driver is not installed.
    """
    try:
        return connector(dsn, driver)
    except ValueError as error:
        raise UsageProblem(str(error)) from None
