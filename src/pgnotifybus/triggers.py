"""Triggers that tell a channel, or an event log, which rows have changed. Layer: triggers.

::

    await triggers.install(source, "orders", channel="orders")
    await triggers.list(source)      # what is installed in this database
    await triggers.remove(source, "orders")

One notification for each statement that changes rows, sent when its transaction commits. The
payload is JSON: the keys of the rows, and the values of columns that you name. What does not fit
into a notification is told in fewer words, and the statement never fails because of it.

With `log=True` each row is an event of the event log instead: nothing is left out or lost, and a
statement whose rows cannot be logged fails.
`docs/howto/triggers.md` has all of it.
"""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from pgnotifybus.core import trigger_plan
from pgnotifybus.core.names import SCHEMA, check_channel
from pgnotifybus.core.trigger_body import Definition
from pgnotifybus.core.trigger_catalog import State
from pgnotifybus.core.trigger_plan import Wish
from pgnotifybus.database import triggers as database
from pgnotifybus.database.sidelink import one_connection
from pgnotifybus.errors import SchemaError
from pgnotifybus.links.base import Driver, Runner, ServerError
from pgnotifybus.links.sources import connector
from pgnotifybus.schema import ddl
from pgnotifybus.schema.checking import check_version

__all__ = ["InstalledTrigger", "install", "list", "remove", "sql"]

_TIMEOUT: Final = 60.0  # seconds that all of it may take, beside the wait for the table
_LONGEST_LOCK_TIMEOUT: Final = 2_000_000.0  # the server counts milliseconds, in 32 bits


@dataclass(frozen=True, slots=True)
class InstalledTrigger:
    """What a channel is told of a table, as it was found in the database."""

    schema: str
    """The schema of the table."""
    table: str
    """The name of the table, not quoted."""
    channel: str
    """The channel that is told."""
    key: tuple[str, ...]
    """The columns that name a row; none if all that is told is that the table has changed."""
    columns: tuple[str, ...] | None
    """The columns whose changes are told, with their values; None for every change, by its key."""
    when: str | None
    """The SQL condition that rows must meet to be told of."""
    state: State
    """`"live"`; `"stale"`: something of it was renamed, dropped, disabled or edited, or an older
    version has made it, so install it again; `"orphaned"`: the table is gone, remove it."""
    log: str | None = None
    """The schema of the event log that the changes are written to; None if they are notified."""


class Installation(NamedTuple):
    """What came of `carry_out`."""

    changed: bool
    definition: Definition
    partitioned: bool


async def install(
    source: object,
    table: str,
    *,
    channel: str,
    columns: Iterable[str] | None = None,
    when: str | None = None,
    key: Iterable[str] | None = None,
    log: bool = False,
    schema: str = SCHEMA,
    lock_timeout: float = 2.0,
    driver: Driver | None = None,
) -> bool:
    """Tell a channel from now on what changes in a table.

    Where all is as it should be, it only reads the catalog, and takes neither a lock on the table
    nor a transaction id: every process may call it when it starts. If several do at once, one of
    them installs it and none fails. What else was installed for this table and channel is replaced.

    Of a partitioned table, what is written to the table itself is told. Statements that name a
    partition fire only the triggers of that partition: install it there too if there are such.

    Args:
        source: Where to connect, as for `PgNotifyBus`. The role must own the table; or have
            TRIGGER on it, and CREATE on its schema.
        table: Its name, as a statement would have it: `orders`, `shop.orders`, `"Mixed Case"`.
        channel: The channel to tell. One table may tell several, and several tables one.
        columns: The columns that matter, in their exact spelling. Their values travel beside the
            key, and an UPDATE that changes none of them, and no key, is not told. None: every
            UPDATE is told, and only keys travel.
        when: An SQL condition on the columns of a row. What is told are the changes among the rows
            that meet it; a row that an UPDATE made meet it no more is told by its key alone. It
            runs with the rights of whoever writes to the table. What in it is not PostgreSQL's own
            needs the name of its schema.
        key: The columns that name a row, in their exact spelling. None: the primary key. Empty:
            tell only that the table has changed.
        log: Write each changed row into the event log, as one event of this channel, and notify
            nothing. Whoever writes to the table then needs USAGE on the schema of the log, and
            INSERT and SELECT on its `events`.
        schema: The schema of the event log.
        lock_timeout: The seconds to wait for those who write to the table, at most 2,000,000.
        driver: As for `PgNotifyBus`.

    Returns:
        Whether anything had to be changed.

    Raises:
        SchemaError: If there is no such table, column or primary key, or the server refuses; the
            message says what to do. Nothing is changed.
        SchemaMissing: If there is no event log to write to: `schema.install` makes it.
        InvalidChannel: If PostgreSQL cannot have a channel of this name.
        ConnectError, FatalLinkError: If there is no connection; nothing is changed.
        LinkLost: If the connection was lost meanwhile: call it again.
        ValueError: If an argument is out of range.

    Cancel safety: it is done wholly or not at all.
    """
    wish = trigger_plan.wish(channel, columns, when, key, _log(log, schema))
    done = await carry_out(source, table, wish, lock_timeout=lock_timeout, driver=driver)
    return done.changed


