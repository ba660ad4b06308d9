"""`pgnotifybus doctor` and `pgnotifybus top`, against real servers."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable

import psycopg
import pytest

from pgnotifybus import EventLog, PgNotifyBus, schema
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.log.consumer import Consumer
from support import pgbouncer, program
from support.documents import ROOT
from support.servers import PASSWORD
from support.sql import execute
from support.waiting import until

PrivateServer = Callable[..., EmbeddedServer]


def run(*arguments: str, dsn: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = program.clean_environment(**({"DATABASE_URL": dsn} if dsn else {}))
    return subprocess.run(
        [sys.executable, "-m", "pgnotifybus", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def examine(dsn: str, *options: str) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit code, and the findings by id."""
    done = run("doctor", "--json", *options, dsn=dsn)
    assert done.stderr == ""
    assert PASSWORD not in done.stdout
    told = json.loads(done.stdout)
    return done.returncode, {each["id"]: each for each in told["findings"]}


def test_a_server_that_is_well(database: str) -> None:
    code, found = examine(database)
    worse = {name for name, each in found.items() if each["level"] not in ("ok", "note")}
    assert worse <= {"known-bugs"}  # some wheels are old
    assert code == (1 if worse else 0)
    assert found["schema"]["level"] == "note"
    assert found["pooler"]["level"] == "ok"
    assert re.fullmatch(r"a notification arrives after [0-9.]+ ms", found["round-trip"]["seen"])
    shown = run("doctor", dsn=database)
    assert (shown.returncode, shown.stderr) == (code, "")
    assert re.search(r"^ok +standby", shown.stdout, re.MULTILINE)
    assert "-> run `pgnotifybus schema install`" in shown.stdout
    assert PASSWORD not in shown.stdout


async def test_what_is_wrong_is_found(database18: str) -> None:
    await schema.install(database18)
    await execute(
        database18,
        "CREATE TABLE orders (id int); CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN PERFORM pg_notify('orders', NEW.id::text); RETURN NULL; END $$;"
        " CREATE TRIGGER tell AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION tell()",
    )
    await execute(
        database18,
        "INSERT INTO pgnotifybus.payloads VALUES"
        " (gen_random_uuid(), 'orders', 'x', now() - interval '2 hours')",
    )
    async with EventLog(database18) as log, log.consumer("billing", "orders") as consumer:
        await execute(database18, "SELECT pgnotifybus.append('orders', '1')")
        await _fail(consumer)
        async with PgNotifyBus(database18, ["orders"]):
            code, found = await asyncio.to_thread(examine, database18)
    assert code == 1
    assert "tell on orders" in found["row-triggers"]["seen"]
    assert "1 of 1 large payloads" in found["spill-table"]["seen"]
    assert "1 of 1 consumers are failing (billing)" in found["consumers"]["seen"]
    assert found["listeners"]["seen"].startswith("2 in this database")
    assert "unheard-triggers" not in found
    _, alone = await asyncio.to_thread(examine, database18)
    assert "tell on orders" in alone["unheard-triggers"]["seen"]
    for name in ("row-triggers", "spill-table", "consumers"):
        assert found[name]["level"] == "warning"
        assert found[name]["why"]
        assert found[name]["advice"]


async def _fail(consumer: Consumer) -> None:
    with pytest.raises(ZeroDivisionError):
        async with consumer.batch():
            1 / 0  # noqa: B018


