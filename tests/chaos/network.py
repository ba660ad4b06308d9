"""What is done to the network, and to where it leads."""

from __future__ import annotations

import asyncio
import socket
from typing import Any
from urllib.parse import urlsplit

from chaos.case import Step
from chaos.world import World
from pgnotifybus import observe
from pgnotifybus.testing import FaultProxy
from support.tls import tls_in_front_of


def doing(how: str, *arguments: Any) -> Step:
    """Something that the proxy can do."""

    async def step(world: World) -> None:
        await getattr(world.proxy, how)(*arguments)

    return step


async def heal(world: World) -> None:
    """All goes through again."""
    await world.proxy.heal()


async def reset_and_heal(world: World) -> None:
    """What was held back for so long comes to nobody any more."""
    await world.proxy.reset()
    await world.proxy.heal()


async def tried_in_vain(world: World) -> None:
    """It is not only lost: the bus has tried to connect."""
    await world.observer.wait_for(observe.ConnectFailed, timeout=60)


async def tried_in_vain_twice(world: World) -> None:
    """With the defaults, half a minute after a server has fallen silent."""
    await world.observer.wait_for(observe.ConnectFailed, 2, timeout=60)


async def stall_an_answer(world: World) -> None:
    """The probe has gone out, and its answer is swallowed."""
    before = world.proxy.forwarded["up"]
    await world.proxy.wait_forwarded("up", before + 1)
    await world.proxy.stall("down")


async def stall_a_listen(world: World) -> None:
    await world.proxy.stall("down")
    world.notes["wish"] = asyncio.create_task(world.bus.listen("wished for"))


async def wish_is_granted(world: World) -> None:
    """Who waited for the LISTEN is a receiver now."""
    receiver = await world.notes["wish"]
    receiver.close()


async def lose_it_and_stall(world: World) -> None:
    """The next attempt is swallowed."""
    await world.proxy.stall("down")
    await world.proxy.reset()


async def stall_the_handshake(world: World) -> None:
    """The server has agreed to TLS, and then nothing comes any more."""
    before = world.proxy.forwarded["down"]
    await world.proxy.reset()
    await world.proxy.wait_forwarded("down", before + 1)
    await world.proxy.stall("down")


async def through_tls(world: World) -> None:
    """With the certificate of a private CA, which is verified."""
    tls = await world.stack.enter_async_context(tls_in_front_of(world.dsn, verified=True))
    proxy = await world.stack.enter_async_context(FaultProxy.in_front_of(tls.dsn))
    world.proxy, world.source = proxy, proxy.dsn


async def refuse(world: World) -> None:
    """Nobody is let in any more, and who is in is thrown out."""
    await world.proxy.refuse()
    await world.proxy.reset()


async def by_name(world: World) -> None:
    """The bus is given a name that a resolver of ours knows, which may change its mind."""
    address = "127.0.0.1"
    parts = urlsplit(world.proxy.dsn)
    who = parts.netloc.rpartition("@")[0]
    netloc = f"{who}@moving.invalid:{parts.port}"
    world.source = parts._replace(netloc=netloc).geturl()
    world.notes["address"] = address
    resolve = socket.getaddrinfo

    def resolver(host: Any, *arguments: Any, **options: Any) -> Any:
        if host in ("moving.invalid", b"moving.invalid"):
            host = world.notes["address"]
        return resolve(host, *arguments, **options)

    socket.getaddrinfo = resolver
    world.stack.callback(setattr, socket, "getaddrinfo", resolve)
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.BaseEventLoop):  # uvloop asks libuv

        async def resolver_of_loop(*arguments: Any, **options: Any) -> Any:
            return await asyncio.to_thread(resolver, *arguments, **options)

        loop.getaddrinfo = resolver_of_loop  # type: ignore[method-assign]


async def leave_the_address(world: World) -> None:
    """There is nobody there any more, until the name means another."""
    await world.proxy.refuse()
    await world.proxy.reset()


async def name_another(world: World) -> None:
    """The name means another address, and there is somebody."""
    target = urlsplit(world.dsn)
    other = FaultProxy(
        target.hostname or "", target.port or 0, host="127.0.0.2", port=world.proxy.port
    )
    await world.stack.enter_async_context(other)
    world.notes["address"] = "127.0.0.2"