async def sql(
    source: object,
    table: str,
    *,
    channel: str,
    columns: Iterable[str] | None = None,
    when: str | None = None,
    key: Iterable[str] | None = None,
    log: bool = False,
    schema: str = SCHEMA,
    driver: Driver | None = None,
) -> str:
    """The statements that install it, for those who run their own migrations.

    The table is looked up, and nothing is changed. Running the statements twice does no harm. They
    hold no BEGIN and COMMIT, and belong into one transaction. After them, `install` with the same
    arguments finds nothing to do.

    Args:
        source: Where to connect, as for `PgNotifyBus`.
        table: As for `install`, and so are the others.

    Raises:
        SchemaError, SchemaMissing, InvalidChannel, ConnectError, FatalLinkError, LinkLost,
            ValueError: As for `install`.

    Cancel safety: nothing is changed.
    """
    wish = trigger_plan.wish(channel, columns, when, key, _log(log, schema))
    trigger_plan.check_text("table", table)
    async with _errand(source, driver, f"make a trigger for {table}") as runner:
        name = await database.resolve(runner, table)
        await runner.execute(database.BEGIN)
        task = await _plan(runner, name, wish)
        await database.check_condition(runner, task)
        await runner.execute("ROLLBACK")
    return task.script


async def remove(
    source: object,
    table: str,
    *,
    channel: str | None = None,
    lock_timeout: float = 2.0,
    driver: Driver | None = None,
) -> int:
    """Tell no more what changes in a table.

    It also drops what a table of this name has left that was dropped.

    Args:
        source: Where to connect, as for `PgNotifyBus`. The role must own the table.
        table: Its name, as for `install`.
        channel: Only this channel; None for all that are told of the table.
        lock_timeout: The seconds to wait for those who use the table, be it for reading.
        driver: As for `PgNotifyBus`.

    Returns:
        How many were removed: one for each channel, 0 if there was nothing to remove.

    Raises:
        SchemaError: If there is no such table, or the server refuses; nothing is changed.
        InvalidChannel, ConnectError, FatalLinkError, LinkLost, ValueError: As for `install`.

    Cancel safety: it is done wholly or not at all.
    """
    if channel is not None:
        check_channel(channel)
    trigger_plan.check_text("table", table)
    alone = database.alone(_checked(lock_timeout))
    async with _errand(source, driver, f"remove the trigger of {table}", lock_timeout) as runner:
        name = await database.resolve(runner, table)
        await runner.execute(database.BEGIN + alone)
        # Without a table, only what no table has; what others have may be of a newer version.
        found = await database.find(runner, name.oid or "0")
        gone = trigger_plan.to_drop(found, name.oid, name.schemas, name.table, channel)
        if name.oid is None and not gone:
            raise SchemaError(f"there is no table {table}")
        await runner.execute(f"{trigger_plan.to_remove(gone)}\nCOMMIT")
    return len(gone)


