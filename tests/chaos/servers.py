"""What is done to the server: its processes, roles, databases, and what it is."""

from __future__ import annotations

import asyncio
import os
from urllib.parse import urlsplit

import psycopg

from chaos.case import Step
from chaos.world import World
from pgnotifybus import observe
from support.copies import several_hosts, standby_beside
from support.servers import PASSWORD


async def terminate(world: World) -> None:
    """The backend of the bus."""
    await world.kill_listener()


def doing(how: str, *arguments: str) -> Step:
    """Something that an embedded server can do."""

    async def step(world: World) -> None:
        await asyncio.to_thread(getattr(world.server, how), *arguments)

    return step


async def as_somebody(world: World) -> None:
    """A role of its own, whose password a function tells."""
    await world.sql("DROP ROLE IF EXISTS somebody")
    await world.sql("CREATE ROLE somebody LOGIN PASSWORD 'of yesterday'")
    world.stack.push_async_callback(world.sql, "DROP ROLE somebody")
    world.notes["password"] = "of yesterday"
    parts = urlsplit(world.proxy.dsn)
    world.source = parts._replace(netloc=f"somebody:unused@127.0.0.1:{world.proxy.port}").geturl()
    world.options["password"] = lambda: world.notes["password"]


async def change_the_password(world: World) -> None:
    """The server wants another one than the bus is told."""
    await world.sql("ALTER ROLE somebody PASSWORD 'of today'")
    await world.kill_listener()


async def tell_the_password(world: World) -> None:
    """The function tells the new one."""
    world.notes["password"] = "of today"


async def let_nobody_in(world: World) -> None:
    """As if all connections of the role were taken."""
    await world.sql("ALTER ROLE somebody CONNECTION LIMIT 0")
    await world.kill_listener()


async def let_them_in(world: World) -> None:
    """There is room again."""
    await world.sql("ALTER ROLE somebody CONNECTION LIMIT -1")


async def reject(world: World) -> None:
    """Before any password is asked for."""
    path = world.server.data_dir / "pg_hba.conf"
    world.notes["hba"] = path.read_text()
    path.write_text("host all somebody all reject\n" + world.notes["hba"])
    await world.sql("SELECT pg_reload_conf()")
    await world.kill_listener()


async def accept(world: World) -> None:
    """As before."""
    (world.server.data_dir / "pg_hba.conf").write_text(world.notes["hba"])
    await world.sql("SELECT pg_reload_conf()")


async def drop_the_database(world: World) -> None:
    """With all who are connected to it."""
    name = urlsplit(world.dsn).path.lstrip("/")
    await world.sql(f"DROP DATABASE {name} WITH (FORCE)")


async def create_the_database(world: World) -> None:
    """Another one, of the same name."""
    name = urlsplit(world.dsn).path.lstrip("/")
    await world.sql(f"CREATE DATABASE {name}")


async def become_a_standby(world: World) -> None:
    """The same server, which is up again and takes no LISTEN."""
    await asyncio.to_thread(world.server.stop)
    signal = world.server.data_dir / "standby.signal"
    signal.touch()
    owner = world.server.data_dir.stat()
    os.chown(signal, owner.st_uid, owner.st_gid)
    await asyncio.to_thread(world.server.start)


async def promote(world: World) -> None:
    """The standby becomes a primary."""
    await world.sql("SELECT pg_promote()")


async def seen_to_be_a_standby(world: World) -> None:
    await world.observer.wait_for(
        observe.ConnectFailed, where=lambda event: "standby" in str(event.error), timeout=60
    )


async def with_a_standby(world: World) -> None:
    """One that streams; the bus is told of both, and so is the writer."""
    primary = world.server
    standby = await asyncio.to_thread(world.stack.enter_context, standby_beside(primary, PASSWORD))
    world.stack.push_async_callback(asyncio.to_thread, primary.start)
    world.notes["standby"] = standby.dsn
    world.source = several_hosts(world.proxy.dsn, standby.dsn)
    world.dsn = several_hosts(world.dsn, standby.dsn) + "?target_session_attrs=read-write"


async def promote_the_other(world: World) -> None:
    """The one that has streamed."""
    await world.sql("SELECT pg_promote()", world.notes["standby"])


async def fill_the_queue(world: World) -> None:
    """Somebody listens and stays in a transaction, until nobody can send; then they leave."""
    async with await psycopg.AsyncConnection.connect(world.dsn) as stuck:
        await stuck.execute("LISTEN filler")
        await stuck.commit()
        await stuck.execute("SELECT 1")
        filler = "SELECT pg_notify('filler', repeat('x', 7000) || n) FROM generate_series(1, 8) n"
        while True:
            try:
                await world.sql(filler, world.dsn)
            except psycopg.errors.ProgramLimitExceeded:
                break
        health = await world.bus.wait_until("lagging", timeout=30)
        assert health.queue_usage is not None
        assert health.queue_usage > 0.5, health
        async with asyncio.timeout(30):
            await world.refused.wait()
    await world.bus.wait_until("live", timeout=30)
