"""What every link promises, whichever driver is underneath and whichever loop runs it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from pgnotifybus.core.names import MAX_PAYLOAD_BYTES
from pgnotifybus.errors import LinkLost
from pgnotifybus.links.base import NOTIFY, Link, ServerError
from pgnotifybus.links.sources import Driver, connector
from support.sql import execute
from support.tls import tls_in_front_of

Connect = Callable[[str], Awaitable[Link]]

NASTY_NAMES = [
    "plain",
    "MixedCase",
    "with space",
    'with "quotes"',
    "with 'apostrophes'",
    "semi;colon -- comment /* */",
    "back\\slash",
    "percent %s $1",
    "žluťoučký 🐎",
    "new\nline",
    "a" * 63,
    "é" * 31,
    "select",
]
NASTY_PAYLOADS = [
    "",
    "0",
    "quote ' double \" back \\ percent %s dollar $1",
    "new\nline\ttab\r",
    "žluťoučký kůň 🐎",
    "x" * MAX_PAYLOAD_BYTES,
    "é" * (MAX_PAYLOAD_BYTES // 2),
]


class Inbox:
    """A sink that a test can wait on."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, str]] = []
        self.pids: set[int] = set()
        self.calls = 0
        self._arrived = asyncio.Event()

    def __call__(self, channel: str, payloads: list[str], pids: list[int]) -> None:
        self.calls += 1
        assert len(payloads) == len(pids) > 0
        self.messages += [(channel, payload) for payload in payloads]
        self.pids.update(pids)
        self._arrived.set()

    async def until(self, last: tuple[str, str]) -> list[tuple[str, str]]:
        """Everything up to and with `last`."""
        async with asyncio.timeout(20):
            while last not in self.messages:
                self._arrived.clear()
                await self._arrived.wait()
        return self.messages


@pytest.fixture(params=["psycopg", "asyncpg"])
def driver(request: pytest.FixtureRequest) -> Driver:
    found: Driver = request.param
    return found


@pytest.fixture
async def connect(driver: Driver) -> AsyncIterator[Connect]:
    """Makes links, and closes them after the test."""
    links: list[Link] = []

    async def make(dsn: str) -> Link:
        link = await connector(dsn, driver).connect("listener", 10)
        links.append(link)
        return link

    yield make
    for link in links:
        await link.close()


@pytest.fixture
async def link(database18: str, connect: Connect) -> Link:
    return await connect(database18)


async def test_hands_on_every_name_and_payload_as_it_is(link: Link) -> None:
    """Trap 22."""
    inbox = Inbox()
    await link.change(NASTY_NAMES, [])
    link.start(inbox)
    expected = [(name, payload) for name in NASTY_NAMES for payload in NASTY_PAYLOADS]
    for name, payload in expected:
        await link.fetch(NOTIFY, name, payload)
    assert await inbox.until(expected[-1]) == expected
    assert (await link.inspect()).channels == set(NASTY_NAMES)


async def test_works_on_every_server(database: str, connect: Connect) -> None:
    link = await connect(database)
    inbox = Inbox()
    await link.change(["orders"], [])
    link.start(inbox)
    await link.fetch(NOTIFY, "orders", "42")
    assert await inbox.until(("orders", "42")) == [("orders", "42")]
    assert inbox.pids == {link.pid}
    assert not (await link.inspect()).in_recovery
    assert int(link.server_version.split(".")[0]) >= 15


async def test_keeps_the_order_of_a_large_transaction(link: Link, database18: str) -> None:
    inbox = Inbox()
    await link.change(["a", "b"], [])
    link.start(inbox)
    await execute(
        database18,
        "SELECT pg_notify(CASE i % 2 WHEN 0 THEN 'a' ELSE 'b' END, i::text)"
        " FROM generate_series(1, 20000) AS i",
    )
    messages = await inbox.until(("a", "20000"))
    for channel, first in (("a", 2), ("b", 1)):
        payloads = [int(payload) for name, payload in messages if name == channel]
        assert payloads == list(range(first, payloads[-1] + 1, 2))
    assert inbox.calls < 20_000, "messages of one packet should come together"


async def test_holds_back_until_started(link: Link) -> None:
    """Trap 17: what comes in the same packet as the answer to LISTEN is not lost."""
    inbox = Inbox()
    await link.change(["early"], [])
    await link.fetch(NOTIFY, "early", "1")
    await link.inspect()
    assert inbox.messages == []
    link.start(inbox)
    assert await inbox.until(("early", "1")) == [("early", "1")]


