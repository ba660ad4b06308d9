"""Payloads of any size: what is sent is what arrives, in its order, whatever way it travelled."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import time
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import quote as percent_quoted

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgnotifybus import (
    Empty,
    Envelope,
    Gap,
    Lagged,
    Notification,
    PayloadLost,
    PayloadTooLarge,
    PgNotifyBus,
    observe,
    schema,
)
from pgnotifybus.core.envelope import MAX_SPILLED_BYTES, pack, refer
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.links.sources import Driver
from pgnotifybus.publish.statements import new_row
from pgnotifybus.testing import RecordingObserver, kill_link
from support.callers import Caller, opened
from support.notifying import (
    driven,
    foreign,
    listening,
    plant,
    shared_database,
    subscribed,
    table_locked,
    take,
)
from support.payloads import noise
from support.servers import PASSWORD
from support.sql import execute
from support.waiting import FETCHING, kill_waiting, until_waits

LARGE = noise(12_000)
MARK = "\x01pgnb1"


@pytest.fixture(scope="module")
def shop(server: EmbeddedServer) -> Iterator[str]:
    """The DSN of a database with the spill table, on each PostgreSQL in turn."""
    with shared_database(server, "pgnotifybus") as dsn:
        yield dsn


@pytest.fixture(scope="module")
def shop18(pg18: EmbeddedServer) -> Iterator[str]:
    """The same on PostgreSQL 18 only."""
    with shared_database(pg18, "pgnotifybus") as dsn:
        yield dsn


@pytest.fixture(params=["psycopg", "asyncpg"])
def driver(request: pytest.FixtureRequest) -> Driver:
    found: Driver = request.param
    return found


# -- every border ---------------------------------------------------------------------------------

ALPHABETS = {
    "one byte": "x",
    "two bytes": "é",
    "four bytes": "😀",
    "digits": "0123456789abcdef",
    "noise": "",
    "noise of three bytes": "".join(map(chr, range(0x4E00, 0x9000))),
}


def of_size(size: int, alphabet: str = "one byte", start: str = "") -> str:
    """Text of exactly so many bytes, of letters of an alphabet, and filled up with ASCII."""
    room = size - len(start.encode())
    assert room >= 0
    letters = ALPHABETS[alphabet]
    if not letters:
        text = noise(room)
    else:
        count = room // len(letters[0].encode())
        text = letters * count if len(letters) == 1 else _drawn(letters)[:count]
    return start + text + "x" * (room - len(text.encode()))


@functools.cache
def _drawn(letters: str) -> str:
    return "".join(random.Random(22).choices(letters, k=140_000))


@functools.cache
def compressible(alphabet: str) -> int:
    """A size at which this, compressed, fits into a notification, and one byte more does not."""
    fits, too_large = 7_999, 20_000
    while too_large - fits > 1:
        size = (fits + too_large) // 2
        packed = pack(of_size(size, alphabet), size)
        fits, too_large = (size, too_large) if packed is not None else (fits, size)
    return fits


FULL = Envelope("o" * 64, timed=True, traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
ENVELOPES = [Envelope(), Envelope("me"), Envelope(timed=True), FULL]

BORDERS = sorted(
    {0, 1, 2, 3, 4}
    | set(range(7_996, 8_003))
    | {
        7_999 - len(pack("\x01", 1, envelope.stamp()) or "") + i
        for envelope in ENVELOPES
        for i in (1, 2)
    }
    | {
        compressible(alphabet) + i
        for alphabet in ("digits", "noise of three bytes")
        for i in (0, 1)
    }
    | {131_071, 131_072, 131_073}
)


def test_the_borders_are_where_they_are_thought_to_be() -> None:
    """All three ways to travel are met, on both sides of their border."""
    fits = compressible("digits")
    assert 8_000 < fits < 20_000
    assert pack(of_size(7_999, "digits"), 7_999) == of_size(7_999, "digits")
    for size, shortest in ((8_000, 1_000), (fits, 7_990)):
        wire = pack(of_size(size, "digits"), size) or ""
        assert wire.startswith(f"{MARK};z=1\x02")
        assert len(wire) >= shortest
    assert pack(of_size(fits + 1, "digits"), fits + 1) is None
    assert pack(of_size(8_000, "noise"), 8_000) is None
    assert pack("x" * 131_072, 131_072) is not None
    assert pack("x" * 131_073, 131_073) is None, "not tried"


async def test_every_size_around_every_border(shop: str, driver: Driver) -> None:
    """In one transaction: in their order, and whole."""
    payloads = [of_size(size, alphabet) for size in BORDERS for alphabet in ALPHABETS]
    payloads += [of_size(size, start=MARK) for size in BORDERS if size > 100]
    payloads = list(dict.fromkeys(payloads))  # PostgreSQL sends what is the same only once
    async with (
        PgNotifyBus(shop, ["c"], driver=driver) as bus,
        opened(driver, shop) as caller,
    ):
        receiver = subscribed(bus, "c")
        async with caller.transaction():
            for payload in payloads:
                await caller.notify("c", payload)
        assert await take(receiver, len(payloads)) == payloads


@pytest.mark.parametrize("size", [1024 * 1024, MAX_SPILLED_BYTES])
async def test_payloads_of_megabytes(shop18: str, driver: Driver, size: int) -> None:
    """Up to 16 MiB exactly; one byte more is refused before anything is sent."""
    payload = of_size(size, "two bytes", start="begin ")
    async with (
        PgNotifyBus(shop18, ["c"], driver=driver) as bus,
        opened(driver, shop18) as caller,
    ):
        receiver = subscribed(bus, "c")
        async with caller.transaction():
            await caller.notify("c", payload)
            await caller.notify("c", "behind")
        for send in (caller.notify, bus.notify):
            with pytest.raises(PayloadTooLarge) as refused:
                await send("c", payload + "x" * (MAX_SPILLED_BYTES + 1 - size))
            assert (refused.value.size, refused.value.limit) == (16_777_217, 16_777_216)
            assert "send a key" in str(refused.value)
        assert await take(receiver, 2) == [payload, "behind"]


# -- in the company of others ---------------------------------------------------------------------

FOREIGN = [
    "\x01",
    "\x01 somebody else's",
    MARK,
    f"{MARK};z=1\x02 not base64",
    f"{MARK};z=1\x02{'QUJD' * 10}",
    f"{MARK};r=10\x02not-a-uuid",
    f"{MARK};r=10;r=10\x02{new_row()}",
    f"{MARK};o=\x02",
    "\x02",
    '{"json": true}',
]


class Batch(NamedTuple):
    """What somebody sends in one transaction."""

    by: str
    payloads: list[str]
    envelope: Envelope | None

    def plain(self, payload: str) -> bool:
        """Whether a listener that does not know this library sees the payload itself."""
        return self.by == "foreign" or not (
            self.envelope not in (None, Envelope())
            or payload.startswith("\x01")
            or len(payload.encode()) > 7_999
        )


SIZED = st.builds(
    of_size, st.sampled_from(BORDERS).filter(lambda size: size > 10), st.sampled_from([*ALPHABETS])
)
OURS = (
    SIZED
    | st.sampled_from(FOREIGN)
    | st.text(st.characters(exclude_characters="\0", codec="utf-8"))
)
BATCHES = st.one_of(
    st.builds(
        Batch,
        st.sampled_from(["psycopg", "asyncpg", "psycopg-sync", "session-asyncpg", "bus"]),
        st.lists(OURS, min_size=1, max_size=5, unique=True),
        st.none() | st.sampled_from(ENVELOPES),
    ),
    st.builds(
        Batch,
        st.just("foreign"),
        st.lists(
            st.sampled_from(FOREIGN) | SIZED.filter(lambda payload: len(payload.encode()) <= 7_999),
            min_size=1,
            max_size=5,
            unique=True,
        ),
        st.none(),
    ),
)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    batches=st.lists(BATCHES, min_size=1, max_size=8),
    driver=st.sampled_from(["psycopg", "asyncpg"]),
)
async def test_what_is_sent_arrives_whole_and_in_order_among_plain_ones(
    shop: str, batches: list[Batch], driver: Driver
) -> None:
    """Whoever sends it, in whatever size; and who does not know this library reads plain ones."""
    async with contextlib.AsyncExitStack() as stack:
        bus = await stack.enter_async_context(PgNotifyBus(shop, ["c"], driver=driver))
        receiver = subscribed(bus, "c")
        raw = await psycopg.AsyncConnection.connect(shop, autocommit=True)
        stack.push_async_callback(raw.close)
        await raw.execute("LISTEN c")
        callers: dict[str, Caller] = {}
        for kind in {batch.by for batch in batches} - {"bus"}:
            known = "psycopg" if kind == "foreign" else kind
            callers[kind] = await stack.enter_async_context(opened(known, shop))
        for batch in batches:
            await _send(batch, bus, callers)
        sent = [(batch, payload) for batch in batches for payload in batch.payloads]
        events = receiver.events()
        async with asyncio.timeout(20):
            seen = [await anext(events) for _ in sent]
            wires = [n.payload async for n in raw.notifies(stop_after=len(sent), timeout=20)]
    assert [event.payload if isinstance(event, Notification) else event for event in seen] == [
        payload for _, payload in sent
    ]
    for (batch, payload), event, wire in zip(sent, seen, wires, strict=True):
        assert isinstance(event, Notification)
        expected = batch.envelope or Envelope()
        assert (event.origin, event.traceparent) == (expected.origin, expected.traceparent)
        assert (event.sent_at is not None) == expected.timed
        if batch.plain(payload):
            assert wire == payload
        else:
            assert wire.startswith(MARK)
        assert len(wire.encode()) <= 7_999


async def _send(batch: Batch, bus: PgNotifyBus, callers: dict[str, Caller]) -> None:
    if batch.by == "bus":
        for payload in batch.payloads:
            await bus.notify("c", payload, envelope=batch.envelope)
        return
    caller = callers[batch.by]
    async with caller.transaction():
        for payload in batch.payloads:
            if batch.by == "foreign":
                await caller.connection.execute("SELECT pg_notify('c', %s)", [payload])
            else:
                await caller.notify("c", payload, envelope=batch.envelope)


# -- fetching -------------------------------------------------------------------------------------


async def test_a_burst_across_channels_takes_few_fetches(
    pg18: EmbeddedServer, database18: str
) -> None:
    """One query for many: the server's log counts those of 1,200 payloads."""
    await schema.install(database18)
    names = ["a", "b", "c"]
    logged = f"{database18}?options={percent_quoted('-c log_statement=all')}"
    async with PgNotifyBus(logged, names, capacity=1_000) as bus:
        receivers = [subscribed(bus, name) for name in names]
        start = pg18.log_path.stat().st_size
        sent = [(name, f"{number} {LARGE}") for number in range(400) for name in names]
        async with opened("psycopg", database18) as caller, caller.transaction():
            async with caller.connection.pipeline():
                for name, payload in sent:
                    await caller.notify(name, payload)
        for name, receiver in zip(names, receivers, strict=True):
            assert await take(receiver, 400) == [payload for to, payload in sent if to == name]
        with pg18.log_path.open("rb") as log:
            log.seek(start)
            fetches = log.read().count(b"AS payload ON payload.id = wanted.id")
        # One for those of the first packet, and then a thousand at a time.
        assert 1 <= fetches <= 4


