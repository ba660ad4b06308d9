"""Making, upgrading and removing what the library keeps in the database. Layer: schema."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final, Literal, NamedTuple

from pgnotifybus.core.names import SCHEMA, check_schema, quote
from pgnotifybus.database.queries import array
from pgnotifybus.errors import SchemaError
from pgnotifybus.links.base import Driver, Runner, ServerError
from pgnotifybus.schema import ddl
from pgnotifybus.schema.errands import TIMEOUT, refused, side

_LONGEST_LOCK_TIMEOUT: Final = 86_400  # seconds; the server's own limit is 24 days
_REMARK: Final = "pgnotifybus schema, version "
_OURS: Final = re.compile(
    rf"{_REMARK}([0-9]+);(?: payloads are kept for ([0-9]+) s)?(?:, events have ([0-9]+) bytes)?"
)
_RETENTION: Final = timedelta(hours=1)
_EVENT_BYTES: Final = 16 * 1024 * 1024
_LOCK: Final = "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('pgnotifybus schema'))"

_STATE: Final = """\
SELECT pg_catalog.obj_description(space.oid, 'pg_namespace'),
       (SELECT pg_catalog.count(*) FROM pg_catalog.pg_class AS class
         WHERE class.relnamespace = space.oid
           AND class.relname = ANY (CAST(CAST($2 AS text) AS text[])))::text,
       (SELECT pg_catalog.count(DISTINCT proc.proname) FROM pg_catalog.pg_proc AS proc
         WHERE proc.pronamespace = space.oid
           AND proc.proname = ANY (CAST(CAST($3 AS text) AS text[])))::text
  FROM pg_catalog.pg_namespace AS space WHERE space.nspname = CAST($1 AS text)"""

_KEPT: Final = "SELECT keep_seconds::text, keep_bytes::text FROM {schema}.log"

_KEEP: Final = """\
UPDATE {schema}.log SET keep_seconds = {seconds}, keep_bytes = {bytes}
 WHERE (keep_seconds, keep_bytes) IS DISTINCT FROM ({seconds}, {bytes});
