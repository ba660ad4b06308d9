"""`pgnotifybus log consumers`: how consumers are, and what to do about them. Layer: cli."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import AsyncIterator
from typing import Annotated, NamedTuple

import typer

from pgnotifybus.cli import dsn as dsns
from pgnotifybus.cli import listen as listening
from pgnotifybus.cli import schema as schemas
from pgnotifybus.cli.log.options import EPILOG, LinesOption, LogSchemaOption
from pgnotifybus.cli.log.places import beginning_there, parsed_place
from pgnotifybus.cli.log.show import (
    counted,
    duration,
    fields_of,
    json_line,
    moment,
    printed,
    tabbed,
    table,
)
from pgnotifybus.cli.options import (
    DriverOption,
    DsnOption,
    ResultOption,
    VerboseOption,
    driver_of,
    show_log,
)
from pgnotifybus.cli.outcomes import CommandFailed, UsageProblem, reported, say
from pgnotifybus.cli.render import printable
from pgnotifybus.core.names import SCHEMA, check_channel
from pgnotifybus.errors import CursorExpired, EpochMismatch
from pgnotifybus.links.sources import Driver
from pgnotifybus.log.consumer import Consumer
from pgnotifybus.log.event_log import After, EventLog
from pgnotifybus.log.ledger import ConsumerState, DeadLetter, Dropped
from pgnotifybus.log.reading import Lag

commands = typer.Typer()

_ADVICE = "beginning is the oldest event that is kept, now is behind all of them"

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The name of the consumer.")]


class Place(NamedTuple):
    """Which log, and where."""

    dsn: str
    driver: Driver | None
    schema: str


@commands.callback(invoke_without_command=True, epilog=EPILOG)
def _list(
    context: typer.Context,
    json: LinesOption = False,
    schema: LogSchemaOption = SCHEMA,
    dsn: DsnOption = None,
    driver: DriverOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Show all consumers: how far behind they are, and what has failed.

    `pgnotifybus log consumers`

    `pgnotifybus log consumers --json | jq -r 'select(.dead_letters > 0) | .name'`

    `pgnotifybus log consumers replay billing`
    """
    show_log(verbose)
    command = context.invoked_subcommand
    with reported() as signals:
        if command is not None:
            # Options that are not handed on would have it done somewhere else.
            if json or dsn is not None or driver is not None or schema != SCHEMA:
                raise UsageProblem(f"write options behind {command}, not in front of it")
            return
        listening.check_stdout()
        schemas.checked_name(schema)
        with dsns.server(dsn) as place:
            dsns.connects(place, driver_of(driver))
            where = Place(place, driver_of(driver), schema)
            signals.run(_show(where, json=json))