async def test_a_burst_beyond_the_ring_is_a_lag_of_an_exact_number(shop18: str) -> None:
    """What has been overwritten is not waited for."""
    async with PgNotifyBus(shop18, ["c"], capacity=4) as bus:
        receiver = subscribed(bus, "c")
        async with opened("psycopg", shop18) as caller, caller.transaction():
            for number in range(30):
                await caller.notify("c", f"{number} {LARGE}")
            await caller.notify("end")
        got: list[str] = []
        skipped = 0
        async with asyncio.timeout(20):
            while not got or not got[-1].startswith("29 "):
                try:
                    got += await receiver.recv_many()
                except Lagged as lagged:
                    skipped += lagged.skipped
        assert len(got) + skipped == 30
        numbers = [int(payload.partition(" ")[0]) for payload in got]
        assert numbers == sorted(numbers)
        assert numbers[-4:] == [26, 27, 28, 29]
        account = receiver.statistics()
        assert (account.delivered, account.skipped, account.unread) == (len(got), skipped, 0)


async def test_while_a_payload_is_fetched_slowly_the_link_goes_on(
    shop: str, driver: Driver
) -> None:
    """Other channels are served; on its own, order is kept; and all of it comes when it can."""
    async with PgNotifyBus(shop, ["c", "other"], driver=driver) as bus:
        receiver, other = subscribed(bus, "c"), subscribed(bus, "other")
        wire = await plant(shop, "c", LARGE)
        async with table_locked(shop):
            for payload in ("before", wire, "behind"):
                await foreign(shop, "c", payload)
            await until_waits(shop, FETCHING)
            await foreign(shop, "other", "served")
            assert await take(other, 1) == ["served"]
            joined = await bus.listen("joined meanwhile")
            await foreign(shop, "joined meanwhile", "served too")
            assert await take(joined, 1) == ["served too"]
            assert await take(receiver, 1) == ["before"]
            with pytest.raises(Empty):
                receiver.try_recv()
            parked = asyncio.create_task(receiver.recv_many())
            await foreign(shop, "other", "sentinel")
            assert await take(other, 1) == ["sentinel"]
            assert not parked.done()
        async with asyncio.timeout(20):
            assert await parked == [LARGE, "behind"]