async def test_a_refused_change_does_nothing_at_all(link: Link) -> None:
    inbox = Inbox()
    link.start(inbox)
    await link.change(["kept"], [])
    with pytest.raises(ServerError) as refused:
        await link.change(["good", ""], ["kept"])
    assert refused.value.sqlstate == "42601"
    assert (await link.inspect()).channels == {"kept"}
    await link.fetch(NOTIFY, "good", "not for us")
    await link.fetch(NOTIFY, "kept", "sentinel")
    assert await inbox.until(("kept", "sentinel")) == [("kept", "sentinel")]


async def test_unlisten_ends_delivery(link: Link) -> None:
    """Trap 16: once UNLISTEN is acknowledged, nothing of that name is in flight any more."""
    inbox = Inbox()
    await link.change(["left", "kept"], [])
    link.start(inbox)
    await link.fetch(NOTIFY, "left", "1")
    await link.change(["new"], ["left"])
    await link.fetch(NOTIFY, "left", "2")
    await link.fetch(NOTIFY, "new", "sentinel")
    assert await inbox.until(("new", "sentinel")) == [("left", "1"), ("new", "sentinel")]
    await link.change(["left"], [])
    await link.fetch(NOTIFY, "left", "3")
    assert ("left", "2") not in await inbox.until(("left", "3"))


async def test_a_terminated_backend_is_a_lost_link(link: Link, database18: str) -> None:
    """Trap 1."""
    inbox = Inbox()
    await link.change(["orders"], [])
    link.start(inbox)
    await link.fetch(NOTIFY, "orders", "before")
    await execute(database18, "SELECT pg_terminate_backend(%s)", link.pid)
    async with asyncio.timeout(5):
        reason = await link.lost
    assert isinstance(reason, LinkLost)
    assert inbox.messages == [("orders", "before")], "what came before the end was handed on"
    with pytest.raises(LinkLost):
        await link.inspect()
    with pytest.raises(LinkLost):
        await link.change(["x"], [])
    await link.close()


async def test_a_statement_under_way_ends_with_the_link(link: Link) -> None:
    """A lost link must not leave anybody waiting."""
    probing = asyncio.create_task(link.inspect())
    await asyncio.sleep(0)
    link.abort()
    with pytest.raises(LinkLost):
        await probing
    assert link.lost.done()


async def test_close_is_polite_and_twice_is_harmless(
    database18: str, connect: Connect, driver: Driver
) -> None:
    link = await connect(database18)
    other = await connect(database18)
    pids = [link.pid, other.pid]
    await link.close()
    await link.close()
    other.abort()
    other.abort()
    await other.close()
    assert link.lost.done()
    assert other.lost.done()
    async with asyncio.timeout(5):
        while await execute(database18, "SELECT 1 FROM pg_stat_activity WHERE pid = ANY(%s)", pids):
            pass


async def test_a_cancelled_statement_leaves_a_link_that_can_be_aborted(link: Link) -> None:
    task = asyncio.create_task(link.inspect())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    link.abort()
    await link.close()


async def test_connecting_that_is_cancelled_leaves_nothing_half_open(driver: Driver) -> None:
    """Not even while somebody keeps the task, and with it the error and its frames."""
    accepted, ended = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        while await reader.read(1024):
            pass
        writer.close()
        ended.set()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        source = connector(f"postgresql://nobody@127.0.0.1:{port}/none?sslmode=disable", driver)
        for opens in (source.connect, source.borrow):
            accepted.clear()
            ended.clear()
            task = asyncio.ensure_future(opens("listener", 10.0))
            await accepted.wait()
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()
            async with asyncio.timeout(5):
                await ended.wait()


async def test_no_timeout_of_the_session_ends_it(database18: str, connect: Connect) -> None:
    """Trap 6: timeouts set for the database or the role must not kill the listener."""
    name = (await execute(database18, "SELECT current_database()"))[0][0]
    for setting in (
        "idle_session_timeout",
        "idle_in_transaction_session_timeout",
        "transaction_timeout",
        "statement_timeout",
    ):
        await execute(database18, f"ALTER DATABASE {name} SET {setting} = '50ms'")
    link = await connect(database18)
    inbox = Inbox()
    await link.change(["orders"], [])
    link.start(inbox)
    await execute(
        database18, "SET statement_timeout = 0; SET transaction_timeout = 0; SELECT pg_sleep(0.3)"
    )
    assert not link.lost.done()
    await link.fetch(NOTIFY, "orders", "still here")
    await inbox.until(("orders", "still here"))


