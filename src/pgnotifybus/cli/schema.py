"""`pgnotifybus schema`: install, remove and tidy what the library keeps in the database.
Layer: cli.
"""

from __future__ import annotations

import contextlib
import json as json_format
import re
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Annotated, Final, Literal, NamedTuple, TypeVar

import typer

from pgnotifybus import schema as schemas
from pgnotifybus.cli import dsn as dsns
from pgnotifybus.cli.options import (
    EXIT_CODES,
    SERVER,
    DriverOption,
    DsnOption,
    LockTimeoutOption,
    ResultOption,
    SchemaOption,
    VerboseOption,
    driver_of,
    show_log,
)
from pgnotifybus.cli.outcomes import UsageProblem, reported
from pgnotifybus.cli.render import printable
from pgnotifybus.core.names import SCHEMA, quote
from pgnotifybus.database.sidelink import SideLink
from pgnotifybus.links.base import Runner
from pgnotifybus.links.sources import Connector, Driver
from pgnotifybus.log.appending import MAX_EVENT_BYTES
from pgnotifybus.schema.installing import retention_of

T = TypeVar("T")

commands = typer.Typer()

_EPILOG: Final = f"{SERVER}\n\n{EXIT_CODES}"

_RETENTION: Final = timedelta(hours=1)
_SIZES: Final = ("B", "kB", "MB", "GB", "TB")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_TIMEOUT: Final = 10.0  # seconds

_THERE: Final = """\
SELECT pg_catalog.count(*)::text FROM pg_catalog.pg_namespace WHERE nspname = CAST($1 AS text)"""

RetentionOption = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="How long payloads are kept: 90s, 15m, 1h, 7d. At first 1h, later what it was.",
        show_default=False,
    ),
]


SqlRetentionOption = Annotated[
    str | None,
    typer.Option(
        "--retention",
        metavar="TIME",
        help="How long payloads are kept: 90s, 15m, 1h, 7d. Without it, 1h.",
        show_default=False,
    ),
]


EventRetentionOption = Annotated[
    str | None,
    typer.Option(
        "--event-retention",
        metavar="TIME",
        help="How long events of the log are kept: 90s, 15m, 1h, 7d, or forever. At first 7d; "
        "without it, as it is.",
        show_default=False,
    ),
]

EventSizeOption = Annotated[
    str | None,
    typer.Option(
        "--event-size",
        metavar="SIZE",
        help="How much of the log is kept: 500MB, 10GB, or unlimited. At first unlimited; without "
        "it, as it is.",
        show_default=False,
    ),
]

EventLimitOption = Annotated[
    str | None,
    typer.Option(
        "--event-limit",
        metavar="SIZE",
        help="The largest payload of an event: 64kB, 16MB. At first 16MB; without it, as it is.",
        show_default=False,
    ),
]


@commands.callback(invoke_without_command=True, epilog=_EPILOG)
def _schema(context: typer.Context) -> None:
    """Install, remove and tidy what is kept in the database: large payloads, and the event log."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@commands.command("install", epilog=_EPILOG)
def _install_command(
    schema: SchemaOption = SCHEMA,
    retention: RetentionOption = None,
    event_retention: EventRetentionOption = None,
    event_size: EventSizeOption = None,
    event_limit: EventLimitOption = None,
    lock_timeout: LockTimeoutOption = 2.0,
    json: ResultOption = False,
    dsn: DsnOption = None,
    driver: DriverOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Make the tables, or change what they keep; where all is as it should be, do nothing.

    Needs the right to CREATE in the database, or the schema's owner.

    `pgnotifybus schema install --retention 7d`
    """
    show_log(verbose)
    with reported() as signals:
        kept = parsed_kept(retention, event_retention, event_size, event_limit)
        sql(schema, kept)  # says what is wrong with them before a server is looked for
        with dsns.server(dsn) as place:
            connector = dsns.connects(place, driver_of(driver))
            where = Place(place, driver_of(driver), schema)
            work = install(where, connector, kept, lock_timeout)
            _tell(signals.run(work), json)