@commands.command("dead", epilog=EPILOG)
def _dead_command(
    name: NameArgument,
    json: LinesOption = False,
    schema: LogSchemaOption = SCHEMA,
    dsn: DsnOption = None,
    driver: DriverOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Show the dead letters of a consumer: events that have failed too often.

    A line is when it was given up, the channel, the id, the key, the payload, and why, with tabs in
    between.

    `pgnotifybus log consumers dead billing`
    """
    show_log(verbose)
    with reported() as signals:
        listening.check_stdout()
        _checked(name, schema)
        with dsns.server(dsn) as place:
            dsns.connects(place, driver_of(driver))
            where = Place(place, driver_of(driver), schema)
            signals.run(_show_dead(where, name, json=json))


@commands.command("replay", epilog=EPILOG)
def _replay_command(
    name: NameArgument,
    ids: Annotated[
        list[int] | None,
        typer.Argument(metavar="[ID]...", help="Of dead letters; none for all of them."),
    ] = None,
    json: ResultOption = False,
    schema: LogSchemaOption = SCHEMA,
    dsn: DsnOption = None,
    driver: DriverOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Have dead letters tried again, by the consumer when it runs.

    Those that succeed are dead letters no more; those that fail again stay.

    `pgnotifybus log consumers replay billing 17 23`
    """
    show_log(verbose)
    with reported() as signals:
        _checked(name, schema)
        with dsns.server(dsn) as place:
            dsns.connects(place, driver_of(driver))
            where = Place(place, driver_of(driver), schema)
            replayed = signals.run(_replay(where, name, ids or []))
        said = f"{counted(replayed, 'dead letter')} of {name} will be tried again"
        _tell(said, {"name": name, "replayed": replayed}, json=json)


@commands.command("seek", epilog=EPILOG)
def _seek_command(
    name: NameArgument,
    where: Annotated[
        str,
        typer.Argument(
            metavar="WHERE",
            help="beginning, now, a time, how long ago (15m, 7d), or a cursor, to go on after.",
        ),
    ],
    json: ResultOption = False,
    schema: LogSchemaOption = SCHEMA,
    dsn: DsnOption = None,
    driver: DriverOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Let a consumer go on from another place; failed attempts are forgotten.

    Waits for a batch that is open.

    `pgnotifybus log consumers seek billing beginning`

    `pgnotifybus log consumers seek billing 2026-01-31T12:00:00Z`
    """
    show_log(verbose)
    with reported() as signals:
        _checked(name, schema)
        after = parsed_place(where, "WHERE")
        with dsns.server(dsn) as place:
            dsns.connects(place, driver_of(driver))
            asked = Place(place, driver_of(driver), schema)
            signals.run(_seek(asked, name, after))
        _tell(f"{name} goes on after {where}", {"name": name, "after": where}, json=json)


@commands.command("drop", epilog=EPILOG)
def _drop_command(
    name: NameArgument,
    json: ResultOption = False,
    schema: LogSchemaOption = SCHEMA,
    dsn: DsnOption = None,
    driver: DriverOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Forget a consumer, with its dead letters. It asks nothing.

    Waits for a batch that is open. Where there is no such consumer, it does nothing.

    `pgnotifybus log consumers drop billing`
    """
    show_log(verbose)
    with reported() as signals:
        _checked(name, schema)
        with dsns.server(dsn) as place:
            dsns.connects(place, driver_of(driver))
            where = Place(place, driver_of(driver), schema)
            dropped = signals.run(_drop(where, name))
        said = f"dropped: {name}" if dropped else f"nothing to do: there is no consumer {name}"
        _tell(said, {"name": name, "dropped": dropped}, json=json)


# -- what they do ---------------------------------------------------------------------------------


class _Shown(NamedTuple):
    """How a consumer is."""

    state: ConsumerState
    lag: Lag | None
    """None if it cannot go on from where it is."""
    stuck: str | None
    """Why not: `"expired"` or `"epoch"`."""


async def _show(place: Place, *, json: bool) -> None:
    async with opened(place) as log:
        found = [shown for state in await log.consumers() if (shown := await _look(log, state))]
    if json:
        await printed(json_line(_fields(each)) for each in found)
    elif found:
        await printed(table(_HEAD, [_row(each) for each in found]))
    else:
        say("the log has no consumer")


async def _look(log: EventLog, state: ConsumerState) -> _Shown | None:
    """How a consumer is; None if it was dropped meanwhile."""
    try:
        lag = await log.consumer(state.name, *state.channels).lag()
    except Dropped:
        return None
    except CursorExpired:
        return _Shown(state, None, "expired")
    except EpochMismatch:
        return _Shown(state, None, "epoch")
    return _Shown(state, lag, None)


_STUCK = {
    "expired": "retention has deleted what it should read next: seek",
    "epoch": "it is of another log: seek",
}
_HEAD = ("NAME", "CHANNELS", "ACTIVE", "EVENTS", "BEHIND", "ATTEMPTS", "DEAD", "LAST ERROR")


def _row(shown: _Shown) -> tuple[str, ...]:
    state, lag = shown.state, shown.lag
    return (
        state.name,
        ", ".join(state.channels),
        "yes" if state.active else "no",
        "?" if lag is None else f"{lag.events:,}",
        "?" if lag is None else duration(lag.seconds),
        str(state.attempts),
        f"{state.dead_letters:,}",
        state.error or "" if shown.stuck is None else _STUCK[shown.stuck],
    )


def _fields(shown: _Shown) -> dict[str, object]:
    state, lag = shown.state, shown.lag
    return {
        "name": state.name,
        "channels": state.channels,
        "active": state.active,
        "lag_events": None if lag is None else lag.events,
        "lag_seconds": None if lag is None else round(lag.seconds, 3),
        "stuck": shown.stuck,
        "attempts": state.attempts,
        "error": state.error,
        "dead_letters": state.dead_letters,
        "cursor": str(state.cursor),
        "updated_at": state.updated_at.isoformat(),
    }


async def _show_dead(place: Place, name: str, *, json: bool) -> None:
    async with opened(place) as log:
        letters = await (await _found(log, name)).dead_letters()
    await printed(_letter(each, json=json) for each in letters)
    if not letters and not json:
        say(f"{name} has no dead letter")


def _letter(letter: DeadLetter, *, json: bool) -> str:
    event = letter.event
    if json:
        return json_line(
            {
                "type": "dead_letter",
                **fields_of(event),
                "attempts": letter.attempts,
                "error": letter.error,
                "died_at": letter.died_at.isoformat(),
                "replay": letter.replay,
            }
        )
    again = "; is about to be tried again" if letter.replay else ""
    return tabbed(
        moment(letter.died_at),
        event.channel,
        str(event.id),
        event.key or "",
        event.payload,
        f"{counted(letter.attempts, 'attempt')}: {letter.error}{again}",
    )


async def _replay(place: Place, name: str, ids: list[int]) -> int:
    async with opened(place) as log:
        consumer = await _found(log, name)
        if ids:
            dead = {letter.event.id for letter in await consumer.dead_letters()}
            missing = [str(each) for each in ids if each not in dead]
            if missing:
                raise CommandFailed(
                    f"{name} has no dead letter {', '.join(missing)}, so none will be tried again: "
                    f"`pgnotifybus log consumers dead {shlex.quote(name)}` shows them"
                )
        return await consumer.replay(*ids)


async def _seek(place: Place, name: str, after: After) -> None:
    async with opened(place) as log:
        consumer = await _found(log, name)
        with beginning_there(_ADVICE):
            await consumer.seek(after)


async def _drop(place: Place, name: str) -> bool:
    async with opened(place) as log:
        # Of which channels it is makes no difference, and it may not be there.
        return await log.consumer(name, name).drop()


async def _found(log: EventLog, name: str) -> Consumer:
    """A consumer that is there, to ask about; it is not entered, so nothing becomes of it.

    Raises:
        CommandFailed: If there is none of this name.
    """
    states = await log.consumers()
    for state in states:
        if state.name == name:
            return log.consumer(name, *state.channels)
    there = ", ".join(state.name for state in states) or "none"
    raise CommandFailed(f"there is no consumer {name}; there is {there}")


@contextlib.asynccontextmanager
async def opened(place: Place) -> AsyncIterator[EventLog]:
    """The log, of which this process only looks at what is there."""
    async with EventLog(
        place.dsn, schema=place.schema, driver=place.driver, pacemaker=False, prune=False
    ) as log:
        yield log


def _checked(name: str, schema: str) -> None:
    if "://" in name and name.startswith("postgres"):
        raise UsageProblem("a DSN stands where a name should: write --dsn in front of it")
    check_channel(name)  # the same rules
    schemas.checked_name(schema)


def _tell(said: str, fields: dict[str, object], *, json: bool) -> None:
    typer.echo(json_line(fields) if json else printable(said))
