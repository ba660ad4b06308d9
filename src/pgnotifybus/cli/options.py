"""Options and texts that commands share. Layer: cli."""

from __future__ import annotations

import logging
from enum import StrEnum
from typing import Annotated, Final

import typer

from pgnotifybus.cli.outcomes import say
from pgnotifybus.links.sources import Driver

EXIT_CODES: Final = (
    "Exit codes: 0 done · 1 no connection, or the server refused, or a count was not reached · "
    "2 bad usage, or a package is missing · 130 Ctrl-C · 143 SIGTERM"
)
SERVER: Final = (
    "Which server: --dsn, else DATABASE_URL, else PGHOST and the other PG* variables, else an "
    "embedded server in PGNOTIFYBUS_DATA_DIR or your data directory. A password is best kept out "
    "of the command line: in DATABASE_URL, PGPASSFILE or ~/.pgpass."
)


class DriverName(StrEnum):
    """The drivers to choose from."""

    PSYCOPG = "psycopg"
    ASYNCPG = "asyncpg"


DsnOption = Annotated[
    str | None,
    typer.Option(
        "--dsn",
        metavar="DSN",
        help="The server: postgresql://user@host:port/database or 'host=... dbname=...'.",
        show_default=False,
    ),
]
DriverOption = Annotated[
    DriverName | None,
    typer.Option("--driver", help="How to connect; psycopg if the DSN names none."),
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show the library's log on stderr.")
]
SchemaOption = Annotated[
    str,
    typer.Option("--schema", metavar="NAME", help="The schema of the table for large payloads."),
]
LockTimeoutOption = Annotated[
    float,
    typer.Option(
        min=0.001, metavar="SECONDS", help="How long to wait for others that use the table."
    ),
]
ResultOption = Annotated[bool, typer.Option("--json", help="Print what was done as a JSON object.")]


def driver_of(name: DriverName | None) -> Driver | None:
    """The driver that an option names."""
    return None if name is None else name.value


def show_log(verbose: bool) -> None:
    """Show the library's log, or keep it quiet: what matters of it is shown anyway."""
    logger = logging.getLogger("pgnotifybus")
    if verbose and not any(isinstance(each, _Shown) for each in logger.handlers):
        handler = _Shown()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    elif not logger.handlers:
        logger.addHandler(logging.NullHandler())


class _Shown(logging.Handler):
    """Shows the log on the stderr of the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))