"""

_OTHERS: Final = """\
SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_depend AS dependency
                 JOIN pg_catalog.pg_namespace AS space ON space.oid = dependency.refobjid
                WHERE dependency.refclassid = 'pg_catalog.pg_namespace'::regclass
                  AND space.nspname = CAST($1 AS text))::text"""

# Whoever writes to such a table could not do so any more.
_APPENDING: Final = """\
SELECT DISTINCT pg_catalog.format('%I.%I', space.nspname, class.relname) AS name
  FROM pg_catalog.pg_trigger AS trigger
  JOIN pg_catalog.pg_proc AS proc ON proc.oid = trigger.tgfoid
  JOIN pg_catalog.pg_class AS class ON class.oid = trigger.tgrelid
  JOIN pg_catalog.pg_namespace AS space ON space.oid = class.relnamespace
 WHERE NOT trigger.tgisinternal
   AND (pg_catalog.strpos(proc.prosrc, CAST($1 AS text) || '.append') > 0
        OR proc.prosrc ~ ('\\m' || CAST($2 AS text) || '\\.append'))
 ORDER BY name"""


def sql(
    *,
    schema: str = SCHEMA,
    retention: timedelta = _RETENTION,
    event_retention: timedelta | Literal["forever"] | None = None,
    event_size: int | Literal["unlimited"] | None = None,
    event_limit: int = _EVENT_BYTES,
) -> str:
    """The statements that `install` runs, for those who run their own migrations.

    Running them twice does no harm. They hold no BEGIN and COMMIT.

    Args:
        schema: The schema to make.
        retention, event_retention, event_size, event_limit: As for `install`.

    Raises:
        ValueError: If the name cannot be a schema, or a number is outside its range.
    """
    check_schema(schema)
    wanted = _Wanted.of(retention, event_retention, event_size, event_limit)
    create = ddl.CREATE_SCHEMA.format(schema=quote(schema)) + _create(schema, wanted)
    if event_retention is None and event_size is None:
        return create
    keep = wanted.kept(_Kept(ddl.KEEP_SECONDS, None))
    return f"{create}\n{_keep(schema, keep)}"


async def install(
    source: object,
    *,
    schema: str = SCHEMA,
    retention: timedelta | None = None,
    event_retention: timedelta | Literal["forever"] | None = None,
    event_size: int | Literal["unlimited"] | None = None,
    event_limit: int | None = None,
    lock_timeout: float = 2.0,
    driver: Driver | None = None,
) -> bool:
    """Make or upgrade what the library keeps in the database.

    Only reads the catalog, and takes no lock, where everything is there already. Of what may be
    set, None keeps what it is.

    Args:
        source: Where to connect, as for `PgNotifyBus`. The role must be allowed to CREATE in the
            database, or own the schema.
        schema: The schema to make it in.
        retention: How long a payload of the spill table is kept after it was written; at least a
            second, an hour at first. It must be longer than the longest transaction that writes
            one.
        event_retention: How long an event of the log is kept after its commit; at least a second,
            or `"forever"`. A week at first.
        event_size: How many bytes of events are kept; the oldest go first. `"unlimited"` at first.
        event_limit: The largest payload of an event, in bytes of the database's encoding; 16 MiB
            at first.
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
    wanted = _Wanted.of(retention, event_retention, event_size, event_limit)
    begin, patience = _begin(lock_timeout)
    async with side(source, driver, patience) as link, link.use() as runner:
        try:
            if await _is_done(runner, schema, await look_up(runner, schema), wanted):
                return False
            await runner.execute(begin)
            # Whoever had that lock may have done it all meanwhile.
            found = await look_up(runner, schema)
            if await _is_done(runner, schema, found, wanted):
                await runner.execute("ROLLBACK")
                return False
            # Even IF NOT EXISTS asks for the right to CREATE in the database, which the owner of a
            # schema need not have.
            create = "" if found else ddl.CREATE_SCHEMA.format(schema=quote(schema))
            told = _told(found)
            wanted = _Wanted(
                wanted.payload_seconds or told.payload_seconds or _seconds(_RETENTION),
                wanted.event_bytes or told.event_bytes or _EVENT_BYTES,
                wanted.keep_seconds,
                wanted.keep_bytes,
            )
            await runner.execute(create + _create(schema, wanted))
            kept = await _kept(runner, schema)
            await runner.execute(f"{_keep(schema, wanted.kept(kept))}COMMIT")
        except ServerError as error:
            name = quote(schema)
            rights = (
                f"run it as the owner of {name}, or GRANT CREATE ON DATABASE to the role; whoever "
                f"uses it needs USAGE on {name} and SELECT, INSERT, UPDATE and DELETE on its tables"
            )
            raise refused(error, f"install the schema {schema!r}", schema, rights) from error
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
        SchemaError: If the server refuses, or the schema is not ours, or triggers append to its
            event log; nothing is changed.
        ConnectError, FatalLinkError, LinkLost, ValueError: As for `install`.

    Cancel safety: it is done wholly or not at all.
    """
    check_schema(schema)
    begin, patience = _begin(lock_timeout)
    async with side(source, driver, patience) as link, link.use() as runner:
        try:
            if not _is_ours(await look_up(runner, schema), schema):
                return False
            await runner.execute(begin)
            if not _is_ours(await look_up(runner, schema), schema):  # somebody was quicker
                await runner.execute("ROLLBACK")
                return False
            if appending := await runner.fetch(_APPENDING, quote(schema), re.escape(schema)):
                await runner.execute("ROLLBACK")
                names = ", ".join(name or "" for (name,) in appending)
                raise SchemaError(
                    f"triggers append to the event log of the schema {schema!r}, and without it "
                    f"nobody could write to these tables: {names}. Remove the triggers first: "
                    "`pgnotifybus trigger remove TABLE`, or `await triggers.remove(...)`"
                )
            await runner.execute(ddl.drop(schema))
            [(others,)] = await runner.fetch(_OTHERS, schema)
            drop = "" if others == "true" else f"DROP SCHEMA {quote(schema)}; "
            await runner.execute(f"{drop}COMMIT")
        except ServerError as error:
            rights = f"run it as the owner of {quote(schema)} and its tables"
            raise refused(error, f"remove the schema {schema!r}", schema, rights) from error
    return True


# -- inside ---------------------------------------------------------------------------------------


class _Kept(NamedTuple):
    """How long, and how much, of the event log is kept; None for no limit."""

    seconds: int | None
    bytes: int | None


class _Told(NamedTuple):
    """What the comment on the schema says, where it is ours."""

    payload_seconds: int | None = None
    event_bytes: int | None = None


class _Wanted(NamedTuple):
    """What was asked for; None for what may be as it is."""

    payload_seconds: int | None
    event_bytes: int | None
    keep_seconds: int | Literal["forever"] | None
    keep_bytes: int | Literal["unlimited"] | None

    @classmethod
    def of(
        cls,
        retention: timedelta | None,
        event_retention: timedelta | Literal["forever"] | None,
        event_size: int | Literal["unlimited"] | None,
        event_limit: int | None,
    ) -> _Wanted:
        """Check what the caller has passed.

        Raises:
            ValueError: If a number is outside its range.
        """
        keep_seconds: int | Literal["forever"] | None = None
        if isinstance(event_retention, timedelta):
            keep_seconds = _seconds(event_retention, "event_retention")
        elif event_retention in (None, "forever"):
            keep_seconds = event_retention
        else:
            raise ValueError(
                f"event_retention must be a timedelta or 'forever', not {event_retention!r}"
            )
        if event_size not in (None, "unlimited") and not _is_count(event_size):
            raise ValueError(
                f"event_size must be at least 1 byte, or 'unlimited', not {event_size!r}"
            )
        if event_limit is not None and not (_is_count(event_limit) and event_limit < 2**30):
            raise ValueError(f"event_limit must be from 1 byte to under 1 GiB, not {event_limit!r}")
        seconds = None if retention is None else _seconds(retention, "retention")
        return cls(seconds, event_limit, keep_seconds, event_size)

    def kept(self, now: _Kept) -> _Kept:
        """What of the event log is to be kept, by what is kept now."""
        seconds, size = now
        if self.keep_seconds is not None:
            seconds = None if self.keep_seconds == "forever" else self.keep_seconds
        if self.keep_bytes is not None:
            size = None if self.keep_bytes == "unlimited" else self.keep_bytes
        return _Kept(seconds, size)


class Found(NamedTuple):
    """A schema of the name that was asked for."""

    remark: str | None
    """The comment on it: ours, somebody else's or none."""
    whole: bool
    """Whether all that we would make is in it."""


