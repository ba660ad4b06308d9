"""What the library keeps in the database: made once, taken away wholly, and nothing of others'."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any
from urllib.parse import quote as percent
from urllib.parse import urlsplit

import psycopg
import pytest

from pgnotifybus import PgNotifyBus, schema
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.errors import SchemaError
from pgnotifybus.links.base import Driver
from support.notifying import listening, take
from support.payloads import noise
from support.servers import PASSWORD
from support.sql import execute
from support.waiting import until

# Everything that quoting could get wrong, in SQL, in format strings and in the drivers.
NAMES = (
    'say "hi"',
    "it's",
    "ünï €",
    "100% :name %s {0}",
    "$1 $$",
    "back\\slash",
    "x; DROP TABLE y; --",
    "Capital and\nlines",
    "ü" * 31 + "x",
)
LOCK = "hashtext('pgnotifybus schema')"


async def tables(dsn: str, name: str = "pgnotifybus") -> set[str]:
    """The tables and indexes in a schema."""
    rows = await execute(
        dsn,
        "SELECT relname FROM pg_class JOIN pg_namespace space ON space.oid = relnamespace"
        " WHERE nspname = %s AND relkind IN ('r', 'i')",
        name,
    )
    return {row[0] for row in rows}


async def is_there(dsn: str, name: str) -> bool:
    return bool(await execute(dsn, "SELECT 1 FROM pg_namespace WHERE nspname = %s", name))


async def remark(dsn: str, name: str = "pgnotifybus") -> Any:
    [(said,)] = await execute(
        dsn,
        "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %s",
        name,
    )
    return said


async def fill(dsn: str, expired: int, kept: int) -> None:
    await execute(
        dsn,
        "INSERT INTO pgnotifybus.payloads (id, channel, payload, expires_at)"
        " SELECT gen_random_uuid(), 'a', 'x', now() + CASE WHEN n <= %s"
        " THEN interval '-1 second' ELSE interval '1 hour' END"
        " FROM generate_series(1, %s) AS n",
        expired,
        expired + kept,
    )


@contextlib.asynccontextmanager
async def held(dsn: str, statement: str) -> AsyncIterator[None]:
    """A transaction of somebody else that has run a statement, for as long as the body runs."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.execute(statement.encode())
        yield
        await connection.rollback()


