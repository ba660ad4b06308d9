"""What the library keeps in the database: for now, the spill table. Layer: schema.

One schema holds all of it, `pgnotifybus` unless another name is given. Nothing needs it until a
payload is too large for a notification; see `docs/topics/payloads.md`.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Final, NamedTuple

from pgnotifybus.core.names import SCHEMA, check_schema, quote
from pgnotifybus.database.sidelink import SideLink
from pgnotifybus.errors import SchemaError
from pgnotifybus.links.base import Driver, Runner, ServerError
from pgnotifybus.links.sources import connector

__all__ = ["VERSION", "install", "prune", "remove", "sql"]

VERSION: Final = 1
"""The version of what this library installs."""

_CONNECT_TIMEOUT: Final = 10.0  # seconds that connecting to one host may take
_LONGEST_LOCK_TIMEOUT: Final = 86_400  # seconds; the server's own limit is 24 days
_TIMEOUT: Final = 60.0  # seconds that a transaction may take, waiting for locks aside
_REMARK: Final = "pgnotifybus schema, version "
_OURS: Final = re.compile(rf"{_REMARK}([0-9]+);(?: payloads are kept for ([0-9]+) s)?")
_RETENTION: Final = timedelta(hours=1)
_LOCK: Final = "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('pgnotifybus schema'))"

_SCHEMA: Final = """\
CREATE SCHEMA IF NOT EXISTS {schema};

"""

_TABLES: Final = """\
-- Payloads that are too large for a notification, which then carries only the id.
CREATE TABLE IF NOT EXISTS {schema}.payloads (
  id uuid PRIMARY KEY,
  channel text NOT NULL,
  payload text NOT NULL,
  expires_at timestamptz NOT NULL
);
CREATE INDEX IF NOT EXISTS payloads_expires_at ON {schema}.payloads (expires_at);
ALTER TABLE {schema}.payloads
  ALTER COLUMN expires_at SET DEFAULT pg_catalog.clock_timestamp() + interval '{seconds} seconds';