async def look_up(runner: Runner, schema: str) -> Found | None:
    """What there is of the schema; None if it is not there."""
    names = array(list(ddl.RELATIONS)), array(list(ddl.FUNCTIONS))
    for remark, relations, functions in await runner.fetch(_STATE, schema, *names):
        whole = int(relations or 0) == len(ddl.RELATIONS)
        return Found(remark, whole and int(functions or 0) == len(ddl.FUNCTIONS))
    return None


def version_of(found: Found) -> int | None:
    """The version of a schema; None if it is not one of ours."""
    ours = _OURS.match(found.remark or "")
    return None if ours is None else int(ours[1])


async def retention_of(runner: Runner, schema: str) -> int | None:
    """How many seconds a payload is kept; None if the schema is not ours, or not there."""
    return _told(await look_up(runner, schema)).payload_seconds


def _told(found: Found | None) -> _Told:
    """What the comment on the schema says."""
    ours = None if found is None else _OURS.fullmatch(found.remark or "")
    if ours is None:
        return _Told()
    return _Told(*(int(each) if each else None for each in ours.groups()[1:]))


async def _kept(runner: Runner, schema: str) -> _Kept:
    rows = await runner.fetch(_KEPT.format(schema=quote(schema)))
    for row in rows:
        return _Kept(*(None if each is None else int(each) for each in row))
    return _Kept(ddl.KEEP_SECONDS, None)


async def _is_done(runner: Runner, schema: str, found: Found | None, wanted: _Wanted) -> bool:
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
    if (version := int(ours[1])) > ddl.VERSION:
        raise SchemaError(
            f"the schema {schema!r} is of version {version}, this library knows {ddl.VERSION}: "
            "upgrade the library"
        )
    told = _told(found)
    payload_seconds = wanted.payload_seconds or told.payload_seconds
    event_bytes = wanted.event_bytes or told.event_bytes
    if not (found.whole and payload_seconds and event_bytes):
        return False
    if found.remark != _remark(payload_seconds, event_bytes):
        return False
    if wanted.keep_seconds is None and wanted.keep_bytes is None:
        return True
    kept = await _kept(runner, schema)
    return wanted.kept(kept) == kept


def _is_ours(found: Found | None, schema: str) -> bool:
    """Whether there is something to remove.

    Raises:
        SchemaError: If the schema is there and not ours.
    """
    if found is None:
        return False
    if found.remark is None or not _OURS.match(found.remark):
        raise SchemaError(f"the schema {schema!r} is not one that this library has made")
    return True


def _begin(lock_timeout: float) -> tuple[str, float]:
    """What begins a transaction that changes the schema, and the seconds that it may take."""
    if not 0 < lock_timeout <= _LONGEST_LOCK_TIMEOUT:
        raise ValueError(
            f"lock_timeout must be positive seconds, at most {_LONGEST_LOCK_TIMEOUT:,}, "
            f"not {lock_timeout}"
        )
    milliseconds = max(1, round(lock_timeout * 1000))
    # There are two locks to wait for: ours, and the table's.
    patience = TIMEOUT + 2 * lock_timeout
    # Whoever waited for our lock must see what was done meanwhile, whatever the default is.
    begin = "BEGIN ISOLATION LEVEL READ COMMITTED"
    return f"{begin}; SET LOCAL lock_timeout = {milliseconds}; {_LOCK}", patience


def _create(schema: str, wanted: _Wanted) -> str:
    payload_seconds = wanted.payload_seconds or _seconds(_RETENTION)
    event_bytes = wanted.event_bytes or _EVENT_BYTES
    return ddl.create(
        schema,
        remark=_remark(payload_seconds, event_bytes),
        payload_seconds=payload_seconds,
        event_bytes=event_bytes,
    )


def _keep(schema: str, kept: _Kept) -> str:
    seconds, size = ("NULL" if each is None else str(each) for each in kept)
    return _KEEP.format(schema=quote(schema), seconds=seconds, bytes=size)


def _remark(payload_seconds: int, event_bytes: int) -> str:
    return (
        f"{_REMARK}{ddl.VERSION}; payloads are kept for {payload_seconds} s, events have "
        f"{event_bytes} bytes"
    )


def _seconds(retention: timedelta, name: str = "retention") -> int:
    seconds = int(retention.total_seconds())
    if seconds < 1:
        raise ValueError(f"{name} must be at least a second, not {retention}")
    return seconds


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
