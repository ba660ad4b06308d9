"""`pgnotifybus trigger`: install, print, list and remove triggers that tell of changes. Layer: cli.

`app` adds these commands to the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json as json_format
import re
from collections.abc import Iterator
from typing import Annotated, NamedTuple

import typer

from pgnotifybus import triggers
from pgnotifybus.cli import dsn as dsns
from pgnotifybus.cli import notify as notifying
from pgnotifybus.cli.options import (
    EXIT_CODES,
    SERVER,
    DriverOption,
    DsnOption,
    LockTimeoutOption,
    ResultOption,
    VerboseOption,
    driver_of,
    show_log,
)
from pgnotifybus.cli.outcomes import UsageProblem, reported, say
from pgnotifybus.cli.render import printable
from pgnotifybus.core import trigger_plan
from pgnotifybus.core.names import SCHEMA, quote
from pgnotifybus.core.trigger_body import Definition
from pgnotifybus.core.trigger_plan import Wish
from pgnotifybus.core.trigger_sql import split_names
from pgnotifybus.triggers import InstalledTrigger

commands = typer.Typer()

_EPILOG = f"{SERVER}\n\n{EXIT_CODES}"

_PLAIN = re.compile("[a-z_][a-z0-9_]*")

TableArgument = Annotated[
    str,
    typer.Argument(
        metavar="TABLE", help="Named as a statement would: orders, shop.orders, '\"Orders\"'."
    ),
]
ChannelOption = Annotated[
    str, typer.Option("--channel", metavar="CH", help="The channel to tell, in exact spelling.")
]
ColumnsOption = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="A,B",
        help="The columns that matter: their values are told too, and an UPDATE that changes none "
        "of them is not. Without it every UPDATE is told, by its keys.",
        show_default=False,
    ),
]
WhenOption = Annotated[
    str | None,
    typer.Option(
        "--when",
        metavar="SQL",
        help="Tell only of rows that meet this condition on their columns.",
        show_default=False,
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="A,B",
        help="The columns that tell rows apart; without it, the primary key.",
        show_default=False,
    ),
]
NoKeyOption = Annotated[
    bool, typer.Option("--no-key", help="Tell only that the table has changed, and no rows.")
]
LogOption = Annotated[
    bool,
    typer.Option(
        "--log",
        help="Write each changed row into the event log, instead of notifying. Whoever writes to "
        "the table needs USAGE on the schema of the log, and INSERT and SELECT on its events.",
    ),
]
SchemaOption = Annotated[
    str | None,
    typer.Option(
        "--schema",
        metavar="NAME",
        help=f"With --log: the schema of the event log; without it, {SCHEMA}.",
        show_default=False,
    ),
]


@commands.callback(invoke_without_command=True, epilog=_EPILOG)
def _trigger(context: typer.Context) -> None:
    """Tell a channel, or an event log, which rows of a table have changed."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@commands.command("install", epilog=_EPILOG)
