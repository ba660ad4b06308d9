"""The commands of the log and their options. Layer: cli.

`app` adds these commands to the others.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from pgnotifybus.cli import dsn as dsns
from pgnotifybus.cli import listen as listening
from pgnotifybus.cli import notify as notifying
from pgnotifybus.cli import schema as schemas
from pgnotifybus.cli.log import append as appending
from pgnotifybus.cli.log import consumers, places, show
from pgnotifybus.cli.log import stream as streaming
from pgnotifybus.cli.log import tail as tailing
from pgnotifybus.cli.log.options import EPILOG, LogSchemaOption
from pgnotifybus.cli.options import (
    DriverOption,
    DsnOption,
    ResultOption,
    VerboseOption,
    driver_of,
    show_log,
)
from pgnotifybus.cli.outcomes import UsageProblem, reported
from pgnotifybus.cli.render import printable
from pgnotifybus.cli.stdin import Stdin
from pgnotifybus.core.names import SCHEMA
from pgnotifybus.log.describing import LogContents

commands = typer.Typer()
commands.add_typer(consumers.commands, name="consumers")


@commands.callback(invoke_without_command=True, epilog=EPILOG)
def _log(context: typer.Context) -> None:
    """Append to the event log, follow it, and look after it.

    `pgnotifybus schema install` makes it.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@commands.command("append", epilog=EPILOG)
def _append_command(
    channel: Annotated[
        str, typer.Argument(metavar="CHANNEL", help="The channel, in its exact spelling.")
    ],
    payload: Annotated[
        str,
        typer.Argument(
            metavar="PAYLOAD",
            help="What to append, at most 16 MiB; - appends each line of stdin. Without it, an "
            "empty payload is appended.",
            show_default=False,
        ),
    ] = "",
    whole: Annotated[
        bool,
        typer.Option(
            "--whole", help="With -, append all of stdin as one payload, less a line end."
        ),
    ] = False,
    key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="What it is about; of all lines.", show_default=False),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="What should go with it, with all lines; may be given again.",
            show_default=False,
        ),
    ] = None,
    json: ResultOption = False,
    schema: LogSchemaOption = SCHEMA,
    dsn: DsnOption = None,
    driver: DriverOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Append one event and print its id, or append each line of stdin.

    When it returns, the server has committed it.

    With `-` each line of stdin is appended as it comes, in order and many in one commit. A line
    ends with LF or CRLF; an empty one is an empty payload. While the server is away, lines wait;
    none is appended twice. A line that cannot be appended ends it, and the error says which lines
    are in the log. A signal ends it once what was taken is appended, or 3 seconds later.

    `pgnotifybus log append orders 'paid' --key 7 --header source=shop`

    `pgnotifybus log append orders - < events.jsonl`
    """
    show_log(verbose)
    with reported() as signals:
        notifying.checked_channels([channel])
        schemas.checked_name(schema)
        headers = places.parsed_headers(header or [])
        if whole and payload != notifying.STDIN:
            raise UsageProblem("--whole is for stdin: write - as PAYLOAD")
        appending.checked_event(channel, "", key, headers)  # the same for all lines
        if payload == notifying.STDIN and not whole:
            request = streaming.Request(Stdin(), channel, schema, key, headers, json, verbose)
            with dsns.server(dsn) as place:
                connector = dsns.connects(place, driver_of(driver))
                code = streaming.stream(connector, request, signals)
            raise typer.Exit(code)
        text = notifying.whole_stdin() if whole else payload
        event = appending.checked_event(channel, text, key, headers)
        with dsns.server(dsn) as place:
            connector = dsns.connects(place, driver_of(driver))
            new_id = signals.run(appending.append(connector, event, schema))
        fields: dict[str, object] = {"channel": channel, "id": new_id, "bytes": event.size}
        typer.echo(show.json_line(fields) if json else str(new_id))


@commands.command("tail", epilog=EPILOG)
def _tail_command(
    channels: Annotated[
        list[str],
        typer.Argument(metavar="CHANNEL", help="The channels, in their exact spelling."),
    ],
    after: Annotated[
        str,
        typer.Option(
            metavar="WHERE",
            help="Where to begin: beginning, now, a time (2026-01-31T12:00:00Z; without a zone, "
            "local), how long ago (15m, 7d), or a cursor.",
        ),
    ] = "now",
    gaps: Annotated[
        bool,
        typer.Option(
            "--gaps",
            help="Where retention has deleted events, or the cursor is of another log, print a "
            "gap and go on.",
        ),
    ] = False,
    count: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="End after N events.", show_default=False),
    ] = None,
    no_follow: Annotated[
        bool, typer.Option("--no-follow", help="Print what there is up to now, and end.")
    ] = False,
    json: Annotated[
        bool,
        typer.Option("--json", help="One JSON object a line, with the cursor to go on after."),
    ] = False,
    schema: LogSchemaOption = SCHEMA,
    dsn: DsnOption = None,
    driver: DriverOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Print each event on one line: every one that is committed, once.

    A line is the time of appending, the channel, the id, the key and the payload, with tabs in
    between; control characters are escaped. A line that begins with `--` and has no tab tells of a
    gap. What happens to the connection goes to stderr; no event is missing because of it.

    `pgnotifybus log tail orders jobs --after 1h`

    `pgnotifybus log tail orders --json --after "$(cat cursor)"`

    `pgnotifybus log tail orders --after beginning --no-follow | cut -f5`
    """
    show_log(verbose)
    with reported() as signals:
        notifying.checked_channels(channels)
        schemas.checked_name(schema)
        listening.check_stdout()
        begin = places.parsed_place(after, "--after")
        with dsns.server(dsn) as place:
            dsns.connects(place, driver_of(driver))
            request = tailing.Request(
                list(dict.fromkeys(channels)),
                begin,
                schema,
                driver_of(driver),
                json,
                gaps,
                count,
                not no_follow,
            )
            code = signals.run(tailing.tail(place, request))
    raise typer.Exit(code)


