"""The fault proxy does to a connection what its name says, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from pgnotifybus.testing import FaultProxy


@dataclass(slots=True)
class EchoServer:
    """Sends back what it receives, and tells how each connection ended."""

    port: int = 0
    ends: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    open: set[asyncio.StreamWriter] = field(default_factory=set)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.add(writer)
        try:
            while data := await reader.read(1000):
                writer.write(data)
                await writer.drain()
            self.ends.put_nowait("fin")
        except ConnectionError:
            self.ends.put_nowait("rst")
        finally:
            self.open.discard(writer)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


class Client:
    """A client on a raw socket: it can tell FIN (empty bytes) from RST (ConnectionResetError)."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def receive(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.socket, 1000)

    async def echo(self, data: bytes) -> bytes:
        await self.send(data)
        return await self.receive()

    def sees_nothing(self) -> bool:
        """Tell whether neither data nor an end has come."""
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return False


@asynccontextmanager
async def connect(proxy: FaultProxy) -> AsyncIterator[Client]:
    with socket.socket() as plain:
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", proxy.port))
        yield Client(plain)


@pytest.fixture
async def server() -> AsyncIterator[EchoServer]:
    state = EchoServer()
    listening = await asyncio.start_server(state.handle, "127.0.0.1", 0)
    state.port = listening.sockets[0].getsockname()[1]
    yield state
    listening.close()
    await listening.wait_closed()