def _install(
    table: TableArgument,
    channel: ChannelOption,
    columns: ColumnsOption = None,
    when: WhenOption = None,
    key: KeyOption = None,
    no_key: NoKeyOption = False,
    log: LogOption = False,
    schema: SchemaOption = None,
    lock_timeout: LockTimeoutOption = 2.0,
    json: ResultOption = False,
    dsn: DsnOption = None,
    driver: DriverOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Tell a channel from now on what changes in a table; where it is told already, do nothing.

    Each statement that changes rows is told once, as JSON, when its transaction commits:
    `{"schema":"public","table":"orders","op":"update","rows":[{"id":7}]}`

    With --log each row is an event of the event log, which `pgnotifybus schema install` makes. It
    is kept while nobody listens, and a statement whose rows cannot be logged fails.

    Needs the table's owner; or TRIGGER on the table, and CREATE on its schema.

    `pgnotifybus trigger install orders --channel orders`

    `pgnotifybus trigger install orders --channel orders --columns status --when "total > 100"`

    `pgnotifybus trigger install orders --channel orders --log`
    """
    show_log(verbose)
    with reported() as signals:
        wish = _wish(table, channel, _Asked(columns, when, key, no_key, log, schema))
        with dsns.server(dsn) as place:
            dsns.connects(place, driver_of(driver))
            with _asked_rightly():
                done = signals.run(
                    triggers.carry_out(
                        place, table, wish, lock_timeout=lock_timeout, driver=driver_of(driver)
                    )
                )
        fields = {"changed": done.changed, **dataclasses.asdict(done.definition)}
        said = "installed" if done.changed else "nothing to do"
        verb = "tells" if wish.log is None else "logs to"
        what = f"{_title(done.definition)} {verb} channel {wish.channel}"
        _tell(json, fields, f"{said}: {what}; {_told(done.definition)}")
        if done.partitioned:
            say(
                "note: this table has partitions, and statements that name one of them are not "
                "told: install it on the partitions too if there are such"
            )


@commands.command("sql", epilog=_EPILOG)
def _sql(
    table: TableArgument,
    channel: ChannelOption,
    columns: ColumnsOption = None,
    when: WhenOption = None,
    key: KeyOption = None,
    no_key: NoKeyOption = False,
    log: LogOption = False,
    schema: SchemaOption = None,
    dsn: DsnOption = None,
    driver: DriverOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Print what install runs, for migrations of your own; the table must be there.

    `pgnotifybus trigger sql orders --channel orders | psql --single-transaction`
    """
    show_log(verbose)
    with reported() as signals:
        wish = _wish(table, channel, _Asked(columns, when, key, no_key, log, schema))
        with dsns.server(dsn) as place:
            dsns.connects(place, driver_of(driver))
            script = signals.run(
                triggers.sql(
                    place,
                    table,
                    channel=wish.channel,
                    columns=wish.columns,
                    when=wish.when,
                    key=wish.key,
                    log=log,
                    schema=SCHEMA if schema is None else schema,
                    driver=driver_of(driver),
                )
            )
        typer.echo(script, nl=False)


@commands.command("list", epilog=_EPILOG)
def _list(
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    dsn: DsnOption = None,
    driver: DriverOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Show which tables of the database are told of, and to which channels.

    A line is the table, a tab, the channel, a tab, and what is told. What is not as install would
    make it is said to be stale, and what is left of tables that were dropped, orphaned.
    """
    show_log(verbose)
    with reported() as signals:
        with dsns.server(dsn) as place:
            dsns.connects(place, driver_of(driver))
            found = signals.run(triggers.list(place, driver=driver_of(driver)))
        for each in found:
            state = "" if each.state == "live" else f" ({_STATES[each.state]})"
            _tell(json, dataclasses.asdict(each), _title(each), each.channel, _told(each) + state)
        if not found and not json:
            say("no table of this database has a trigger of pgnotifybus")


@commands.command("remove", epilog=_EPILOG)
def _remove(
    table: TableArgument,
    channel: Annotated[
        str | None,
        typer.Option(
            "--channel",
            metavar="CH",
            help="Only this channel; without it, all that are told of the table.",
            show_default=False,
        ),
    ] = None,
    lock_timeout: LockTimeoutOption = 2.0,
    json: ResultOption = False,
    dsn: DsnOption = None,
    driver: DriverOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Tell no more what changes in a table. Needs the table's owner.

    `pgnotifybus trigger remove orders --channel orders`
    """
    show_log(verbose)
    with reported() as signals:
        _checked(table, channel)
        with dsns.server(dsn) as place:
            dsns.connects(place, driver_of(driver))
            with _asked_rightly():
                removed = signals.run(
                    triggers.remove(
                        place,
                        table,
                        channel=channel,
                        lock_timeout=lock_timeout,
                        driver=driver_of(driver),
                    )
                )
        on = table if channel is None else f"{table} for channel {channel}"
        said = (
            f"removed: what was told of {on}" if removed else f"nothing to do: no trigger on {on}"
        )
        _tell(json, {"table": table, "channel": channel, "removed": removed}, said)


# -- what they share ------------------------------------------------------------------------------

_STATES = {"stale": "stale: install it again", "orphaned": "orphaned: remove it"}


class _Asked(NamedTuple):
    """The options that say what to tell."""

    columns: str | None
    when: str | None
    key: str | None
    no_key: bool
    log: bool
    schema: str | None


def _wish(table: str, channel: str, asked: _Asked) -> Wish:
    _checked(table, channel)
    if asked.no_key and asked.key is not None:
        raise UsageProblem("--key and --no-key exclude each other")
    if asked.schema is not None and not asked.log:
        raise UsageProblem("--schema is that of the event log: write --log to write to it")
    with _asked_rightly():
        key = None if asked.key is None else split_names(asked.key)
        columns = None if asked.columns is None else split_names(asked.columns)
        key = () if asked.no_key else key
        log = None if not asked.log else SCHEMA if asked.schema is None else asked.schema
        return trigger_plan.wish(channel, columns, asked.when, key, log)


def _checked(table: str, channel: str | None) -> None:
    if "://" in table and table.startswith("postgres"):
        raise UsageProblem("a DSN stands where a table should: write --dsn in front of it")
    if channel is not None:
        notifying.checked_channels([channel])
    with _asked_rightly():
        trigger_plan.check_text("the name of a table", table)


@contextlib.contextmanager
def _asked_rightly() -> Iterator[None]:
    """Tell of an argument that is out of range as of bad usage."""
    try:
        yield
    except ValueError as error:
        raise UsageProblem(str(error)) from None


def _title(one: Definition | InstalledTrigger) -> str:
    """The table, as a statement would name it, and as the other commands take it."""
    names = (one.schema, one.table)
    return ".".join(name if _PLAIN.fullmatch(name) else quote(name) for name in names)


def _told(one: Definition | InstalledTrigger) -> str:
    parts = [f"key {', '.join(map(quote, one.key))}" if one.key else "no key"]
    if one.columns is not None:
        parts.append(f"columns {', '.join(map(quote, one.columns))}")
    if one.when is not None:
        parts.append(f"when {one.when}")
    if one.log is not None:
        parts.append(f"log {quote(one.log)}")
    return "; ".join(parts)


def _tell(json: bool, fields: dict[str, object], *said: str) -> None:
    typer.echo(json_format.dumps(fields) if json else "\t".join(map(printable, said)))
