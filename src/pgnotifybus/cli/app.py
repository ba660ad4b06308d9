"""The commands and their options. Layer: cli."""

from __future__ import annotations

import json as json_format
import signal
import sys
from typing import Annotated, Protocol, runtime_checkable

import typer

from pgnotifybus._version import __version__
from pgnotifybus.cli import doctor as doctoring
from pgnotifybus.cli import dsn as dsns
from pgnotifybus.cli import listen as listening
from pgnotifybus.cli import notify as notifying
from pgnotifybus.cli import schema as schemas
from pgnotifybus.cli import secrecy
from pgnotifybus.cli import stream as streaming
from pgnotifybus.cli import top as topping
from pgnotifybus.cli import trigger as triggering
from pgnotifybus.cli.log import commands as logs
from pgnotifybus.cli.options import (
    EXIT_CODES,
    SERVER,
    DriverOption,
    DsnOption,
    SchemaOption,
    VerboseOption,
    driver_of,
    show_log,
)
from pgnotifybus.cli.outcomes import OK, USAGE, UsageProblem, reported, say
from pgnotifybus.cli.stdin import Stdin
from pgnotifybus.core.names import SCHEMA

_EPILOG = f"{SERVER}\n\n{EXIT_CODES}"

app = typer.Typer(
    name="pgnotifybus",
    add_completion=False,
    pretty_exceptions_enable=False,  # they may show local variables, and so a DSN
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


@app.callback(invoke_without_command=True, epilog=_EPILOG)
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

    Try `pgnotifybus demo` first: it starts a PostgreSQL of its own.
    """
    show_log(verbose)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(epilog=_EPILOG)
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
    schema: SchemaOption = SCHEMA,
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
    show_log(verbose)
    with reported() as signals:
        notifying.checked_channels(channels)
        schemas.checked_name(schema)
        listening.check_stdout()
        with dsns.server(dsn) as place:
            dsns.connects(place, driver_of(driver))
            request = listening.Request(channels, driver_of(driver), json, count, timeout, schema)
            code = signals.run(listening.listen(place, request))
    raise typer.Exit(code)


_LINES = "Lines of stdin"


@app.command(epilog=_EPILOG)
def notify(
    channel: Annotated[
        str, typer.Argument(metavar="CHANNEL", help="The channel, in its exact spelling.")
    ],
    payload: Annotated[
        str,
        typer.Argument(
            metavar="PAYLOAD",
            help="What to send, at most 16 MiB; - sends each line of stdin. Without it, an empty "
            "payload is sent.",
            show_default=False,
        ),
    ] = "",
    whole: Annotated[
        bool,
        typer.Option("--whole", help="With -, send all of stdin as one payload, less a line end."),
    ] = False,
    ephemeral: Annotated[
        bool,
        typer.Option(
            "--ephemeral",
            help="Do not wait for the server's disk where a payload goes through the table.",
        ),
    ] = False,
    schema: SchemaOption = SCHEMA,
    json: Annotated[
        bool, typer.Option("--json", help="Print what was sent as a JSON object.")
    ] = False,
    key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Of the lines that wait to be sent, only the newest is.",
            show_default=False,
            rich_help_panel=_LINES,
        ),
    ] = None,
    key_field: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The same, of lines that have the same value in this field of their JSON object.",
            show_default=False,
            rich_help_panel=_LINES,
        ),
    ] = None,
    batch: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Commit at most N lines together.", rich_help_panel=_LINES
        ),
    ] = 1000,
    linger: Annotated[
        float,
        typer.Option(
            min=0.0,
            metavar="SECONDS",
            help="How long a line may wait for others to be committed with.",
            rich_help_panel=_LINES,
        ),
    ] = 0.01,
    dsn: DsnOption = None,
    driver: DriverOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Send one notification, or each line of stdin.

    When it returns, the server has committed it. A payload of over 7,999 bytes is compressed; if
    that is not enough, it needs the table that `pgnotifybus schema install` makes.

    With `-` each line of stdin is sent as it comes, in order and many in one commit. A line ends
    with LF or CRLF; an empty one is an empty payload. While the server is away, lines wait; a line
    that cannot be sent ends it, and the error says which. A signal ends it once what was taken is
    sent, or 3 seconds later; what has become of all lines is said then.

    `pgnotifybus notify orders 42`

    `tail -f events.jsonl | pgnotifybus notify events -`

    `jq -c . order.json | pgnotifybus notify orders - --whole`
    """
    show_log(verbose)
    with reported() as signals:
        notifying.checked_channels([channel])
        schemas.checked_name(schema)
        lines = payload == notifying.STDIN and not whole
        if not lines and key_field is not None:  # a key does no harm where nothing else waits
            raise UsageProblem("--key-field is for lines: write - as PAYLOAD")
        if whole and payload != notifying.STDIN:
            raise UsageProblem("--whole is for stdin: write - as PAYLOAD")
        if lines:
            request = streaming.Request(
                Stdin(),
                channel,
                schema,
                streaming.settings(batch, linger, durable=not ephemeral),
                streaming.keys(key, key_field),
                json,
                verbose,
            )
            with dsns.server(dsn) as place:
                connector = dsns.connects(place, driver_of(driver))
                code = streaming.stream(connector, request, signals)
            raise typer.Exit(code)
        text = notifying.whole_stdin() if whole else payload
        one = notifying.checked_message(channel, text)
        with dsns.server(dsn) as place:
            connector = dsns.connects(place, driver_of(driver))
            signals.run(notifying.notify(connector, one, schema, durable=not ephemeral))
        if json:
            typer.echo(json_format.dumps({"channel": channel, "bytes": one.size}))
        elif verbose:
            say(f"sent {one.size:,} byte{'' if one.size == 1 else 's'} to {channel}")


app.command("doctor", epilog=doctoring.EPILOG)(doctoring.doctor)
app.command("top", epilog=topping.EPILOG)(topping.top)
app.add_typer(schemas.commands, name="schema")
app.add_typer(triggering.commands, name="trigger")
app.add_typer(logs.commands, name="log")


@app.command(epilog=EXIT_CODES)
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
    show_log(verbose)
    with reported() as signals:
        from pgnotifybus.cli.demo.command import Request
        from pgnotifybus.cli.demo.command import demo as run

        code = run(Request(dsns.given(dsn), driver_of(driver), seconds, json), signals)
        if signals.received not in (None, signal.SIGINT):
            code = 128 + signals.received
    raise typer.Exit(code)
