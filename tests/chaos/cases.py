"""The faults: what is done, what ends it, and what the bus needs to notice it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from chaos.world import World
from pgnotifybus import observe
from pgnotifybus.supervision import Timing
from pgnotifybus.testing import FaultProxy
from support.pgbouncer import bouncer
from support.tls import tls_in_front_of

Step = Callable[[World], Awaitable[Any]]


async def _nothing(world: World) -> None:
    pass


@dataclass(frozen=True)
class Case:
    """One fault."""

    title: str
    strike: Step
    mend: Step = _nothing
    """What ends it; nothing, if it ends by itself."""
    prepare: Step = _nothing
    """What is done before the bus is started."""
    noticed_by: Literal["kernel", "probe", "nobody"] = "kernel"
    """What tells the bus; nobody, where nothing is lost."""
    quiet: bool = False
    """Whether nothing is sent meanwhile."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Of a server of its own."""
    needs_pgbouncer: bool = False
    channels: int = 0
    """How many more channels of run time there are."""
    receivers: int = 0
    """How many more receivers of one channel there are."""
    meanwhile: Step = _nothing
    """What must be so before it is mended."""

    afterwards: Step = _nothing
    """What must be so when the link is up again."""

    @property
    def mends_itself(self) -> bool:
        """Whether nothing needs to be done for it to end."""
        return self.mend is _nothing


# -- what is done ---------------------------------------------------------------------------------


async def _terminate(world: World) -> None:
    await world.kill_listener()


def _server(how: str, *arguments: str) -> Step:
    async def step(world: World) -> None:
        await asyncio.to_thread(getattr(world.server, how), *arguments)

    return step


def _network(how: str, *arguments: Any) -> Step:
    async def step(world: World) -> None:
        await getattr(world.proxy, how)(*arguments)

    return step


async def _heal(world: World) -> None:
    await world.proxy.heal()


async def _reset_and_heal(world: World) -> None:
    """What was held back for so long comes to nobody any more."""
    await world.proxy.reset()
    await world.proxy.heal()


async def _tried_in_vain(world: World) -> None:
    await world.observer.wait_for(observe.ConnectFailed, timeout=60)


async def _stall_an_answer(world: World) -> None:
    """The probe has gone out, and its answer is swallowed."""
    before = world.proxy.forwarded["up"]
    await world.proxy.wait_forwarded("up", before + 1)
    await world.proxy.stall("down")


async def _stall_a_listen(world: World) -> None:
    await world.proxy.stall("down")
    world.notes["wish"] = asyncio.create_task(world.bus.listen("wished for"))


async def _wish_is_granted(world: World) -> None:
    receiver = await world.notes["wish"]
    receiver.close()


async def _lose_it_and_stall(world: World) -> None:
    """The next attempt is swallowed."""
    await world.proxy.stall("down")
    await world.proxy.reset()


async def _stall_the_handshake(world: World) -> None:
    """The server has agreed to TLS, and then nothing comes any more."""
    before = world.proxy.forwarded["down"]
    await world.proxy.reset()
    await world.proxy.wait_forwarded("down", before + 1)
    await world.proxy.stall("down")


async def _through_tls(world: World) -> None:
    tls = await world.stack.enter_async_context(tls_in_front_of(world.dsn, verified=True))
    proxy = await world.stack.enter_async_context(FaultProxy.in_front_of(tls.dsn))
    world.proxy, world.source = proxy, proxy.dsn


async def _refuse(world: World) -> None:
    await world.proxy.refuse()
    await world.proxy.reset()


async def _by_name(world: World) -> None:
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


async def _leave_the_address(world: World) -> None:
    """There is nobody there any more, until the name means another."""
    await world.proxy.refuse()
    await world.proxy.reset()


async def _name_another(world: World) -> None:
    target = urlsplit(world.dsn)
    other = FaultProxy(
        target.hostname or "", target.port or 0, host="127.0.0.2", port=world.proxy.port
    )
    await world.stack.enter_async_context(other)
    world.notes["address"] = "127.0.0.2"