@contextlib.asynccontextmanager
async def role(dsn: str) -> AsyncIterator[tuple[str, str]]:
    """A role without rights: its name, and a DSN that connects as it."""
    name = f"role_{uuid.uuid4().hex[:8]}"
    await execute(dsn, f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'")
    parts = urlsplit(dsn)
    place = parts.netloc.rpartition("@")[2]
    try:
        yield name, parts._replace(netloc=f"{name}:{percent(PASSWORD, safe='')}@{place}").geturl()
    finally:
        await execute(dsn, f"DROP OWNED BY {name} CASCADE")
        await execute(dsn, f"DROP ROLE {name}")


async def until_waiting(dsn: str, count: int) -> None:
    """Wait until so many installations wait for a lock."""
    await until(
        dsn,
        "SELECT count(*) = %s FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND application_name = 'pgnotifybus schema' AND datname = current_database()",
        count,
    )


# -- install --------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_it_is_made_once_and_serves_large_payloads(database: str, driver: Driver) -> None:
    assert await schema.install(database, driver=driver)
    assert not await schema.install(database, driver=driver)
    payload = noise(300_000)
    async with listening(database, "a") as receiver, PgNotifyBus(database, ["b"]) as bus:
        await bus.notify("a", payload)
        assert await take(receiver, 1) == [payload]


async def test_installing_again_waits_for_nobody_and_writes_nothing(database: str) -> None:
    """A service that installs at each start must not wait behind a vacuum, or wake a standby."""
    await schema.install(database)
    written = "SELECT pg_current_wal_insert_lsn()::text, pg_snapshot_xmax(pg_current_snapshot())"
    lock = "LOCK TABLE pgnotifybus.payloads IN ACCESS EXCLUSIVE MODE"
    async with held(database, f"SELECT pg_advisory_xact_lock({LOCK}); {lock}"):
        for _ in range(10):  # the server itself writes now and then
            before = await execute(database, written)
            assert not await schema.install(database, lock_timeout=0.001)
            if await execute(database, written) == before:
                return
    pytest.fail("each time something was written")


async def test_of_many_that_install_at_once_one_does(database: str) -> None:
    """All find nothing, and then wait: the second would change again what the first has made."""
    async with held(database, f"SELECT pg_advisory_xact_lock({LOCK})"):
        installing = [
            asyncio.create_task(schema.install(database, lock_timeout=30)) for _ in range(4)
        ]
        await until_waiting(database, 4)
    assert sorted(await asyncio.gather(*installing)) == [False, False, False, True]


async def test_the_retention_can_be_changed(database: str) -> None:
    left = (
        "INSERT INTO pgnotifybus.payloads (id, channel, payload) VALUES (gen_random_uuid(), '', '')"
        " RETURNING extract(epoch FROM expires_at - clock_timestamp())::float"
    )
    for hours, changed in ((1, True), (168, True), (168, False), (1, True)):
        kept = timedelta(hours=hours)
        assert await schema.install(database, retention=kept) is changed
        [(seconds,)] = await execute(database, left)
        assert kept.total_seconds() - 60 < seconds <= kept.total_seconds()


async def test_a_retention_that_was_chosen_is_kept_where_none_is_asked_for(
    database18: str,
) -> None:
    """An application that installs at every start must not undo what an operator has set."""
    assert await schema.install(database18, retention=timedelta(days=7))
    assert not await schema.install(database18)
    await execute(database18, "DROP TABLE pgnotifybus.payloads")
    assert await schema.install(database18)
    [(comment,)] = await execute(
        database18, "SELECT obj_description('pgnotifybus'::regnamespace, 'pg_namespace')"
    )
    assert "; payloads are kept for 604800 s, " in comment


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_any_name_is_taken_as_it_is(database18: str, driver: Driver) -> None:
    for name in NAMES:
        assert await schema.install(database18, schema=name, driver=driver)
        assert {"payloads", "payloads_expires_at", "events"} < await tables(database18, name)
        assert not await schema.install(database18, schema=name, driver=driver)
        assert await schema.prune(database18, schema=name, driver=driver) == 0
        assert await schema.remove(database18, schema=name, driver=driver)
        assert not await is_there(database18, name)


@pytest.mark.parametrize("name", ["", "x" * 64, "ü" * 32, "a\0b", "pg_mine", "\udcff"])
async def test_a_name_that_no_schema_can_have_is_refused_before_any_io(name: str) -> None:
    nowhere = "postgresql://127.0.0.1:1/x"
    with pytest.raises(ValueError, match="schema name"):
        schema.sql(schema=name)
    for function in (schema.install, schema.remove, schema.prune):
        with pytest.raises(ValueError, match="schema name"):
            await function(nowhere, schema=name)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan"), 1e9])
async def test_a_lock_timeout_that_cannot_be_is_refused_before_any_io(seconds: float) -> None:
    for function in (schema.install, schema.remove):
        with pytest.raises(ValueError, match="lock_timeout must be positive"):
            await function("postgresql://127.0.0.1:1/x", lock_timeout=seconds)


async def test_a_newer_version_is_left_alone(database: str) -> None:
    await schema.install(database)
    newer = f"pgnotifybus schema, version {schema.VERSION + 1}; with more in it"
    await execute(database, f"COMMENT ON SCHEMA pgnotifybus IS '{newer}'")
    with pytest.raises(SchemaError, match=r"version 3, .* knows 2: upgrade the library"):
        await schema.install(database, retention=timedelta(days=7))
    assert await remark(database) == newer


@pytest.mark.parametrize(
    "damage",
    [
        "DROP TABLE pgnotifybus.payloads",
        "DROP INDEX pgnotifybus.payloads_expires_at",
        "DROP TABLE pgnotifybus.events",
        "DROP TABLE pgnotifybus.log, pgnotifybus.segments",
        "DROP TABLE pgnotifybus.consumers, pgnotifybus.dead_letters",
        "DROP TABLE pgnotifybus.dead_letters",
        "DROP INDEX pgnotifybus.events_era_xid",
        "DROP FUNCTION pgnotifybus.append",
        "DROP FUNCTION pgnotifybus.append_many",
        "DROP FUNCTION pgnotifybus.wake",
        "DROP FUNCTION pgnotifybus.era CASCADE",
        "COMMENT ON SCHEMA pgnotifybus IS NULL",
    ],
)
async def test_what_is_missing_is_made(database: str, damage: str) -> None:
    await schema.install(database)
    there, said = await tables(database), await remark(database)
    await execute(database, damage)
    assert await schema.install(database)
    assert (await tables(database), await remark(database)) == (there, said)


async def test_the_printed_statements_are_what_install_runs(database: str) -> None:
    for _ in range(2):
        await execute(database, schema.sql(retention=timedelta(minutes=15)))
    assert not await schema.install(database, retention=timedelta(minutes=15))


async def test_who_uses_the_table_is_waited_for_and_not_longer_than_was_said(
    database: str,
) -> None:
    await schema.install(database)
    before = await remark(database)
    async with held(database, "SELECT * FROM pgnotifybus.payloads"):
        with pytest.raises(SchemaError, match="try again, or raise lock_timeout"):
            await schema.install(database, retention=timedelta(days=1), lock_timeout=0.05)
        with pytest.raises(SchemaError, match="try again, or raise lock_timeout"):
            await schema.remove(database, lock_timeout=0.05)
        assert await remark(database) == before
        patient = asyncio.create_task(
            schema.install(database, retention=timedelta(days=1), lock_timeout=30)
        )
        await until_waiting(database, 1)
    assert await patient


async def test_a_cancelled_installation_leaves_nothing(database: str) -> None:
    async with held(database, f"SELECT pg_advisory_xact_lock({LOCK})"):
        installing = asyncio.create_task(schema.install(database, lock_timeout=30))
        await until_waiting(database, 1)
        installing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await installing
    assert not await is_there(database, "pgnotifybus")


# -- rights ---------------------------------------------------------------------------------------


async def test_missing_rights_name_the_grant_that_helps(database: str) -> None:
    [(name,)] = await execute(database, "SELECT current_database()")
    async with role(database) as (user, dsn):
        with pytest.raises(SchemaError, match="GRANT CREATE ON DATABASE"):
            await schema.install(dsn)
        await execute(database, f"GRANT CREATE ON DATABASE {name} TO {user}")
        assert await schema.install(dsn)


async def test_the_owner_of_the_schema_needs_no_right_in_the_database(database: str) -> None:
    """CREATE SCHEMA IF NOT EXISTS asks for it even where the schema exists."""
    async with role(database) as (user, dsn):
        await execute(database, f"CREATE SCHEMA pgnotifybus AUTHORIZATION {user}")
        assert await schema.install(dsn)
        assert await schema.remove(dsn)


async def test_who_may_not_change_it_may_still_find_it_installed(database: str) -> None:
    await schema.install(database)
    async with role(database) as (_, dsn):
        assert not await schema.install(dsn)
        with pytest.raises(SchemaError, match="as the owner of"):
            await schema.install(dsn, retention=timedelta(days=1))
        with pytest.raises(SchemaError, match="as the owner of"):
            await schema.remove(dsn)
    assert await tables(database)


async def test_pruning_needs_what_the_error_says_and_nothing_more(database: str) -> None:
    """FOR UPDATE would need the right to UPDATE, which nobody who listens should need."""
    await schema.install(database)
    await fill(database, expired=3, kept=1)
    async with role(database) as (user, dsn):
        with pytest.raises(SchemaError, match="GRANT SELECT, DELETE ON") as refused:
            await schema.prune(dsn)
        grants = str(refused.value).rpartition("(SQLSTATE 42501): ")[2]
        for grant in grants.removesuffix(", to the role").split(", and "):
            await execute(database, f"{grant} TO {user}")
        assert await schema.prune(dsn) == 3


# -- remove ---------------------------------------------------------------------------------------


async def test_it_is_removed_without_a_trace(database: str) -> None:
    everything = "SELECT oid FROM pg_namespace UNION ALL SELECT oid FROM pg_class ORDER BY 1"
    before = await execute(database, everything)
    await schema.install(database)
    await fill(database, expired=1, kept=1)
    assert await schema.remove(database)
    assert await execute(database, everything) == before
    assert not await schema.remove(database)


@pytest.mark.parametrize(
    "theirs",
    [
        "CREATE TABLE pgnotifybus.mine ()",
        "CREATE TYPE pgnotifybus.mine AS ENUM ('a')",
        "CREATE FUNCTION pgnotifybus.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    ],
)
async def test_what_others_have_put_into_the_schema_stays(database: str, theirs: str) -> None:
    await schema.install(database)
    await execute(database, theirs)
    assert await schema.remove(database)
    assert await is_there(database, "pgnotifybus")
    assert "payloads" not in await tables(database)
    assert await remark(database) is None
    # And it can be installed beside it again.
    assert await schema.install(database)


async def test_a_schema_of_somebody_else_is_neither_taken_over_nor_dropped(database: str) -> None:
    """Its comment would be lost; and then `remove` would drop `public` where it is empty."""
    await execute(database, "CREATE SCHEMA mine")
    for name in ("public", "mine"):
        if name == "mine":
            await execute(database, "COMMENT ON SCHEMA mine IS 'pgnotifybus schema, version x'")
        said = await remark(database, name)
        with pytest.raises(SchemaError, match="comment of somebody else"):
            await schema.install(database, schema=name)
        with pytest.raises(SchemaError, match="not one that this library has made"):
            await schema.remove(database, schema=name)
        assert await remark(database, name) == said
        assert not await tables(database, name)


async def test_of_two_that_remove_at_once_one_does(database: str) -> None:
    await schema.install(database)
    async with held(database, f"SELECT pg_advisory_xact_lock({LOCK})"):
        removing = [asyncio.create_task(schema.remove(database, lock_timeout=30)) for _ in "ab"]
        await until_waiting(database, 2)
    assert sorted(await asyncio.gather(*removing)) == [False, True]


# -- prune ----------------------------------------------------------------------------------------


async def test_what_is_too_old_is_deleted_a_thousand_at_a_time(database: str) -> None:
    await schema.install(database)
    await fill(database, expired=2_500, kept=3)
    await execute(
        database,
        "CREATE TABLE deletions (number bigint, transaction xid8);"
        " CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO deletions SELECT count(*), pg_current_xact_id() FROM gone;"
        " RETURN NULL; END $$;"
        " CREATE TRIGGER note AFTER DELETE ON pgnotifybus.payloads"
        " REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION note()",
    )
    assert await schema.prune(database) == 2_500
    assert await execute(database, "SELECT count(*) FROM pgnotifybus.payloads") == [(3,)]
    deletions = await execute(database, "SELECT * FROM deletions WHERE number > 0 ORDER BY 2")
    assert [number for number, _ in deletions] == [1_000, 1_000, 500]
    assert len({transaction for _, transaction in deletions}) == 3


async def test_who_prunes_waits_for_nobody_who_does_the_same(database: str) -> None:
    await schema.install(database)
    await fill(database, expired=5, kept=0)
    turn = "pg_advisory_xact_lock(hashtext('pgnotifybus prune'), hashtext('{}'))"
    async with held(database, f"SELECT {turn.format('another schema')}"):
        assert await schema.prune(database) == 5
    await fill(database, expired=5, kept=0)
    async with held(database, f"SELECT {turn.format('pgnotifybus')}"):
        async with asyncio.timeout(10):
            assert await schema.prune(database) == 0
    assert await schema.prune(database) == 5


async def test_where_there_is_no_table_pruning_says_how_to_install_it(database: str) -> None:
    with pytest.raises(SchemaError, match=r"install it first: `pgnotifybus schema install`"):
        await schema.prune(database)
    with pytest.raises(SchemaError, match=r"`pgnotifybus schema install --schema 'my own'`"):
        await schema.prune(database, schema="my own")


# -- the event log --------------------------------------------------------------------------------

VERSION_1 = """
CREATE SCHEMA pgnotifybus;
CREATE TABLE pgnotifybus.payloads (
  id uuid PRIMARY KEY, channel text NOT NULL, payload text NOT NULL, expires_at timestamptz NOT NULL
);
CREATE INDEX payloads_expires_at ON pgnotifybus.payloads (expires_at);
ALTER TABLE pgnotifybus.payloads
  ALTER COLUMN expires_at SET DEFAULT clock_timestamp() + interval '7200 seconds';
COMMENT ON SCHEMA pgnotifybus IS 'pgnotifybus schema, version 1; payloads are kept for 7200 s';
INSERT INTO pgnotifybus.payloads (id, channel, payload) VALUES (gen_random_uuid(), 'a', 'kept');
"""


async def test_version_1_is_upgraded_and_keeps_what_it_has(database: str) -> None:
    await execute(database, VERSION_1)
    assert await schema.install(database)
    assert not await schema.install(database)
    assert "version 2; payloads are kept for 7200 s" in await remark(database)
    assert await execute(database, "SELECT payload FROM pgnotifybus.payloads") == [("kept",)]
    assert await execute(database, "SELECT pgnotifybus.append('orders', 'x')") == [(1,)]


async def test_what_was_damaged_can_be_appended_to_again(database18: str) -> None:
    await schema.install(database18)
    for damage in ("FUNCTION pgnotifybus.era CASCADE", "TABLE pgnotifybus.events"):
        await execute(database18, f"DROP {damage}")
        assert await schema.install(database18)
        assert await execute(database18, "SELECT pgnotifybus.append('orders', 'x')")


async def test_any_name_can_be_appended_to(database18: str) -> None:
    for number, name in enumerate((*NAMES, "a $function$ b", "$function_$ $function$"), 1):
        await schema.install(database18, schema=name)
        quoted = '"' + name.replace('"', '""') + '"'
        for conforming in ("on", "off"):
            await execute(
                database18,
                f"SET standard_conforming_strings = {conforming}; SET escape_string_warning = off;"
                f" LISTEN x; SELECT {quoted}.append('orders', 'x'),"
                f" {quoted}.append_many('{{a,b}}', '{{x,y}}', '{{k,NULL}}', '{{NULL,\"7\"}}')",
            )
        rows = await execute(
            database18,
            f"SELECT id, channel, key, payload, headers FROM {quoted}.events ORDER BY id",
        )
        assert rows[:3] == [
            (1, "orders", None, "x", None),
            (2, "a", "k", "x", None),
            (3, "b", None, "y", 7),
        ], number
        assert len(rows) == 6


async def test_how_long_and_how_much_is_kept_stays_as_it_was_set(database18: str) -> None:
    async def kept() -> tuple[Any, ...]:
        columns = "keep_seconds, keep_bytes"
        [row] = await execute(database18, f"SELECT {columns} FROM pgnotifybus.log")
        return row

    await schema.install(database18)
    assert await kept() == (7 * 86_400, None)
    hour = timedelta(hours=1)
    assert await schema.install(database18, event_retention=hour, event_size=10_000)
    assert await kept() == (3600, 10_000)
    assert not await schema.install(database18, event_retention=hour, event_size=10_000)
    assert not await schema.install(database18)
    assert await schema.install(database18, event_limit=7)
    assert await kept() == (3600, 10_000)
    assert await schema.install(database18, event_retention="forever", event_size="unlimited")
    assert await kept() == (None, None)
    assert not await schema.install(database18, event_retention="forever", event_limit=7)
    for call in ("append('a', '12345678')", "append_many('{a}', '{12345678}', '{k}', '{null}')"):
        with pytest.raises(psycopg.errors.StringDataRightTruncation, match="7 is the limit"):
            await execute(database18, f"SELECT pgnotifybus.{call}")
    assert await execute(database18, "SELECT pgnotifybus.append('a', '1234567')")


async def test_what_cannot_be_kept_is_refused_before_any_io() -> None:
    for options, text in [
        ({"event_retention": timedelta(0)}, "event_retention must be at least a second"),
        ({"event_retention": "a week"}, "a timedelta or 'forever'"),
        ({"event_size": 0}, "event_size must be at least 1 byte, or 'unlimited'"),
        ({"event_size": True}, "event_size"),
        ({"event_limit": 0}, "event_limit must be from 1 byte to under 1 GiB"),
        ({"event_limit": 2**30}, "event_limit"),
    ]:
        with pytest.raises(ValueError, match=text):
            await schema.install("postgresql://127.0.0.1:1/x", **options)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=text):
            schema.sql(**options)  # type: ignore[arg-type]


async def test_the_printed_statements_set_what_is_kept(database18: str) -> None:
    printed = schema.sql(event_retention=timedelta(days=1), event_size=5, event_limit=3)
    for _ in range(2):
        await execute(database18, printed)
    assert not await schema.install(
        database18, event_retention=timedelta(days=1), event_size=5, event_limit=3
    )


async def test_only_what_can_be_an_event_is_appended(database18: str) -> None:
    await schema.install(database18)
    for arguments, error in [
        ("'', 'x'", psycopg.errors.CheckViolation),
        (f"'{'x' * 64}', 'x'", psycopg.errors.CheckViolation),
        ("NULL, 'x'", psycopg.errors.NotNullViolation),
        ("'a', NULL", psycopg.errors.NotNullViolation),
    ]:
        with pytest.raises(error):
            await execute(database18, f"SELECT pgnotifybus.append({arguments})")
        channel, payload = arguments.split(", ")
        many = f"ARRAY['a', {channel}], ARRAY['x', {payload}], ARRAY[NULL, NULL]::text[]"
        with pytest.raises(error):
            await execute(
                database18,
                f"SELECT pgnotifybus.append_many({many}, ARRAY[NULL, NULL]::jsonb[])",
            )
    assert await execute(database18, "SELECT count(*) FROM pgnotifybus.events") == [(0,)]


async def test_a_transaction_that_keeps_quiet_can_be_prepared(
    private_server: Callable[..., EmbeddedServer],
) -> None:
    server = private_server(settings={"max_prepared_transactions": "2"})
    await schema.install(server.dsn)
    async with await psycopg.AsyncConnection.connect(server.dsn) as connection:
        await connection.execute("SELECT pgnotifybus.append('a', 'x')")
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="NOTIFY"):
            await connection.execute("PREPARE TRANSACTION 'loud'")
        await connection.rollback()
        await connection.execute("SET LOCAL pgnotifybus.wake = off")
        await connection.execute("SELECT pgnotifybus.append('a', 'x')")
        await connection.execute("PREPARE TRANSACTION 'quiet'")
        await connection.set_autocommit(True)
        await connection.execute("COMMIT PREPARED 'quiet'")
    await schema.remove(server.dsn)