COMMENT ON SCHEMA {schema} IS '{remark}';
"""

_STATE: Final = """\
SELECT pg_catalog.obj_description(space.oid, 'pg_namespace'),
       (SELECT class.oid FROM pg_catalog.pg_class AS class
         WHERE class.relnamespace = space.oid AND class.relname = 'payloads')::text,
       (SELECT class.oid FROM pg_catalog.pg_class AS class
         WHERE class.relnamespace = space.oid AND class.relname = 'payloads_expires_at')::text
  FROM pg_catalog.pg_namespace AS space WHERE space.nspname = CAST($1 AS text)"""

_OTHERS: Final = """\
SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_depend AS dependency
                 JOIN pg_catalog.pg_namespace AS space ON space.oid = dependency.refobjid
                WHERE dependency.refclassid = 'pg_catalog.pg_namespace'::regclass
                  AND space.nspname = CAST($1 AS text))::text"""

# One at a time, and the others do not wait for it. Locking the rows would do that too, but needs
# the right to UPDATE them.
_PRUNE: Final = """\
WITH turn AS MATERIALIZED (
  SELECT pg_catalog.pg_try_advisory_xact_lock(
           pg_catalog.hashtext('pgnotifybus prune'), pg_catalog.hashtext(CAST($1 AS text))) AS ours
), expired AS MATERIALIZED (
  SELECT id FROM {schema}.payloads
   WHERE expires_at < pg_catalog.now() AND (SELECT ours FROM turn)
   ORDER BY expires_at LIMIT {limit}
), gone AS (
  DELETE FROM {schema}.payloads AS payloads USING expired WHERE payloads.id = expired.id RETURNING 1
)
SELECT pg_catalog.count(*)::text FROM gone"""


def sql(*, schema: str = SCHEMA, retention: timedelta = _RETENTION) -> str:
    """The statements that `install` runs, for those who run their own migrations.

    Running them twice does no harm. They hold no BEGIN and COMMIT.

    Args:
        schema: The schema to make.
        retention: How long a payload is kept after it was written; at least a second.

    Raises:
        ValueError: If the name cannot be a schema, or the retention is under a second.
    """
    check_schema(schema)
    return _SCHEMA.format(schema=quote(schema)) + _tables(schema, _seconds(retention))


async def install(
    source: object,
    *,
    schema: str = SCHEMA,
    retention: timedelta | None = None,
    lock_timeout: float = 2.0,
    driver: Driver | None = None,
) -> bool:
    """Make or upgrade what the library keeps in the database.

    Only reads the catalog, and takes no lock, where everything is there already.

    Args:
        source: Where to connect, as for `PgNotifyBus`. The role must be allowed to CREATE in the
            database, or own the schema.
        schema: The schema to make it in.
        retention: How long a payload is kept after it was written; at least a second. It must be
            longer than the longest transaction that writes one. None keeps what it is, which is an
            hour at first.
        lock_timeout: The seconds to wait for others that use the tables.
        driver: As for `PgNotifyBus`.

    Returns:
        Whether anything had to be changed.

    Raises:
        SchemaError: If the server refuses, or the schema is of a newer version, or has a comment
            of somebody else; nothing is changed.
        ConnectError, FatalLinkError: If there is no connection; nothing is changed.
        LinkLost: If the connection was lost meanwhile: call it again.
        ValueError: If an argument is out of range.

    Cancel safety: it is done wholly or not at all.
    """
    check_schema(schema)
    seconds = None if retention is None else _seconds(retention)
    begin, patience = _begin(lock_timeout)
    async with _side(source, driver, patience) as side, side.use() as runner:
        try:
            found = await _found(runner, schema)
            if _is_whole(found, schema, seconds):
                return False
            await runner.execute(begin)
            # Whoever had that lock may have done it all meanwhile.
            found = await _found(runner, schema)
            if _is_whole(found, schema, seconds):
                await runner.execute("ROLLBACK")
                return False
            # Even IF NOT EXISTS asks for the right to CREATE in the database, which the owner of a
            # schema need not have.
            create = "" if found else _SCHEMA.format(schema=quote(schema))
            kept = seconds or _kept(found) or _seconds(_RETENTION)
            await runner.execute(f"{create}{_tables(schema, kept)}COMMIT")
        except ServerError as error:
            name = quote(schema)
            rights = (
                f"run it as the owner of {name}, or GRANT CREATE ON DATABASE to the role; whoever "
                f"uses it needs USAGE on {name} and SELECT, INSERT and DELETE on its tables"
            )
            raise _refused(error, f"install the schema {schema!r}", schema, rights) from error
    return True


async def remove(
    source: object,
    *,
    schema: str = SCHEMA,
    lock_timeout: float = 2.0,
    driver: Driver | None = None,
) -> bool:
    """Drop what `install` has made, and the schema too if nothing of yours is in it.

    Args:
        source: Where to connect, as for `PgNotifyBus`.
        schema: The schema that it was made in.
        lock_timeout: The seconds to wait for others that use the tables.
        driver: As for `PgNotifyBus`.

    Returns:
        Whether there was anything to remove.

    Raises:
        SchemaError: If the server refuses, or the schema is not ours; nothing is changed.
        ConnectError, FatalLinkError, LinkLost, ValueError: As for `install`.

    Cancel safety: it is done wholly or not at all.
    """
    check_schema(schema)
    begin, patience = _begin(lock_timeout)
    async with _side(source, driver, patience) as side, side.use() as runner:
        try:
            if not _is_ours(await _found(runner, schema), schema):
                return False
            await runner.execute(begin)
            if not _is_ours(await _found(runner, schema), schema):  # somebody was quicker
                await runner.execute("ROLLBACK")
                return False
            await runner.execute(
                f"DROP TABLE IF EXISTS {quote(schema)}.payloads; "
                f"COMMENT ON SCHEMA {quote(schema)} IS NULL"
            )
            [(others,)] = await runner.fetch(_OTHERS, schema)
            drop = "" if others == "true" else f"DROP SCHEMA {quote(schema)}; "
            await runner.execute(f"{drop}COMMIT")
        except ServerError as error:
            rights = f"run it as the owner of {quote(schema)} and its tables"
            raise _refused(error, f"remove the schema {schema!r}", schema, rights) from error
    return True


async def prune(source: object, *, schema: str = SCHEMA, driver: Driver | None = None) -> int:
    """Delete the payloads whose retention is over, a thousand in a transaction.

    A bus that receives spilled payloads does it by itself, about once a minute; this is for
    databases where none does.

    Args:
        source: Where to connect, as for `PgNotifyBus`.
        schema: The schema of the spill table.
        driver: As for `PgNotifyBus`.

    Returns:
        How many were deleted; none while a bus or somebody else is deleting them.

    Raises:
        SchemaError: If the table is not there, or may not be deleted from.
        ConnectError, FatalLinkError, LinkLost, ValueError: As for `install`.

    Cancel safety: what was deleted so far stays deleted.
    """
    check_schema(schema)
    total = 0
    async with _side(source, driver, _TIMEOUT) as side:
        try:
            while True:
                async with side.use() as runner:  # each time with a deadline of its own
                    deleted = await prune_some(runner, schema)
                if not deleted:
                    return total
                total += deleted
        except ServerError as error:
            name = quote(schema)
            rights = (
                f"GRANT USAGE ON SCHEMA {name}, and GRANT SELECT, DELETE ON {name}.payloads, to "
                "the role"
            )
            raise _refused(error, f"prune the schema {schema!r}", schema, rights) from error


async def prune_some(runner: Runner, schema: str, limit: int = 1000) -> int:
    """Delete some payloads whose retention is over; how many, none while somebody else does it."""
    rows = await runner.fetch(_PRUNE.format(schema=quote(schema), limit=limit), schema)
    return int(rows[0][0] or 0)


# -- inside ---------------------------------------------------------------------------------------


class _Found(NamedTuple):
    """A schema of the name that was asked for."""

    remark: str | None
    """The comment on it: ours, somebody else's or none."""
    whole: bool
    """Whether all that we would make is in it."""