@commands.command("sql", epilog=EXIT_CODES)
def _sql_command(
    schema: SchemaOption = SCHEMA,
    retention: SqlRetentionOption = None,
    event_retention: EventRetentionOption = None,
    event_size: EventSizeOption = None,
    event_limit: EventLimitOption = None,
) -> None:
    """Print what install runs, for migrations of your own; needs no server.

    `pgnotifybus schema sql | psql --single-transaction`
    """
    with reported():
        kept = parsed_kept(retention, event_retention, event_size, event_limit)
        typer.echo(sql(schema, kept), nl=False)


@commands.command("remove", epilog=_EPILOG)
def _remove_command(
    schema: SchemaOption = SCHEMA,
    lock_timeout: LockTimeoutOption = 2.0,
    json: ResultOption = False,
    dsn: DsnOption = None,
    driver: DriverOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Drop the tables with all payloads and events, and the schema if nothing else is in it.

    It asks nothing, but refuses while triggers append to the event log.
    """
    show_log(verbose)
    with reported() as signals:
        checked_name(schema)
        with dsns.server(dsn) as place:
            connector = dsns.connects(place, driver_of(driver))
            where = Place(place, driver_of(driver), schema)
            _tell(signals.run(remove(where, connector, lock_timeout)), json)


@commands.command("prune", epilog=_EPILOG)
def _prune_command(
    schema: SchemaOption = SCHEMA,
    json: ResultOption = False,
    dsn: DsnOption = None,
    driver: DriverOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Delete the payloads whose retention is over.

    Whoever listens to such payloads does it anyhow; this is for where nobody does.
    """
    show_log(verbose)
    with reported() as signals:
        checked_name(schema)
        with dsns.server(dsn) as place:
            dsns.connects(place, driver_of(driver))
            where = Place(place, driver_of(driver), schema)
            _tell(signals.run(prune(where)), json)


def _tell(done: Done, json: bool) -> None:
    typer.echo(json_format.dumps(done.fields) if json else printable(done.said))


# -- what they do ---------------------------------------------------------------------------------


class Done(NamedTuple):
    """What a command has done."""

    said: str
    """For people."""
    fields: dict[str, object]
    """For programs."""


class Place(NamedTuple):
    """Which schema, and where."""

    dsn: str
    driver: Driver | None
    schema: str


class Kept(NamedTuple):
    """What is to be kept; None for what may be as it is."""

    retention: timedelta | None = None
    event_retention: timedelta | Literal["forever"] | None = None
    event_size: int | Literal["unlimited"] | None = None
    event_limit: int | None = None


def parsed_kept(
    retention: str | None,
    event_retention: str | None,
    event_size: str | None,
    event_limit: str | None,
) -> Kept:
    """Understand the options.

    Raises:
        UsageProblem: If one of them cannot be understood.
    """
    forever: Literal["forever"] = "forever"
    events = (
        forever
        if event_retention == forever
        else parsed_retention(event_retention, "--event-retention", ", or forever")
    )
    unlimited: Literal["unlimited"] = "unlimited"
    size = (
        unlimited
        if event_size == unlimited
        else parsed_size(event_size, "--event-size", ", or be unlimited")
    )
    limit = parsed_size(event_limit, "--event-limit")
    return Kept(parsed_retention(retention), events, size, limit)


def parsed_size(text: str | None, option: str, other: str = "") -> int | None:
    """How many bytes `500MB` or `10GB` are, as PostgreSQL counts them; None if it is not said.

    Raises:
        UsageProblem: If it is written in another way.
    """
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,18})(B|kB|MB|GB|TB)?", text)
    if found is None:
        raise UsageProblem(f"{option} must look like 64kB, 500MB or 10GB{other}, not {text!r}")
    return int(found[1]) * int(1024 ** _SIZES.index(found[2] or "B"))


def parsed_retention(
    text: str | None, option: str = "--retention", other: str = ""
) -> timedelta | None:
    """How long `90s`, `15m`, `1h` or `7d` is; None if it is not said.

    Raises:
        UsageProblem: If it is written in another way, or nothing can be kept that long.
    """
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]+)([smhd])", text)
    if found is None:
        raise UsageProblem(f"{option} must look like 90s, 15m, 1h or 7d{other}, not {text!r}")
    try:
        return timedelta(**{_UNITS[found[2]]: int(found[1])})
    except (OverflowError, ValueError):
        raise UsageProblem(f"{option} is too long: {text[:20]}") from None


