"""What stands between the bus and the server: PgBouncer, and pools of connections."""

from __future__ import annotations

import asyncio

import asyncpg
import psycopg_pool

from chaos.world import World
from pgnotifybus import BehindPooler, observe
from pgnotifybus.testing import FaultProxy
from support.pgbouncer import Mode, bouncer


async def through_sessions(world: World) -> None:
    """Through PgBouncer, which keeps sessions."""
    dsn = await _bouncer(world, "session")
    world.proxy = await world.stack.enter_async_context(FaultProxy.in_front_of(dsn))
    world.source = world.proxy.dsn


async def past_shared_sessions(world: World) -> None:
    """Through PgBouncer, which keeps none; and an address is given that leads past it."""
    world.source = await _bouncer(world, "transaction")
    world.options["direct_dsn"] = world.proxy.dsn


async def _bouncer(world: World, mode: Mode) -> str:
    manager = bouncer(world.server, world.dsn, mode)
    world.notes["bouncer"] = await asyncio.to_thread(world.stack.enter_context, manager)
    dsn: str = world.notes["bouncer"].dsn
    return dsn


async def share_sessions(world: World) -> None:
    """Notifications come to nobody any more, from the next link on."""
    await asyncio.to_thread(world.notes["bouncer"].change, "transaction")
    await world.proxy.reset()


async def keep_sessions(world: World) -> None:
    """As at first."""
    await asyncio.to_thread(world.notes["bouncer"].change, "session")


async def seen_to_be_shared(world: World) -> None:
    """The bus has found out, though LISTEN succeeds."""
    await world.observer.wait_for(
        observe.ConnectFailed, where=lambda event: isinstance(event.error, BehindPooler), timeout=60
    )


async def of_asyncpgs_pool(world: World) -> None:
    """The bus keeps a connection of it."""
    pool = await asyncpg.create_pool(world.proxy.dsn, min_size=1, max_size=2)
    world.stack.callback(pool.terminate)
    world.source = pool


async def terminate_the_pool(world: World) -> None:
    """Closing it would wait for the bus."""
    world.source.terminate()


async def of_psycopgs_pool(world: World) -> None:
    """The bus has a connection of its own, made as the pool makes them."""
    pool = psycopg_pool.AsyncConnectionPool(world.proxy.dsn, open=False, min_size=1)
    await pool.open()
    world.stack.push_async_callback(pool.close)
    world.source = pool


async def close_the_pool(world: World) -> None:
    """The pool alone."""
    await world.source.close()