@pytest.mark.parametrize("source", ["psycopg", "asyncpg", "asyncpg-pool"])
async def test_a_fetch_that_is_killed_is_tried_again(shop18: str, source: str) -> None:
    recorder = RecordingObserver()
    async with (
        driven(source, shop18) as made,
        PgNotifyBus(made, ["c"], observer=recorder) as bus,
    ):
        receiver = subscribed(bus, "c")
        wire = await plant(shop18, "c", LARGE)
        async with table_locked(shop18):
            await foreign(shop18, "c", wire)
            await foreign(shop18, "c", "behind")
            await kill_waiting(shop18, FETCHING)
        assert await take(receiver, 2) == [LARGE, "behind"]
        assert bus.health().generation == 1
        assert not recorder.of(observe.PayloadsLost)


async def test_a_payload_that_is_fetched_while_the_link_is_lost_keeps_its_place(
    shop18: str,
) -> None:
    recorder = RecordingObserver()
    async with PgNotifyBus(shop18, ["c"], observer=recorder, backoff_initial=0.05) as bus:
        events = subscribed(bus, "c").events()
        wire = await plant(shop18, "c", LARGE)
        async with table_locked(shop18):
            await foreign(shop18, "c", wire)
            await until_waits(shop18, FETCHING)
            assert await kill_link(bus) == 2
            await foreign(shop18, "c", "after")
        async with asyncio.timeout(20):
            first, gap, after = [await anext(events) for _ in range(3)]
    assert isinstance(first, Notification)
    assert (first.payload, first.generation) == (LARGE, 1)
    assert gap == Gap("reconnected", "c", 2, None)
    assert isinstance(after, Notification)
    assert (after.payload, after.generation) == ("after", 2)