async def _found(runner: Runner, schema: str) -> _Found | None:
    """What there is of the schema; None if it is not there."""
    for remark, table, index in await runner.fetch(_STATE, schema):
        return _Found(remark, table is not None and index is not None)
    return None


async def retention_of(runner: Runner, schema: str) -> int | None:
    """How many seconds a payload is kept; None if the schema is not ours, or not there."""
    return _kept(await _found(runner, schema))


def _kept(found: _Found | None) -> int | None:
    """How many seconds a payload is kept, by the comment on the schema."""
    ours = None if found is None else _OURS.match(found.remark or "")
    return int(ours[2]) if ours is not None and ours[2] else None


def _is_whole(found: _Found | None, schema: str, seconds: int | None) -> bool:
    """Whether there is nothing left to install.

    Raises:
        SchemaError: If it must not be touched: it is of a newer version, or has a comment that
            would be lost, and by which nobody could tell any more that the schema is not ours.
    """
    if found is None or found.remark is None:
        return False
    ours = _OURS.match(found.remark)
    if ours is None:
        raise SchemaError(
            f"the schema {schema!r} has a comment of somebody else, so it is left alone: give "
            "another name"
        )
    if (version := int(ours[1])) > VERSION:
        raise SchemaError(
            f"the schema {schema!r} is of version {version}, this library knows {VERSION}: "
            "upgrade the library"
        )
    kept = seconds or _kept(found)
    return kept is not None and found.remark == _remark(kept) and found.whole


def _is_ours(found: _Found | None, schema: str) -> bool:
    """Whether there is something to remove.

    Raises:
        SchemaError: If the schema is there and not ours.
    """
    if found is None:
        return False
    if found.remark is None or not _OURS.match(found.remark):
        raise SchemaError(f"the schema {schema!r} is not one that this library has made")
    return True


@contextlib.asynccontextmanager
async def _side(source: object, driver: Driver | None, timeout: float) -> AsyncIterator[SideLink]:
    """A connection for one errand; what is not committed by then is not."""
    side = SideLink(
        connector(source, driver), part="schema", connect_timeout=_CONNECT_TIMEOUT, timeout=timeout
    )
    try:
        yield side
    finally:
        await side.close()


def _begin(lock_timeout: float) -> tuple[str, float]:
    """What begins a transaction that changes the schema, and the seconds that it may take."""
    if not 0 < lock_timeout <= _LONGEST_LOCK_TIMEOUT:
        raise ValueError(
            f"lock_timeout must be positive seconds, at most {_LONGEST_LOCK_TIMEOUT:,}, "
            f"not {lock_timeout}"
        )
    milliseconds = max(1, round(lock_timeout * 1000))
    # There are two locks to wait for: ours, and the table's.
    patience = _TIMEOUT + 2 * lock_timeout
    # Whoever waited for our lock must see what was done meanwhile, whatever the default is.
    begin = "BEGIN ISOLATION LEVEL READ COMMITTED"
    return f"{begin}; SET LOCAL lock_timeout = {milliseconds}; {_LOCK}", patience


def _refused(error: ServerError, what: str, schema: str, rights: str) -> SchemaError:
    match error.sqlstate:
        case "42501":
            advice = rights
        case "55P03":
            advice = "somebody uses the tables: try again, or raise lock_timeout"
        case "3F000" | "42P01":
            option = "" if schema == SCHEMA else f" --schema {shlex.quote(schema)}"
            advice = f"install it first: `pgnotifybus schema install{option}`"
        case _:
            return SchemaError(f"cannot {what}: {error}")
    return SchemaError(f"cannot {what}: {error}: {advice}")


def _tables(schema: str, seconds: int) -> str:
    return _TABLES.format(schema=quote(schema), seconds=seconds, remark=_remark(seconds))


def _remark(seconds: int) -> str:
    return f"{_REMARK}{VERSION}; payloads are kept for {seconds} s"


def _seconds(retention: timedelta) -> int:
    seconds = int(retention.total_seconds())
    if seconds < 1:
        raise ValueError(f"retention must be at least a second, not {retention}")
    return seconds