async def list(  # noqa: A001 - read as `triggers.list`
    source: object, *, driver: Driver | None = None
) -> builtins.list[InstalledTrigger]:
    """What is installed in this database, in the order of schema, table and channel.

    Args:
        source: Where to connect, as for `PgNotifyBus`.
        driver: As for `PgNotifyBus`.

    Raises:
        SchemaError: If the server refuses, or a newer version has installed some of it.
        ConnectError, FatalLinkError, LinkLost: As for `install`.

    Cancel safety: nothing is changed.
    """
    async with _errand(source, driver, "list the triggers") as runner:
        await runner.execute(database.BEGIN)
        found = await database.find(runner, None)
        await runner.execute("ROLLBACK")
    return sorted(
        (
            InstalledTrigger(
                schema=each.definition.schema,
                table=each.definition.table,
                channel=each.definition.channel,
                key=each.definition.key,
                columns=each.definition.columns,
                when=each.definition.when,
                state=each.state,
                log=each.definition.log,
            )
            for each in found
        ),
        key=lambda each: (each.schema, each.table, each.channel),
    )


# -- what install and the command line share ------------------------------------------------------


async def carry_out(
    source: object, table: str, wish: Wish, *, lock_timeout: float, driver: Driver | None
) -> Installation:
    """Install what is wished, and say what that is; raises as `install` does.

    Cancel safety: it is done wholly or not at all.
    """
    trigger_plan.check_text("table", table)
    alone = database.alone(_checked(lock_timeout))
    async with _errand(source, driver, f"install a trigger on {table}", lock_timeout) as runner:
        name = await database.resolve(runner, table)
        await runner.execute(database.BEGIN)
        task = await _plan(runner, name, wish)
        if task.statements is not None:
            await runner.execute(alone)
            # Whoever was in front may have done it all meanwhile.
            task = await _plan(runner, name, wish)
            await database.check_condition(runner, task)
        changes = "ROLLBACK" if task.statements is None else f"{task.statements}\nCOMMIT"
        await runner.execute(changes)
    return Installation(task.statements is not None, task.definition, task.table.partitioned)


async def _plan(runner: Runner, name: database.Name, wish: Wish) -> database.Task:
    """What is to be done; inside of a transaction.

    Raises:
        SchemaError, SchemaMissing, InvalidChannel: If the table cannot have what is wished.
    """
    task = await database.plan(runner, name, wish)
    if wish.log is not None:
        if task.table.schema == wish.log and task.table.name in ddl.TABLES:
            raise SchemaError(
                f"{task.table.title} is a table of the event log, which cannot log itself"
            )
        await check_version(runner, wish.log)
    return task


@contextlib.asynccontextmanager
async def _errand(
    source: object, driver: Driver | None, what: str, lock_timeout: float = 0.0
) -> AsyncIterator[Runner]:
    """A connection, over which what the server refuses becomes a `SchemaError`."""
    async with one_connection(
        connector(source, driver), part="triggers", timeout=_TIMEOUT + lock_timeout
    ) as runner:
        try:
            yield runner
        except ServerError as error:
            # The transaction ends with the connection, which is not used again after an exception.
            raise SchemaError(f"cannot {what}: {error}{_advice(error)}") from error


def _advice(error: ServerError) -> str:
    match error.sqlstate:
        case "42501":
            return (
                ": run it as the owner of the table, or as who has installed it; to install it "
                "first, GRANT TRIGGER ON the table and GRANT CREATE ON its SCHEMA would do"
            )
        case "55P03":
            return ": somebody uses the table: try again, or raise lock_timeout"
        case "22023" | "42601" | "42602":
            return ': write the name as a statement would have it, as shop.orders or "Orders"'
    return ""


def _log(log: bool, schema: str) -> str | None:
    """The schema of the event log; None to notify."""
    if not log and schema != SCHEMA:
        raise ValueError("schema is that of the event log: pass log=True to write to it")
    return schema if log else None


def _checked(lock_timeout: float) -> float:
    if not 0 < lock_timeout <= _LONGEST_LOCK_TIMEOUT:
        raise ValueError(f"lock_timeout must be positive seconds, not {lock_timeout}")
    return lock_timeout