async def test_a_source_that_brings_no_connection_to_fetch_over_is_told(shop18: str) -> None:
    """A bug in the application's factory, say: a gap, and not silence."""
    made = 0

    async def fresh() -> object:
        nonlocal made
        made += 1
        return object() if made == 2 else await psycopg.AsyncConnection.connect(shop18)

    async with PgNotifyBus(fresh, ["c"]) as bus:
        receiver = subscribed(bus, "c")
        await foreign(shop18, "c", await plant(shop18, "c", LARGE))
        with pytest.raises(PayloadLost):
            await take(receiver, 1)


async def test_a_bus_that_ends_while_it_fetches_says_what_is_missing(shop18: str) -> None:
    """At once: not when the lock goes."""
    async with table_locked(shop18):
        wire = refer(new_row(), 12_000)
        async with PgNotifyBus(shop18, ["c"]) as bus:
            events = subscribed(bus, "c").events()
            for payload in ("before", wire, "behind"):
                await foreign(shop18, "c", payload)
            await until_waits(shop18, FETCHING)
            began = time.monotonic()
        assert time.monotonic() - began < 5
        before, gap, behind = [event async for event in events]
    assert gap == Gap("unreadable", "c", 1, 1)
    assert isinstance(before, Notification)
    assert isinstance(behind, Notification)
    assert (before.payload, behind.payload) == ("before", "behind")


# -- what cannot be had ---------------------------------------------------------------------------


async def test_a_row_that_retention_has_removed_is_a_gap_in_its_place(
    shop: str, driver: Driver
) -> None:
    recorder = RecordingObserver()
    async with (
        PgNotifyBus(shop, ["c"], driver=driver, observer=recorder) as bus,
        opened("psycopg", shop) as caller,
    ):
        receiver, watching, batches = [subscribed(bus, "c") for _ in range(3)]
        async with caller.transaction():
            await caller.notify("c", "before")
            await caller.notify("c", f"1 {LARGE}")
            await caller.notify("c", f"2 {LARGE}")
            await caller.fetch("DELETE FROM pgnotifybus.payloads WHERE payload LIKE '1 %'")
            await caller.notify("c", "behind")
        assert await take(receiver, 1) == ["before"]
        with pytest.raises(PayloadLost, match="no longer in the spill table") as lost:
            await take(receiver, 1)
        assert lost.value.reason == "expired"
        assert await take(receiver, 2) == [f"2 {LARGE}", "behind"]
        seen = [await anext(watching.events()) for _ in range(4)]
        assert seen[1] == Gap("expired", "c", 1, 1)
        assert [event.payload for event in seen if isinstance(event, Notification)] == [
            "before",
            f"2 {LARGE}",
            "behind",
        ]
        assert await batches.recv_many() == ["before"]
        with pytest.raises(PayloadLost):
            await batches.recv_many()
        assert await batches.recv_many() == [f"2 {LARGE}", "behind"]
        for each in (receiver, watching, batches):
            account = each.statistics()
            assert (account.sent, account.delivered, account.skipped, account.unread) == (
                4,
                3,
                1,
                0,
            )
        assert len(recorder.of(observe.PayloadsLost)) == 1