async def test_commits_that_wait_for_the_lock_are_counted(private_server: PrivateServer) -> None:
    """One waits for a standby that is not there, and holds the lock of NOTIFY for as long."""
    server = private_server(18)
    await execute(server.dsn, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    await execute(server.dsn, "SELECT pg_reload_conf()")
    await execute(server.dsn, "CHECKPOINT")  # who does that has read the settings by then
    async with (
        await psycopg.AsyncConnection.connect(server.dsn) as first,
        await psycopg.AsyncConnection.connect(server.dsn) as second,
    ):
        committing = []
        for each, event in ((first, "SyncRep"), (second, "object")):
            await each.execute("SELECT pg_logical_emit_message(true, '', '')")  # to wait for
            await each.execute("SELECT pg_notify('orders', '')")
            committing.append(asyncio.create_task(each.commit()))
            waits = "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = %s"
            await until(server.dsn, waits, event)
        code, found = await asyncio.to_thread(examine, server.dsn)
        await execute(server.dsn, "ALTER SYSTEM RESET synchronous_standby_names")
        await execute(server.dsn, "SELECT pg_reload_conf()")
        await asyncio.gather(*committing)
    assert code == 1
    assert found["notify-lock"]["level"] == "warning"
    assert found["notify-lock"]["seen"].startswith("1 commit waits")
    assert found["round-trip"]["level"] == "problem"  # and it did not wait for ever


@pytest.mark.skipif(
    pgbouncer.PROGRAM is None, reason="PgBouncer is not installed (package pgbouncer)"
)
@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_a_pooler_is_found(pg18: EmbeddedServer, database18: str, mode: pgbouncer.Mode) -> None:
    with pgbouncer.bouncer(pg18, database18, mode) as bouncer:
        code, found = examine(bouncer.dsn)
    level, code_expected = ("note", 0) if mode == "session" else ("problem", 1)
    assert (found["pooler"]["level"], code) == (level, code_expected)
    if mode == "transaction":
        assert "session pooling" in found["pooler"]["advice"]


async def test_triggers_that_send_whole_rows_are_found(database: str) -> None:
    """By what their functions say; and the rows are looked at without being read."""
    functions = {
        "keys": "pg_notify('c', NEW.id::text)",
        "doc": "pg_notify('c', to_jsonb ( NEW )::text)",
        "old": "pg_notify('c', row_to_json(old, true)::text)",
        "plain": "pg_notify('c', (NEW.*)::text)",
        "other": "to_jsonb(NEW)",
    }
    for name, call in functions.items():
        await execute(
            database,
            f"CREATE TABLE {name} (id int, body text);"
            f" CREATE FUNCTION tell_{name}() RETURNS trigger LANGUAGE plpgsql"
            f" AS $$ BEGIN PERFORM {call}; RETURN NEW; END $$;"
            f" CREATE TRIGGER tell AFTER UPDATE ON {name}"
            f" FOR EACH ROW EXECUTE FUNCTION tell_{name}()",
        )
    _, found = await asyncio.to_thread(examine, database)
    assert found["whole-rows"]["level"] == "note"
    told = found["whole-rows"]["seen"].partition(": ")[2]
    assert told == "tell on doc, tell on old, tell on plain"
    await execute(database, "ALTER TABLE doc ALTER body SET STORAGE EXTERNAL")
    await execute(database, "INSERT INTO doc VALUES (1, repeat('x', 5000)); ANALYZE doc")
    _, found = await asyncio.to_thread(examine, database)
    assert found["whole-rows"]["level"] == "warning"
    told = found["whole-rows"]["seen"].partition(": ")[2]
    assert re.match(r"tell on doc \([0-9]+ bytes on average, some over 2,000\)", told)
    await execute(database, "DROP TRIGGER tell ON doc; DROP TRIGGER tell ON old")
    await execute(database, "DROP TRIGGER tell ON plain")
    _, found = await asyncio.to_thread(examine, database)
    assert "whole-rows" not in found


async def test_what_a_role_may_not_see_is_told(pg18: EmbeddedServer, database18: str) -> None:
    await schema.install(database18)
    await execute(database18, f"CREATE ROLE nobody_much LOGIN PASSWORD '{PASSWORD}'")
    try:
        [(name,)] = await execute(database18, "SELECT current_database()")
        dsn = pg18.dsn_for(user="nobody_much", password=PASSWORD, database=name)
        _, found = await asyncio.to_thread(examine, dsn)
    finally:
        await execute(database18, "DROP ROLE nobody_much")
    assert found["activity-rights"]["level"] == "note"
    assert "could not be found out" in found["spill-table"]["seen"]
    assert found["round-trip"]["level"] == "ok"


def test_a_server_that_is_not_there(unused_tcp_port: int) -> None:
    dsn = f"postgresql://postgres:{PASSWORD.replace('/', '%2F')}@127.0.0.1:{unused_tcp_port}/shop"
    for command in (["doctor"], ["doctor", "--json"], ["top", "--count", "1"]):
        done = run(*command, dsn=dsn)
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.startswith("error: cannot connect to 127.0.0.1")
        assert "Check host, port" in done.stderr


async def test_top_looks_again_and_again(database18: str) -> None:
    await schema.install(database18)
    async with (
        EventLog(database18) as log,
        log.consumer("billing", "orders") as consumer,
        PgNotifyBus(database18, ["orders"]),
    ):
        await execute(database18, "SELECT pgnotifybus.append('orders', '1')")
        done = await asyncio.to_thread(
            run, "top", "--json", "--count", "2", "--interval", "0.05", dsn=database18
        )
        plain = await asyncio.to_thread(run, "top", "--count", "1", dsn=database18)
        async with consumer.batch():
            pass
    looks = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr, len(looks)) == (0, "", 2)
    for look in looks:
        assert look["queue_usage"] < 0.5
        assert look["waiting"] == 0
        assert len([each for each in look["listeners"] if "listener" in each["application"]]) == 2
        [billing] = look["consumers"]
        assert (billing["name"], billing["events"]) == ("billing", 1)
    assert "listeners 2" in plain.stdout
    assert "1 events behind" in plain.stdout


def test_top_ends_when_nobody_reads_it_any_more(database18: str) -> None:
    command = f"{sys.executable} -m pgnotifybus top --interval 0.05 | head -n 2"
    done = subprocess.run(
        ["sh", "-c", command],
        env=program.clean_environment(DATABASE_URL=database18),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout.count("queue")) == (0, "", 2)


def test_every_finding_is_documented() -> None:
    ids = set()
    for path in (ROOT / "src/pgnotifybus/diagnosis").glob("*.py"):
        ids |= set(re.findall(r'Finding\(\s*"([a-z-]+)"', path.read_text()))
    page = (ROOT / "docs/howto/doctor.md").read_text()
    assert {f"| `{each}` |" for each in ids} <= set(re.findall(r"\| `[a-z-]+` \|", page))
    assert len(ids) > 12