@pytest.fixture
async def proxy(server: EchoServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy("127.0.0.1", server.port) as proxy:
        yield proxy
    while server.open:  # the proxy has closed its side of them all
        await server.ends.get()
        await asyncio.sleep(0)


async def test_it_forwards_both_ways_and_counts(proxy: FaultProxy) -> None:
    async with connect(proxy) as client:
        assert await client.echo(b"hello") == b"hello"
        await proxy.wait_connected(1)
        assert (proxy.accepted, proxy.open) == (1, 1)
        assert proxy.forwarded == {"up": 5, "down": 5}
    await proxy.wait_open(0)
    assert proxy.accepted == 1


async def test_an_end_is_passed_on_both_ways(proxy: FaultProxy, server: EchoServer) -> None:
    async with connect(proxy) as client:
        await client.echo(b"x")
        client.socket.shutdown(socket.SHUT_WR)
        assert await server.ends.get() == "fin"
        assert await client.receive() == b""
    await proxy.wait_open(0)


async def test_a_server_that_is_not_there_looks_like_a_reset(server: EchoServer) -> None:
    with socket.socket() as bound:  # bound, but not listening: connections are refused
        bound.bind(("127.0.0.1", 0))
        async with FaultProxy("127.0.0.1", bound.getsockname()[1]) as proxy:
            async with connect(proxy) as client:
                with pytest.raises(ConnectionResetError):
                    await client.receive()
            await proxy.wait_open(0)


async def test_refuse_and_heal_keep_the_port_and_what_is_open(proxy: FaultProxy) -> None:
    port = proxy.port
    async with connect(proxy) as old:
        await old.echo(b"x")
        await proxy.refuse()
        await proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            async with connect(proxy):
                pass
        assert await old.echo(b"still there") == b"still there"
        await proxy.heal()
        async with connect(proxy) as new:
            assert await new.echo(b"back") == b"back"
    assert proxy.port == port


async def test_cut(proxy: FaultProxy, server: EchoServer) -> None:
    async with connect(proxy) as client:
        await client.echo(b"x")
        await proxy.cut()
        assert await client.receive() == b""
        assert await server.ends.get() == "fin"
        assert proxy.open == 0


async def test_cut_sends_fin_even_with_unread_data(proxy: FaultProxy, server: EchoServer) -> None:
    async with connect(proxy) as client:
        await client.echo(b"x")
        await proxy.stall()
        await client.send(b"unread" * 100_000)  # more than one chunk
        await proxy.cut()
        assert await client.receive() == b""
        assert await server.ends.get() == "fin"


async def test_reset(proxy: FaultProxy, server: EchoServer) -> None:
    async with connect(proxy) as client:
        await client.echo(b"x")
        await proxy.reset()
        with pytest.raises(ConnectionResetError):
            await client.receive()
        assert await server.ends.get() == "rst"
        assert proxy.open == 0


@pytest.mark.parametrize("direction", ["up", "down", "both"])
async def test_stall_holds_everything_back_until_healed(
    proxy: FaultProxy, server: EchoServer, direction: str
) -> None:
    async with connect(proxy) as client, connect(proxy) as sentinel:
        await client.echo(b"x")
        await sentinel.echo(b"x")
        match direction:
            case "up":
                await proxy.stall("up")
            case "down":
                await proxy.stall("down")
            case _:
                await proxy.stall()
        await client.send(b"late")
        if direction == "down":  # upwards it flows: wait for the echo to have reached the proxy
            await proxy.wait_forwarded("up", len(b"x" + b"x" + b"late"))
        assert client.sees_nothing()
        assert proxy.open == 2
        await proxy.heal()
        assert await client.receive() == b"late"
        assert await sentinel.echo(b"too") == b"too"


async def test_stall_takes_new_connections_and_says_nothing(proxy: FaultProxy) -> None:
    await proxy.stall()
    async with connect(proxy) as client:
        await client.send(b"anybody?")
        await proxy.wait_connected(1)
        assert client.sees_nothing()
        await proxy.heal()
        assert await client.receive() == b"anybody?"


async def test_a_stalled_connection_can_be_cut(proxy: FaultProxy) -> None:
    async with connect(proxy) as client:
        await client.echo(b"x")
        await proxy.stall()
        await client.send(b"lost")
        await proxy.reset()
        with pytest.raises(ConnectionResetError):
            await client.receive()


async def test_drip_arrives_in_small_parts_and_complete(proxy: FaultProxy) -> None:
    async with connect(proxy) as client:
        await proxy.drip(2000)  # bytes a second, so 100 at a time
        await client.send(b"0123456789" * 20)
        parts: list[bytes] = []
        while sum(len(part) for part in parts) < 200:
            parts.append(await client.receive())
        assert b"".join(parts) == b"0123456789" * 20
        assert len(parts) > 1
        await proxy.heal()
        assert await client.echo(b"fast") == b"fast"


@pytest.mark.parametrize("unread", [False, True])
async def test_half_close_down_ends_what_comes_and_lets_through_what_goes(
    proxy: FaultProxy, server: EchoServer, unread: bool
) -> None:
    async with connect(proxy) as client:
        await client.echo(b"x")
        if unread:
            await proxy.stall("down")
            await client.send(b"held back")
            await proxy.wait_forwarded("up", 10)
        await proxy.half_close()
        assert await client.receive() == b""
        await proxy.heal()
        sent = proxy.forwarded["up"]
        for _ in range(3):  # what the server answers goes nowhere
            await client.send(b"still heard")
            sent += 11
            await proxy.wait_forwarded("up", sent)
        assert proxy.open == 1
        assert await client.receive() == b""
    assert await server.ends.get() == "fin"


async def test_half_close_up_ends_what_goes_and_lets_through_what_comes(
    proxy: FaultProxy, server: EchoServer
) -> None:
    async with connect(proxy) as client:
        await proxy.stall("down")
        await client.send(b"answer me")
        await proxy.wait_forwarded("up", 9)
        await proxy.half_close("up")
        assert await server.ends.get() == "fin"
        await client.send(b"swallowed")
        await proxy.heal()
        assert await client.receive() == b"answer me"
    await proxy.wait_open(0)


async def test_a_cut_that_is_cancelled_has_cut(proxy: FaultProxy, server: EchoServer) -> None:
    async with connect(proxy) as client:
        await client.echo(b"x")
        cutting = asyncio.create_task(proxy.cut())
        await asyncio.sleep(0)
        cutting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cutting
        assert proxy.open == 0
        assert await client.receive() == b""


async def test_close_server_side_hides_that_the_server_has_gone(
    proxy: FaultProxy, server: EchoServer
) -> None:
    async with connect(proxy) as client:
        await client.echo(b"x")
        await proxy.close_server_side()
        assert await server.ends.get() == "fin"
        for _ in range(3):  # the first write into a closed connection succeeds, later ones fail
            await client.send(b"swallowed")
        assert client.sees_nothing()
        assert proxy.open == 1
        await proxy.heal()
        assert await client.receive() == b""


async def test_close_server_side_also_hides_the_end_of_a_later_connection(
    proxy: FaultProxy, server: EchoServer
) -> None:
    await proxy.close_server_side()
    async with connect(proxy) as client:
        await client.echo(b"x")
        for writer in list(server.open):
            writer.close()
        await server.ends.get()
        assert client.sees_nothing()
    await proxy.wait_open(0)  # the client's own end is noticed


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("postgresql://u:p%2Fw@db.example:5432/d?a=b", "postgresql://u:p%2Fw@127.0.0.1:{}/d?a=b"),
        ("postgresql://localhost/d", "postgresql://127.0.0.1:{}/d"),
    ],
)
async def test_dsn_from_replaces_only_the_place(proxy: FaultProxy, dsn: str, expected: str) -> None:
    assert proxy.dsn_from(dsn) == expected.format(proxy.port)


@pytest.mark.parametrize("dsn", ["postgresql:///d?host=/tmp", "host=localhost dbname=d"])
async def test_a_dsn_needs_a_tcp_server(proxy: FaultProxy, dsn: str) -> None:
    with pytest.raises(ValueError, match="TCP"):
        proxy.dsn_from(dsn)
    with pytest.raises(ValueError, match="TCP"):
        FaultProxy.in_front_of(dsn)


async def test_a_proxy_for_a_dsn_gives_the_dsn_through_it(
    proxy: FaultProxy, server: EchoServer
) -> None:
    async with FaultProxy.in_front_of(f"postgresql://u:secret@localhost:{server.port}/d") as other:
        assert other.dsn == f"postgresql://u:secret@127.0.0.1:{other.port}/d"
        assert "secret" not in repr(other)
        async with connect(other) as client:
            assert await client.echo(b"x") == b"x"
    with pytest.raises(ValueError, match="in_front_of"):
        _ = proxy.dsn


async def test_leaving_in_the_middle_of_everything(server: EchoServer) -> None:
    async with FaultProxy("127.0.0.1", server.port) as proxy, connect(proxy) as client:
        await client.send(b"x" * 100_000)
        await proxy.stall("down")
        async with connect(proxy):
            pass
    assert proxy.open == 0
    while server.open:
        await server.ends.get()
        await asyncio.sleep(0)