async def test_a_row_that_has_been_pruned_is_a_gap_and_one_that_has_not_expired_is_not(
    shop: str,
) -> None:
    async with PgNotifyBus(shop, ["c"]) as bus:
        events = subscribed(bus, "c").events()
        old, young = await plant(shop, "c", LARGE), await plant(shop, "c", f"young {LARGE}")
        await execute(
            shop,
            "UPDATE pgnotifybus.payloads SET expires_at = now() - interval '1 s' WHERE id = %s",
            old.partition("\x02")[2],
        )
        assert await schema.prune(shop) == 1
        await foreign(shop, "c", old)
        await foreign(shop, "c", young)
        async with asyncio.timeout(20):
            assert await anext(events) == Gap("expired", "c", 1, 1)
            survivor = await anext(events)
        assert isinstance(survivor, Notification)
        assert survivor.payload == f"young {LARGE}"


async def test_a_forged_reference_brings_no_row_of_another_channel(shop: str) -> None:
    """Who may notify on one channel cannot read what was sent on another."""
    async with PgNotifyBus(shop, ["c"]) as bus:
        receiver = subscribed(bus, "c")
        await foreign(shop, "c", await plant(shop, "secret", f"secret {LARGE}"))
        with pytest.raises(PayloadLost):
            await take(receiver, 1)
        await foreign(shop, "c", refer(new_row(), 12_000))
        with pytest.raises(PayloadLost):
            await take(receiver, 1)
        await foreign(shop, "c", refer(new_row(), MAX_SPILLED_BYTES + 1))
        with pytest.raises(PayloadLost):
            await take(receiver, 1)
        await foreign(shop, "c", "sentinel")
        assert await take(receiver, 1) == ["sentinel"]


async def test_garbage_that_begins_like_an_envelope_arrives_as_it_is(shop: str) -> None:
    async with listening(shop, "c") as receiver:
        for payload in FOREIGN:
            await foreign(shop, "c", payload)
        assert await take(receiver, len(FOREIGN)) == FOREIGN


async def test_a_bus_that_may_not_read_the_table_says_so_in_the_place_of_the_payload(
    pg18: EmbeddedServer, database18: str, driver: Driver
) -> None:
    await schema.install(database18)
    ((name,),) = await execute(database18, "SELECT current_database()")
    await execute(database18, f"CREATE ROLE reader LOGIN PASSWORD '{PASSWORD}'")
    dsn = pg18.dsn_for(database=name, user="reader", password=PASSWORD)
    recorder = RecordingObserver()
    try:
        async with (
            PgNotifyBus(dsn, ["c"], driver=driver, observer=recorder) as bus,
            opened("psycopg", database18, autocommit=True) as caller,
        ):
            receiver = subscribed(bus, "c")
            events = receiver.events()
            for payload in ("before", LARGE, "behind"):
                await caller.notify("c", payload)
            async with asyncio.timeout(20):
                seen = [await anext(events) for _ in range(3)]
            assert seen[1] == Gap("unreadable", "c", 1, 1)
            lost = await recorder.wait_for(observe.PayloadsLost)
            assert "permission denied" in lost.reason
            await caller.notify("c", LARGE)
            with pytest.raises(PayloadLost, match="the log says why") as raised:
                await take(receiver, 1)
            assert raised.value.reason == "unreadable"
            await execute(
                database18,
                "GRANT USAGE ON SCHEMA pgnotifybus TO reader;"
                " GRANT SELECT ON pgnotifybus.payloads TO reader",
            )
            await caller.notify("c", LARGE)
            assert await take(receiver, 1) == [LARGE]
            assert receiver.statistics().skipped == 2
    finally:
        await execute(database18, "DROP OWNED BY reader; DROP ROLE reader")
