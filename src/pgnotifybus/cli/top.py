"""`pgnotifybus top`: how a server is doing, again and again. Layer: cli."""

from __future__ import annotations

import asyncio
import contextlib
import json as json_format
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pgnotifybus.cli import dsn as dsns
from pgnotifybus.cli import schema as schemas
from pgnotifybus.cli.log.show import written
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
from pgnotifybus.cli.outcomes import OK, reported
from pgnotifybus.cli.output import Output
from pgnotifybus.cli.render import printable
from pgnotifybus.core.health import QUEUE_WARNING
from pgnotifybus.core.names import SCHEMA
from pgnotifybus.database.sidelink import SideLink
from pgnotifybus.diagnosis.glance import Glance, Session, look
from pgnotifybus.errors import LinkError
from pgnotifybus.links.base import Connector, ServerError

_TIMEOUT: Final = 10.0
_ROWS: Final = 10
"""Of each kind, on a terminal."""

EPILOG: Final = f"{SERVER}\n\n{EXIT_CODES}"


def top(
    interval: Annotated[
        float, typer.Option(min=0.05, metavar="SECONDS", help="How often to look.")
    ] = 2.0,
    count: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="End after N looks.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a look.")] = False,
    schema: SchemaOption = SCHEMA,
    dsn: DsnOption = None,
    driver: DriverOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Watch the notification queue, who listens, who is stuck, and the consumers of the event log.

    On a terminal one picture that changes; otherwise, one line a look. It goes on while the server
    is away. `pgnotifybus doctor` says what to do about what is seen here.

    `pgnotifybus top`

    `pgnotifybus top --json --count 1`
    """
    show_log(verbose)
    with reported() as signals:
        schemas.checked_name(schema)
        with dsns.server(dsn) as place:
            connector = dsns.connects(place, driver_of(driver))
            signals.run(_watch(connector, schema, interval, count, json))
    raise typer.Exit(OK)


async def _watch(
    connector: Connector, schema: str, interval: float, count: int | None, json: bool
) -> None:
    looks = _looks(connector, schema, interval, count)
    console = Console(highlight=False)
    if json or not console.is_terminal:
        async with Output() as output, contextlib.aclosing(looks):
            async for seen in looks:
                line = json_format.dumps(_fields(seen)) if json else _line(seen)
                if not await written(output, [line]):
                    return
        return
    with Live(console=console, auto_refresh=False) as live:
        async with contextlib.aclosing(looks):
            async for seen in looks:
                live.update(_picture(seen), refresh=True)


async def _looks(
    connector: Connector, schema: str, interval: float, count: int | None
) -> AsyncGenerator[Glance | str, None]:
    """What is seen, or why nothing is; the first look must succeed."""
    side = SideLink(connector, part="top", connect_timeout=_TIMEOUT, timeout=_TIMEOUT)
    number = 0
    try:
        while True:
            try:
                async with side.use() as runner:
                    seen: Glance | str = await look(runner, schema)
            except (LinkError, ServerError) as error:
                if not number and isinstance(error, LinkError):
                    raise
                seen = str(error)
            yield seen
            number += 1
            if number == count:
                return
            await asyncio.sleep(interval)
    finally:
        await side.close()


def _fields(seen: Glance | str) -> dict[str, Any]:
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    if isinstance(seen, str):
        return {"time": time, "error": seen}
    return {
        "time": time,
        **seen._asdict(),
        "listeners": [each._asdict() for each in seen.listeners],
        "stuck": [each._asdict() for each in seen.stuck],
        "consumers": seen.consumers and [each._asdict() for each in seen.consumers],
    }


def _line(seen: Glance | str) -> str:
    time = datetime.now().astimezone().strftime("%H:%M:%S")
    if isinstance(seen, str):
        return f"{time}  {printable(seen)}"
    behind = sum(each.events or 0 for each in seen.consumers or ())
    return (
        f"{time}  queue {seen.queue_usage:.1%}  waiting {seen.waiting}  listeners "
        f"{len(seen.listeners)}  stuck {len(seen.stuck)}  pacemaker "
        f"{'awake' if seen.pacemaker else 'asleep'}  consumers {len(seen.consumers or ())}, "
        f"{behind:,} events behind"
    )


def _picture(seen: Glance | str) -> RenderableType:
    time = datetime.now().astimezone().strftime("%H:%M:%S")
    if isinstance(seen, str):
        return Text(f"{time}  {printable(seen)}", style="red")
    style = "red" if seen.queue_usage >= QUEUE_WARNING else ""
    head = Text(f"{time}  notification queue ")
    head.append(f"{seen.queue_usage:.1%}", style=style)
    head.append(f"  commits waiting for its lock {seen.waiting}", "red" if seen.waiting else "")
    head.append(f"  pacemaker {'awake' if seen.pacemaker else 'asleep'}")
    parts: list[RenderableType] = [head, Text()]
    parts += _sessions("listens", seen.listeners)
    parts += _sessions("stuck", seen.stuck)
    if seen.consumers is not None:
        table = Table(box=None, pad_edge=False)
        for name in ("consumer", "works", "events behind", "for", "attempts", "dead letters"):
            table.add_column(name)
        for each in seen.consumers[:_ROWS]:
            table.add_row(
                printable(each.name),
                "yes" if each.active else "no",
                "expired" if each.events is None else f"{each.events:,}",
                "" if each.seconds is None else f"{each.seconds:,.0f} s",
                str(each.attempts),
                str(each.dead_letters),
            )
        if seen.consumers:
            parts += [table, *_more(len(seen.consumers))]
    return Group(*parts)


def _sessions(what: str, sessions: list[Session]) -> list[RenderableType]:
    if not sessions:
        return []
    table = Table(box=None, pad_edge=False)
    for name in (what, "application", "database", "state", "for"):
        table.add_column(name)
    for each in sessions[:_ROWS]:
        table.add_row(
            str(each.pid),
            printable(each.application),
            printable(each.database),
            each.state,
            f"{each.seconds:,} s",
        )
    return [table, *_more(len(sessions)), Text()]


def _more(count: int) -> list[RenderableType]:
    return [Text(f"and {count - _ROWS} more", style="dim")] if count > _ROWS else []