@commands.command("stats", epilog=EPILOG)
def _stats_command(
    json: Annotated[bool, typer.Option("--json", help="Print it as a JSON object.")] = False,
    schema: LogSchemaOption = SCHEMA,
    dsn: DsnOption = None,
    driver: DriverOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Show what is in the log: its channels, its size, and the cursor of now.

    Reads all of the log, so it takes its time.

    `pgnotifybus log stats`

    `pgnotifybus log stats --json | jq -r .cursor`
    """
    show_log(verbose)
    with reported() as signals:
        schemas.checked_name(schema)
        listening.check_stdout()
        with dsns.server(dsn) as place:
            dsns.connects(place, driver_of(driver))
            where = consumers.Place(place, driver_of(driver), schema)
            signals.run(_stats(where, json=json))


@commands.command("prune", epilog=EPILOG)
def _prune_command(
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Delete what is older than this, whatever the retention says: 90s, 15m, 1h, 7d; "
            "0s for all. Without it, what the retention says.",
            show_default=False,
        ),
    ] = None,
    json: ResultOption = False,
    schema: LogSchemaOption = SCHEMA,
    dsn: DsnOption = None,
    driver: DriverOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Delete events that need not be kept, and say how many.

    Whoever has the log open does it anyhow; this is for where nobody does. The age of an event
    counts from when one of these, or a prune, has first seen it, so where nobody does, prune now
    and then. A consumer, or a cursor, that has not read what is deleted is refused from then on.

    `pgnotifybus log prune --older-than 7d`
    """
    show_log(verbose)
    with reported() as signals:
        schemas.checked_name(schema)
        age = schemas.parsed_retention(older_than, "--older-than")
        with dsns.server(dsn) as place:
            dsns.connects(place, driver_of(driver))
            where = consumers.Place(place, driver_of(driver), schema)
            deleted = signals.run(_prune(where, age))
        said = f"deleted {show.counted(deleted, 'event')} from the log in schema {schema}"
        fields: dict[str, object] = {"schema": schema, "deleted": deleted}
        typer.echo(show.json_line(fields) if json else printable(said))


# -- what they do ---------------------------------------------------------------------------------


async def _stats(place: consumers.Place, *, json: bool) -> None:
    async with consumers.opened(place) as log:
        contents = await log.contents()
    lines = [show.json_line(_fields(contents))] if json else _table(contents)
    await show.printed(lines)


def _fields(contents: LogContents) -> dict[str, object]:
    return {
        "epoch": contents.epoch,
        "keep_seconds": None if contents.keep is None else int(contents.keep.total_seconds()),
        "keep_bytes": contents.keep_bytes,
        "table_bytes": contents.table_bytes,
        "events": contents.events,
        "cursor": str(contents.cursor),
        "channels": {
            name: {
                "events": each.events,
                "payload_bytes": each.payload_bytes,
                "oldest_at": each.oldest_at.isoformat(),
                "newest_at": each.newest_at.isoformat(),
            }
            for name, each in contents.channels.items()
        },
    }


def _table(contents: LogContents) -> list[str]:
    keep, most = contents.keep, contents.keep_bytes
    kept = "for ever" if keep is None else f"for {show.duration(keep.total_seconds())}"
    lines = [
        f"epoch      {contents.epoch}",
        f"kept       {kept}{'' if most is None else f', at most {show.size(most)}'}",
        f"on disk    {show.size(contents.table_bytes)}",
        f"events     {contents.events:,}",
        f"cursor     {contents.cursor}",
    ]
    rows = [
        (
            name,
            f"{each.events:,}",
            show.size(each.payload_bytes),
            show.moment(each.oldest_at),
            show.moment(each.newest_at),
        )
        for name, each in contents.channels.items()
    ]
    head = ("CHANNEL", "EVENTS", "PAYLOADS", "OLDEST", "NEWEST")
    return [*lines, "", *show.table(head, rows)] if rows else lines


async def _prune(place: consumers.Place, age: timedelta | None) -> int:
    async with consumers.opened(place) as log:
        return await log.prune(older_than=age)
