"""Statements that are planned once: the plans, and what becomes of them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from pgnotifybus import schema
from pgnotifybus.core.position import behind
from pgnotifybus.database.plans import Plans
from pgnotifybus.database.queries import run
from pgnotifybus.links.base import Link, ServerError
from pgnotifybus.links.sources import Driver, connector
from pgnotifybus.log import pacing, reading, retention
from pgnotifybus.log.here import look
from pgnotifybus.log.newer import newer, parameter
from support.sql import execute

# Whoever plans as if a third of a large table were new would start workers and a compiler.
_TEMPTING = (
    "parallel_setup_cost = 0",
    "parallel_tuple_cost = 0",
    "min_parallel_table_scan_size = 0",
    "min_parallel_index_scan_size = 0",
    "jit_above_cost = 0",
)


@pytest.fixture(params=["psycopg", "asyncpg"])
async def link(request: pytest.FixtureRequest, database18: str) -> AsyncIterator[Link]:
    driver: Driver = request.param
    await schema.install(database18)
    [(name,)] = await execute(database18, "SELECT current_database()")
    for setting in _TEMPTING:
        await execute(database18, f'ALTER DATABASE "{name}" SET {setting}')
    link = await connector(database18, driver).connect("test", 10.0)
    yield link
    await link.close()


async def test_the_reads_of_the_log_go_over_its_index(link: Link) -> None:
    """However many rows there are, and whatever the planner believes of them."""
    await link.execute(
        "INSERT INTO pgnotifybus.events (channel, payload)"
        " SELECT 'orders', 'x' FROM generate_series(1, 20000); ANALYZE pgnotifybus.events"
    )
    plans = Plans()
    here = await run(look("pgnotifybus"), link)
    new = newer("pgnotifybus", here.now, parameter(1), "channel")
    told = pacing._CHANNELS.format(newer=new)
    for _ in range(2):
        script = reading.read("pgnotifybus", behind(here.epoch, here.now), ["orders"], 500)
        page = await run(script, plans.over(link))
        assert page.rows == []
        assert len(await plans.over(link).fetch(told, str(here.now.snapshot))) == 1
    statements = await link.fetch(
        "SELECT name, cardinality(parameter_types)::text FROM pg_prepared_statements"
        " WHERE name LIKE 'pgnotifybus%'"
    )
    assert len(statements) == 2
    for name, parameters in statements:
        nulls = ", ".join(["NULL"] * int(parameters or 0))
        lines = await link.fetch(f"EXPLAIN EXECUTE {name} ({nulls})")
        plan = "\n".join(line or "" for (line,) in lines)
        assert "events_era_xid" in plan
        for dear in ("Gather", "Seq Scan on events", "Bitmap", "JIT"):
            assert dear not in plan, plan


async def test_a_segment_is_closed_over_the_index(link: Link) -> None:
    """However long the log is: only what is in no segment yet is counted."""
    await link.execute(
        "INSERT INTO pgnotifybus.events (channel, payload)"
        " SELECT 'orders', 'x' FROM generate_series(1, 20000); ANALYZE pgnotifybus.events"
    )
    assert await retention.cut(link, "pgnotifybus")
    _, new = await retention._new(link, "pgnotifybus", "id, payload")
    lines = await link.fetch(f"EXPLAIN {new}")
    plan = "\n".join(line or "" for (line,) in lines)
    assert "Seq Scan on events" not in plan
    assert plan.count("events_era_xid") == 3


async def test_a_plan_is_made_for_what_comes_again(link: Link) -> None:
    plans = Plans()
    count = "SELECT count(*)::text FROM pg_prepared_statements WHERE name LIKE 'pgnotifybus%'"
    runner = plans.over(link)
    quoted = "it's \\ 100 % $1"
    for known in ("0", "1", "1"):
        assert await runner.fetch("SELECT CAST($1 AS text)", quoted) == [(quoted,)]
        assert await link.fetch(count) == [(known,)]
    assert await runner.fetch("SELECT CAST($1 AS text)", None) == [(None,)]


async def test_a_plan_that_is_out_of_date_is_made_anew(link: Link) -> None:
    plans = Plans()
    await link.execute("CREATE TABLE changing (a int); INSERT INTO changing VALUES (1)")
    for _ in range(3):
        assert await plans.over(link).fetch("SELECT a::text FROM changing") == [("1",)]
    await link.execute("DEALLOCATE pgnotifybus_1")
    assert await plans.over(link).fetch("SELECT a::text FROM changing") == [("1",)]
    await link.execute("DROP TABLE changing")
    for _ in range(3):
        with pytest.raises(ServerError, match="changing"):
            await plans.over(link).fetch("SELECT a::text FROM changing")
    assert await plans.over(link).fetch("SELECT 1::text") == [("1",)]