async def _as_somebody(world: World) -> None:
    """A role of its own, whose password a function tells."""
    await world.sql("DROP ROLE IF EXISTS somebody")
    await world.sql("CREATE ROLE somebody LOGIN PASSWORD 'of yesterday'")
    world.stack.push_async_callback(world.sql, "DROP ROLE somebody")
    world.notes["password"] = "of yesterday"
    parts = urlsplit(world.proxy.dsn)
    world.source = parts._replace(netloc=f"somebody:unused@127.0.0.1:{world.proxy.port}").geturl()
    world.options["password"] = lambda: world.notes["password"]


async def _change_the_password(world: World) -> None:
    await world.sql("ALTER ROLE somebody PASSWORD 'of today'")
    await world.kill_listener()


async def _tell_the_password(world: World) -> None:
    world.notes["password"] = "of today"


async def _let_nobody_in(world: World) -> None:
    await world.sql("ALTER ROLE somebody CONNECTION LIMIT 0")
    await world.kill_listener()


async def _let_them_in(world: World) -> None:
    await world.sql("ALTER ROLE somebody CONNECTION LIMIT -1")


async def _reject(world: World) -> None:
    path = world.server.data_dir / "pg_hba.conf"
    world.notes["hba"] = path.read_text()
    path.write_text("host all somebody all reject\n" + world.notes["hba"])
    await world.sql("SELECT pg_reload_conf()")
    await world.kill_listener()


async def _accept(world: World) -> None:
    (world.server.data_dir / "pg_hba.conf").write_text(world.notes["hba"])
    await world.sql("SELECT pg_reload_conf()")


async def _drop_the_database(world: World) -> None:
    name = urlsplit(world.dsn).path.lstrip("/")
    await world.sql(f"DROP DATABASE {name} WITH (FORCE)")


async def _create_the_database(world: World) -> None:
    name = urlsplit(world.dsn).path.lstrip("/")
    await world.sql(f"CREATE DATABASE {name}")


async def _become_a_standby(world: World) -> None:
    await asyncio.to_thread(world.server.stop)
    signal = world.server.data_dir / "standby.signal"
    signal.touch()
    owner = world.server.data_dir.stat()
    await asyncio.to_thread(_own, signal, owner.st_uid, owner.st_gid)
    await asyncio.to_thread(world.server.start)


def _own(path: Any, user: int, group: int) -> None:
    import os

    os.chown(path, user, group)


async def _promote(world: World) -> None:
    await world.sql("SELECT pg_promote()")


async def _seen_to_be_a_standby(world: World) -> None:
    await world.observer.wait_for(
        observe.ConnectFailed, where=lambda event: "standby" in str(event.error), timeout=60
    )


async def _through_a_bouncer(world: World) -> None:
    """In session mode, which keeps sessions."""
    manager = bouncer(world.server, world.dsn, "session")
    world.notes["bouncer"] = manager
    dsn = await asyncio.to_thread(manager.__enter__)
    world.stack.callback(manager.__exit__, None, None, None)
    world.proxy = await world.stack.enter_async_context(FaultProxy.in_front_of(dsn))
    world.source = world.proxy.dsn


async def _block(world: World) -> None:
    """For longer than a question and its answer may take: with the defaults, 10 s."""
    timing = Timing(**{name: world.options[name] for name in _PROBES if name in world.options})
    assert timing.probe_interval is not None
    time.sleep(timing.probe_interval + timing.probe_timeout + 1)  # noqa: ASYNC251 - the fault


async def _change_the_clock(world: World) -> None:
    """A day ahead, and a day back."""
    now = time.time
    world.stack.callback(setattr, time, "time", now)

    def jump(seconds: float) -> None:
        setattr(time, "time", lambda: now() + seconds)  # noqa: B010 - the fault

    for seconds in (86_400, -86_400):
        jump(seconds)
        await world.settle()


# -- the faults -----------------------------------------------------------------------------------

_STANDBY: Final = {"hot_standby": "on"}
_PROBES: Final = ("probe_interval", "probe_timeout")

