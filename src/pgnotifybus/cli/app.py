"""The commands and their options. Layer: cli."""

from __future__ import annotations

import json as json_format
import logging
import signal
import sys
from enum import StrEnum
from typing import Annotated, Protocol, runtime_checkable

import typer

from pgnotifybus._version import __version__
from pgnotifybus.cli import dsn as dsns
from pgnotifybus.cli import listen as listening
from pgnotifybus.cli import notify as notifying
from pgnotifybus.cli import secrecy
from pgnotifybus.cli.outcomes import OK, USAGE, reported, say
from pgnotifybus.links.sources import Driver

_EXIT_CODES = (
    "Exit codes: 0 done · 1 no connection, or the server refused, or a count was not reached · "
    "2 bad usage, or a package is missing · 130 Ctrl-C · 143 SIGTERM"
)
_SERVER = (
    "Which server: --dsn, else DATABASE_URL, else PGHOST and the other PG* variables, else an "
    "embedded server in your data directory. A password is best kept out of the command line: "
    "in DATABASE_URL, PGPASSFILE or ~/.pgpass."
)

app = typer.Typer(
    name="pgnotifybus",
    add_completion=False,
    pretty_exceptions_enable=False,  # they may show local variables, and so a DSN
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
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


def main() -> None:
    """Run the command line with the process's arguments, and exit."""
    try:
        code = app(prog_name="pgnotifybus", standalone_mode=False)
    except typer.Abort:  # Ctrl-C before a command had begun
        code = 130
    except Exception as error:
        # Typer brings its own copy of Click, whose errors have no public name.
        if not isinstance(error, _UsageError):
            raise
        said = secrecy.masked(error.format_message()).removesuffix(".")
        say(f"error: {said}; see --help")
        code = USAGE
    sys.exit(code or OK)


@runtime_checkable
class _UsageError(Protocol):
    """What Typer raises for arguments that it cannot take; it may repeat them."""

    exit_code: int

    def format_message(self) -> str: ...


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pgnotifybus {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True, epilog=f"{_SERVER}\n\n{_EXIT_CODES}")
def _root(
    context: typer.Context,
    verbose: VerboseOption = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """PostgreSQL LISTEN/NOTIFY that is safe to build on: nothing is lost silently.

    Try `pgnotifybus demo` first: it needs nothing.
    """
    _log(verbose)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(epilog=f"{_SERVER}\n\n{_EXIT_CODES}")
def listen(
    channels: Annotated[
        list[str],
        typer.Argument(metavar="CHANNEL", help="The channels, in their exact spelling."),
    ],
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line; exact for any payload.")
    ] = False,
    count: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="End after N messages.")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0.0, metavar="SECONDS", help="End after so long; code 1 if --count is not reached."
        ),
    ] = None,
    dsn: DsnOption = None,
    driver: DriverOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Print each message on one line, and each gap in its place.

    A line is the channel, a tab and the payload; control characters are escaped. A line that
    begins with `--` and has no tab tells of a gap: messages are missing there. What
    happens to the connection goes to stderr, with --json to stdout.

    `pgnotifybus listen orders jobs`

    `pgnotifybus listen orders | cut -f2`

    `pgnotifybus listen --json --count 1 --timeout 60 deployed`
    """
    _log(verbose)
    with reported() as signals:
        notifying.checked_channels(channels)
        with dsns.server(dsn) as place:
            dsns.connects(place, _driver(driver))
            request = listening.Request(channels, _driver(driver), json, count, timeout)
            code = signals.run(listening.listen(place, request))
    raise typer.Exit(code)


@app.command(epilog=f"{_SERVER}\n\n{_EXIT_CODES}")
def notify(
    channel: Annotated[str, typer.Argument(help="The channel, in its exact spelling.")],
    payload: Annotated[
        str,
        typer.Argument(
            help="What to send, at most 7,999 bytes; - reads stdin, less one line end.",
            show_default=False,
        ),
    ] = "",
    json: Annotated[
        bool, typer.Option("--json", help="Print what was sent as a JSON object.")
    ] = False,
    dsn: DsnOption = None,
    driver: DriverOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Send one notification; when it returns, the server has committed it.

    `pgnotifybus notify orders 42`

    `jq -c . order.json | pgnotifybus notify orders -`
    """
    _log(verbose)
    with reported() as signals:
        notifying.checked_channels([channel])
        text = notifying.checked_payload(payload)
        with dsns.server(dsn) as place:
            connector = dsns.connects(place, _driver(driver))
            signals.run(notifying.notify(connector, channel, text))
        size = len(text.encode())
        if json:
            typer.echo(json_format.dumps({"channel": channel, "bytes": size}))
        elif verbose:
            say(f"sent {size} bytes to {channel}")


@app.command(epilog=_EXIT_CODES)
def demo(
    seconds: Annotated[
        float | None,
        typer.Option(min=0.5, metavar="N", help="End after N seconds; without it, at Ctrl-C."),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the summary as a JSON object, on the last line.")
    ] = False,
    dsn: DsnOption = None,
    driver: DriverOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Watch it work: PostgreSQL, three subscribers, and connections that get killed.

    It starts a PostgreSQL of its own and leaves nothing behind. With --dsn it runs on a real
    server instead, in a schema of its own that it drops at the end; DATABASE_URL is not looked
    at. Ctrl-C is the normal way to end it: it prints the summary, and the code is 0 if every
    message is accounted for.

    `pgnotifybus demo`

    `pgnotifybus demo --seconds 10 --json`
    """
    _log(verbose)
    with reported() as signals:
        from pgnotifybus.cli.demo.command import Request
        from pgnotifybus.cli.demo.command import demo as run

        code = run(Request(dsns.given(dsn), _driver(driver), seconds, json), signals)
        if signals.received not in (None, signal.SIGINT):
            code = 128 + signals.received
    raise typer.Exit(code)


def _driver(name: DriverName | None) -> Driver | None:
    return None if name is None else name.value


def _log(verbose: bool) -> None:
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