def checked_name(name: str) -> str:
    """The name, if a schema can have it.

    Raises:
        UsageProblem: If it cannot; the message says why.
    """
    sql(name, Kept())
    return name


def sql(schema: str, kept: Kept) -> str:
    """The statements that install it.

    Raises:
        UsageProblem: If the name cannot be a schema, or the retention is under a second.
    """
    with _asked_rightly():
        return schemas.sql(
            schema=schema,
            retention=kept.retention or _RETENTION,
            event_retention=kept.event_retention,
            event_size=kept.event_size,
            event_limit=MAX_EVENT_BYTES if kept.event_limit is None else kept.event_limit,
        )


async def install(place: Place, connector: Connector, kept: Kept, lock_timeout: float) -> Done:
    """Install or upgrade it.

    Raises:
        UsageProblem: If an argument is out of range.
        SchemaError, ConnectError, FatalLinkError, LinkLost: As `pgnotifybus.schema.install`.
    """
    with _asked_rightly():
        changed = await schemas.install(
            place.dsn,
            schema=place.schema,
            retention=kept.retention,
            event_retention=kept.event_retention,
            event_size=kept.event_size,
            event_limit=kept.event_limit,
            lock_timeout=lock_timeout,
            driver=place.driver,
        )
    seconds = await _asked(connector, lambda runner: retention_of(runner, place.schema))
    said = "installed" if changed else "nothing to do"
    return Done(
        f"{said}: schema {place.schema}, version {schemas.VERSION}, payloads are kept for "
        f"{seconds or 0:,} s",
        {
            "schema": place.schema,
            "changed": changed,
            "version": schemas.VERSION,
            "retention": seconds,
        },
    )


async def remove(place: Place, connector: Connector, lock_timeout: float) -> Done:
    """Drop it, and say what was dropped.

    Raises:
        UsageProblem: If an argument is out of range.
        SchemaError, ConnectError, FatalLinkError, LinkLost: As `pgnotifybus.schema.remove`.
    """
    with _asked_rightly():
        removed = await schemas.remove(
            place.dsn, schema=place.schema, lock_timeout=lock_timeout, driver=place.driver
        )
    left = await _asked(connector, lambda runner: _is_there(runner, place.schema))
    tables = f"all tables of pgnotifybus in {quote(place.schema)}"
    if not removed:
        said = f"nothing to do: there is no schema {place.schema}"
    elif left:
        said = f"dropped {tables}; the schema stays, as something else is in it"
    else:
        said = f"dropped {tables}, and the schema"
    return Done(
        said,
        {"schema": place.schema, "removed": removed, "schema_dropped": removed and not left},
    )


async def prune(place: Place) -> Done:
    """Delete the payloads whose retention is over.

    Raises:
        UsageProblem: If the name cannot be a schema.
        SchemaError, ConnectError, FatalLinkError, LinkLost: As `pgnotifybus.schema.prune`.
    """
    with _asked_rightly():
        deleted = await schemas.prune(place.dsn, schema=place.schema, driver=place.driver)
    return Done(
        f"deleted {deleted:,} payload{'' if deleted == 1 else 's'} from schema {place.schema}",
        {"schema": place.schema, "deleted": deleted},
    )


async def _is_there(runner: Runner, schema: str) -> bool:
    [(count,)] = await runner.fetch(_THERE, schema)
    return count != "0"


async def _asked(connector: Connector, ask: Callable[[Runner], Awaitable[T]]) -> T:
    """Ask the server something, over a connection of its own."""
    side = SideLink(connector, part="schema", connect_timeout=_TIMEOUT, timeout=_TIMEOUT)
    try:
        async with side.use() as runner:
            return await ask(runner)
    finally:
        await side.close()


@contextlib.contextmanager
def _asked_rightly() -> Iterator[None]:
    """Tell of an argument that is out of range as of bad usage."""
    try:
        yield
    except ValueError as error:
        raise UsageProblem(str(error)) from None