async def test_names_itself_unless_the_user_has(database18: str, connect: Connect) -> None:
    link = await connect(database18)
    named = await connect(f"{database18}{'&' if '?' in database18 else '?'}application_name=shop")
    rows = await execute(
        database18,
        "SELECT pid, application_name FROM pg_stat_activity WHERE pid = ANY(%s)",
        [link.pid, named.pid],
    )
    assert dict(rows) == {link.pid: "pgnotifybus listener", named.pid: "shop"}


async def test_the_kernel_watches_the_connection(link: Link) -> None:
    """Trap 5: asyncpg sets no keepalive by itself."""
    connection = link._connection  # type: ignore[attr-defined]
    if hasattr(connection, "fileno"):
        fd = connection.fileno()
    else:
        fd = connection._transport.get_extra_info("socket").fileno()
    with socket.socket(fileno=fd) as sock:
        try:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 10
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
        finally:
            sock.detach()


@pytest.fixture
async def ascii_database(database18: str) -> AsyncIterator[str]:
    """The DSN of a database that takes bytes as they are."""
    ((name,),) = await execute(database18, "SELECT current_database()")
    await execute(
        database18,
        f"CREATE DATABASE ascii_{name} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0",
    )
    yield database18.replace(str(name), f"ascii_{name}")
    await execute(database18, f"DROP DATABASE ascii_{name} WITH (FORCE)")


async def test_bytes_that_are_not_text_end_nothing_silently(
    ascii_database: str, connect: Connect, driver: Driver
) -> None:
    """Trap 18: psycopg's link keeps every byte; asyncpg cannot, and its link is lost for it."""
    link = await connect(ascii_database)
    inbox = Inbox()
    undecodable: list[tuple[str, int]] = []
    await link.change(["žluť", "plain"], [])
    link.start(inbox, lambda *said: undecodable.append(said))
    await link.fetch(NOTIFY, "žluť", "kůň")
    await inbox.until(("žluť", "kůň"))
    assert (await link.inspect()).channels == {"žluť", "plain"}
    await execute(
        ascii_database, r"SET client_encoding = 'SQL_ASCII'; SELECT pg_notify('plain', E'a\377b')"
    )
    if driver == "psycopg":
        messages = await inbox.until(("plain", "a\udcffb"))
        assert messages[-1][1].encode("utf-8", "surrogateescape") == b"a\xffb"
        assert undecodable == [("plain", 1)]
        await link.fetch(NOTIFY, "plain", "still here")
        await inbox.until(("plain", "still here"))
    else:
        async with asyncio.timeout(5):
            assert isinstance(await link.lost, LinkLost)
    await link.close()


async def test_listens_to_ten_thousand_channels_in_one_statement(link: Link) -> None:
    """Trap 36."""
    names = [f"channel {number}" for number in range(10_000)]
    inbox = Inbox()
    async with asyncio.timeout(30):
        await link.change(names, [])
    link.start(inbox)
    assert (await link.inspect()).channels == set(names)
    await link.fetch(NOTIFY, names[-1], "found")
    await inbox.until((names[-1], "found"))


async def test_over_tls_nothing_is_left_in_a_buffer(database18: str, connect: Connect) -> None:
    """What OpenSSL has decrypted and libpq had no room for is not announced by the socket."""
    async with tls_in_front_of(database18) as tls:
        link = await connect(tls.dsn)
        inbox = Inbox()
        await link.change(["bulk"], [])
        link.start(inbox)
        # Two full records in one go. The first fills libpq's buffer of 16 kB and leaves a part of
        # the third message in it, so that the second record finds no room for its last part.
        sizes = [6_539, 6_539, 6_539, 6_539, 6_537]
        assert sum(size + 15 for size in sizes) == 2 * 16_384
        tls.collect = 2 * 16_384
        await execute(
            database18,
            "SELECT pg_notify('bulk', rpad(i::text, size, '.'))"
            " FROM unnest(%s::int[]) WITH ORDINALITY AS given (size, i)",
            sizes,
        )
        await inbox.until(("bulk", "5".ljust(6_537, ".")))
        assert [len(payload) for _, payload in inbox.messages] == sizes
        # And in bulk, with results in between.
        tls.collect = 0
        names = [f"channel {number}" for number in range(3_000)]
        await link.change(names, [])
        assert (await link.inspect()).channels == {"bulk", *names}
        await execute(
            database18,
            "SELECT count(pg_notify('bulk', rpad(i::text, 7000, '.')))"
            " FROM generate_series(1, 2000) AS i",
        )
        await inbox.until(("bulk", "2000".ljust(7_000, ".")))
        numbers = [int(payload.rstrip(".")) for _, payload in inbox.messages[5:]]
        assert numbers == list(range(1, 2_001))
        await link.close()