CASES: Final[dict[str, Case]] = {
    "terminated": Case("the backend is terminated", _terminate),
    "restarted": Case("the server is restarted, fast", _server("restart", "fast")),
    "restarted at once": Case(
        "the server is restarted, immediate", _server("restart", "immediate")
    ),
    "crashed": Case(
        "the server is killed (SIGKILL) and recovers", _server("kill"), _server("start")
    ),
    "stopped": Case(
        "the server is stopped (SIGSTOP) and goes on",
        _server("pause"),
        _server("resume"),
        noticed_by="probe",
    ),
    "black hole, idle": Case(
        "the network swallows everything, nothing is sent",
        _network("stall"),
        _reset_and_heal,
        noticed_by="probe",
        quiet=True,
    ),
    "black hole": Case(
        "the network swallows everything, under traffic",
        _network("stall"),
        _reset_and_heal,
        noticed_by="probe",
    ),
    "black hole, up": Case(
        "the network swallows what goes to the server, nothing is sent",
        _network("stall", "up"),
        _reset_and_heal,
        noticed_by="probe",
        quiet=True,
    ),
    "black hole, probe in flight": Case(
        "the network swallows the answer to a probe",
        _stall_an_answer,
        _reset_and_heal,
        noticed_by="probe",
        quiet=True,
    ),
    "black hole, LISTEN": Case(
        "the network swallows the answer to a LISTEN",
        _stall_a_listen,
        _reset_and_heal,
        noticed_by="probe",
        afterwards=_wish_is_granted,
    ),
    "black hole, connecting": Case(
        "the connection is reset, and the next attempts are swallowed",
        _lose_it_and_stall,
        _reset_and_heal,
        meanwhile=_tried_in_vain,
    ),
    "black hole, TLS handshake": Case(
        "the connection is reset, and the next TLS handshake is swallowed",
        _stall_the_handshake,
        _reset_and_heal,
        prepare=_through_tls,
        meanwhile=_tried_in_vain,
    ),
    "black hole, TLS": Case(
        "the network swallows everything, through TLS with a private CA",
        _network("stall"),
        _reset_and_heal,
        prepare=_through_tls,
        noticed_by="probe",
    ),
    "reset": Case("the connection is reset (RST)", _network("reset")),
    "closed": Case("the connection is closed (FIN)", _network("cut")),
    "half-closed, down": Case("the server's side is closed (FIN one way)", _network("half_close")),
    "half-closed, up": Case(
        "the client's side is closed on the way (FIN one way)", _network("half_close", "up")
    ),
    "kept open": Case(
        "a proxy keeps the client's side open, and the server's is gone",
        _network("close_server_side"),
        _reset_and_heal,
        noticed_by="probe",
    ),
    "drips": Case(
        "the network carries one byte a second",
        _network("drip", 1),
        _reset_and_heal,
        noticed_by="probe",
    ),
    "refused": Case("connections are reset, and refused", _refuse, _heal, meanwhile=_tried_in_vain),
    "another address": Case(
        "the name of the server means another address",
        _leave_the_address,
        _name_another,
        prepare=_by_name,
        meanwhile=_tried_in_vain,
    ),
    "another password": Case(
        "the password has changed",
        _change_the_password,
        _tell_the_password,
        prepare=_as_somebody,
        meanwhile=_tried_in_vain,
    ),
    "too many connections": Case(
        "there are too many connections (53300)",
        _let_nobody_in,
        _let_them_in,
        prepare=_as_somebody,
        meanwhile=_tried_in_vain,
    ),
    "rejected": Case(
        "pg_hba.conf rejects the role",
        _reject,
        _accept,
        prepare=_as_somebody,
        meanwhile=_tried_in_vain,
    ),
    "database dropped": Case(
        "the database is dropped, and made again",
        _drop_the_database,
        _create_the_database,
        meanwhile=_tried_in_vain,
    ),
    "demoted": Case(
        "the primary becomes a standby, and is promoted",
        _become_a_standby,
        _promote,
        settings=_STANDBY,
        meanwhile=_seen_to_be_a_standby,
    ),
    "pooler reset": Case(
        "the way to PgBouncer in session mode is reset",
        _network("reset"),
        prepare=_through_a_bouncer,
        needs_pgbouncer=True,
    ),
    "ten thousand channels": Case(
        "the backend of 10,000 channels is terminated", _terminate, channels=10_000
    ),
    "ten thousand receivers": Case(
        "the backend of 10,000 receivers is terminated", _terminate, receivers=10_000
    ),
    "blocked": Case(
        "the event loop is blocked for longer than a probe may take", _block, noticed_by="nobody"
    ),
    "another time": Case(
        "the wall clock jumps by a day, and back", _change_the_clock, noticed_by="nobody"
    ),
}
