"""All kinds of source, on both drivers: what a bus takes of them, and what it gives back."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import psycopg
import psycopg_pool
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from pgnotifybus import (
    AuthenticationFailed,
    ConnectError,
    FatalLinkError,
    MissingExtra,
    PgNotifyBus,
    PoolTooSmall,
    observe,
)
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.links.sources import Driver, connector
from pgnotifybus.testing import RecordingObserver, kill_link
from support.servers import PASSWORD
from support.sql import execute, kill_listener

KINDS = [
    "dsn",
    "dsn-asyncpg",
    "dsn-sqlalchemy-style",
    "asyncpg-pool",
    "psycopg-pool",
    "psycopg-pool-callable",
    "engine-asyncpg",
    "engine-psycopg",
    "factory-asyncpg",
    "factory-psycopg",
]


@contextlib.asynccontextmanager
async def source_of(kind: str, dsn: str) -> AsyncIterator[object]:
    match kind:
        case "dsn":
            yield dsn
        case "dsn-asyncpg" | "dsn-sqlalchemy-style":
            yield dsn.replace("postgresql://", "postgresql+asyncpg://")
        case "asyncpg-pool":
            async with asyncpg.create_pool(dsn, min_size=1, max_size=2) as pool:
                yield pool
        case "psycopg-pool" | "psycopg-pool-callable":

            async def conninfo() -> str:
                return dsn

            given: Any = conninfo if kind.endswith("callable") else dsn
            async with psycopg_pool.AsyncConnectionPool(
                given, min_size=1, max_size=1, open=False
            ) as pool:
                yield pool
        case "engine-asyncpg" | "engine-psycopg":
            driver = kind.removeprefix("engine-")
            engine = create_async_engine(
                dsn.replace("postgresql://", f"postgresql+{driver}://"),
                pool_size=1,
                max_overflow=0,
                pool_timeout=2,
            )
            yield engine
            await engine.dispose()
        case "factory-asyncpg":

            async def connect() -> object:
                return await asyncpg.connect(dsn)

            yield connect
        case "factory-psycopg":
            yield lambda: psycopg.AsyncConnection.connect(dsn)


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_of_source(
    database18: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Connects, is killed, connects again, listens at run time, and leaves nothing behind."""
    recorder = RecordingObserver()
    async with source_of(kind, database18) as source:
        bus = PgNotifyBus(source, ["c"], observer=recorder, backoff_initial=0.05)
        async with bus:
            receiver = bus.subscribe("c")
            assert receiver is not None
            dynamic = await bus.listen("dynamic")
            await bus.notify("c", "1")
            assert await receiver.recv() == "1"
            assert await kill_link(bus) == 2
            assert recorder.count(observe.LinkUp) == 2
            await bus.notify("dynamic", "2")
            assert await dynamic.recv() == "2"
        await _still_usable(kind, source)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def _still_usable(kind: str, source: Any) -> None:
    """What the application gave still works, with all of its connections."""
    if kind == "asyncpg-pool":
        async with source.acquire(timeout=5) as one, source.acquire(timeout=5) as two:
            assert await one.fetchval("SELECT 1") == await two.fetchval("SELECT 1") == 1
    elif kind.startswith("psycopg-pool"):
        async with source.connection(timeout=5) as connection:
            await connection.execute("SELECT 1")
    elif kind.startswith("engine"):
        async with source.connect() as connection:
            assert (await connection.execute(text("SELECT 1"))).scalar() == 1


@pytest.mark.parametrize("kind", ["psycopg-pool", "engine-asyncpg", "engine-psycopg"])
async def test_takes_no_slot_of_the_applications_pool(database18: str, kind: str) -> None:
    """Pools of one connection, and the application has it while the bus runs."""
    async with source_of(kind, database18) as source, PgNotifyBus(source, ["c"]) as bus:
        await _still_usable(kind, source)
        assert bus.health().state == "live"


async def test_a_pool_of_one_is_refused(database18: str) -> None:
    """Both ways to run say why."""
    async with asyncpg.create_pool(database18, min_size=1, max_size=1) as pool:
        with pytest.raises(PoolTooSmall, match="max_size=2"):
            async with PgNotifyBus(pool, ["c"]):
                pass
        with pytest.raises(PoolTooSmall, match="max_size=2"):
            await PgNotifyBus(pool, ["c"]).run(asyncio.Event())
        assert await pool.fetchval("SELECT 1") == 1


async def test_a_pool_closed_under_the_bus_is_told(database18: str) -> None:
    """The bus stays down and says why, and ends promptly when asked."""
    recorder = RecordingObserver()
    pool = await asyncpg.create_pool(database18, min_size=1, max_size=2)
    async with PgNotifyBus(pool, ["c"], observer=recorder, backoff_initial=0.05) as bus:
        pool.terminate()
        failed = await recorder.wait_for(observe.ConnectFailed)
        assert "pool is clos" in str(failed.error)
        assert bus.health().cause is not None


# -- the door: what waiting will not help ---------------------------------------------------------


@pytest.fixture(params=["psycopg", "asyncpg"])
def driver(request: pytest.FixtureRequest) -> Driver:
    found: Driver = request.param
    return found


async def test_a_wrong_password(pg18: EmbeddedServer, driver: Driver) -> None:
    wrong = pg18.dsn_for(password="wr0ng/p@ss")
    with pytest.raises(AuthenticationFailed, match="Check user, password") as refused:
        async with PgNotifyBus(wrong, ["c"], driver=driver):
            pass
    assert_no_secret(refused.value, "wr0ng/p@ss", "wr0ng%2Fp%40ss")


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_password_that_changes_is_asked_for_each_connection(
    pg18: EmbeddedServer, driver: Driver, asynchronous: bool
) -> None:
    role = f"rotating_{uuid.uuid4().hex[:8]}"
    await execute(pg18.dsn, f"CREATE ROLE {role} LOGIN PASSWORD 'fir5t'")
    current, asked = "fir5t", 0

    def password() -> str:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise RuntimeError("the vault is s3aled")
        return current

    async def later() -> str:
        return password()

    recorder = RecordingObserver()
    try:
        dsn = pg18.dsn_for(user=role, password="n0t this one")
        bus = PgNotifyBus(
            dsn,
            ["c"],
            driver=driver,
            password=later if asynchronous else password,
            backoff_initial=0.05,
            observer=recorder,
        )
        async with bus:
            current = "s3cond"
            await execute(pg18.dsn, f"ALTER ROLE {role} PASSWORD 's3cond'")
            assert await kill_listener(pg18.dsn) == 1
            await recorder.wait_for(observe.LinkUp, 2)
        assert asked >= 3
        failed = recorder.of(observe.ConnectFailed)
        assert "the function for the password raised RuntimeError" in str(failed[0].error)
        assert "s3aled" not in str(failed[0].error)  # its text is for who looks at the cause
        assert_no_secret(failed[0].error, "fir5t", "s3cond", "n0t this one")
    finally:
        await execute(pg18.dsn, f"DROP ROLE {role}")


async def test_a_password_that_is_no_text_or_no_function(database18: str, driver: Driver) -> None:
    with pytest.raises(TypeError, match="part of the DSN"):
        PgNotifyBus(database18, ["c"], password="s3cret")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="DSN only"):
        PgNotifyBus(lambda: None, ["c"], password=str)
    none: Any = lambda: None  # noqa: E731
    with pytest.raises(FatalLinkError, match="must be a str"):
        async with PgNotifyBus(database18, ["c"], driver=driver, password=none):
            pass


async def test_an_unknown_database(pg18: EmbeddedServer, driver: Driver) -> None:
    with pytest.raises(FatalLinkError, match='database "nowhere" does not exist') as refused:
        async with PgNotifyBus(pg18.dsn_for(database="nowhere"), ["c"], driver=driver):
            pass
    assert_no_secret(refused.value, PASSWORD)


async def test_a_user_without_permission(
    pg18: EmbeddedServer, database18: str, driver: Driver
) -> None:
    """One that may not connect is told at the door; one that may not ask is served all the same."""
    ((name,),) = await execute(database18, "SELECT current_database()")
    await execute(database18, f"CREATE ROLE visitor LOGIN PASSWORD '{PASSWORD}'")
    dsn = pg18.dsn_for(database=name, user="visitor", password=PASSWORD)
    function = "FUNCTION pg_catalog.pg_listening_channels()"
    try:
        await execute(database18, f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC")
        with pytest.raises(FatalLinkError, match="GRANT CONNECT"):
            async with PgNotifyBus(dsn, ["c"], driver=driver):
                pass
        await execute(database18, f"GRANT CONNECT ON DATABASE {name} TO visitor")
        await execute(database18, f"REVOKE EXECUTE ON {function} FROM PUBLIC")
        recorder = RecordingObserver()
        async with PgNotifyBus(
            dsn, ["c"], driver=driver, observer=recorder, probe_interval=0.05
        ) as bus:
            receiver = bus.subscribe("c")
            assert receiver is not None
            loop = asyncio.get_running_loop()
            began = loop.time()
            refused = await recorder.wait_for(observe.ProbeRefused, 5)
            assert "permission denied" in refused.reason
            assert loop.time() - began >= 4 * 0.05, "a refusal is an answer, no reason to hurry"
            await bus.notify("c", "served all the same")
            assert await receiver.recv() == "served all the same"
            assert bus.health().generation == 1
    finally:
        await execute(database18, f"GRANT EXECUTE ON {function} TO PUBLIC")
        await execute(database18, "DROP OWNED BY visitor; DROP ROLE visitor")


async def test_a_refused_host(driver: Driver, unused_tcp_port: int) -> None:
    dsn = f"postgresql://shop:s3cret@127.0.0.1:{unused_tcp_port}/shop"
    with pytest.raises(ConnectError, match=r"[Rr]efused|[Cc]onnect call failed") as refused:
        async with PgNotifyBus(dsn, ["c"], driver=driver):
            pass
    assert str(unused_tcp_port) in str(refused.value)
    assert_no_secret(refused.value, "s3cret")


async def test_an_unknown_host(driver: Driver) -> None:
    dsn = "postgresql://shop:s3cret@no-such-host.invalid/shop"
    with pytest.raises(ConnectError, match="Check host") as refused:
        async with PgNotifyBus(dsn, ["c"], driver=driver):
            pass
    assert_no_secret(refused.value, "s3cret")


async def test_what_the_caller_is_handling_keeps_its_frames(
    driver: Driver, unused_tcp_port: int
) -> None:
    """Of a failed attempt the frames are cleared, for its socket; no others."""
    dsn = f"postgresql://127.0.0.1:{unused_tcp_port}/shop"

    def fail(what_for: str) -> None:
        raise KeyError(what_for)

    try:
        fail("a reason")
    except KeyError as error:
        with pytest.raises(ConnectError):
            await connector(dsn, driver).connect("test", 5.0)
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        assert frame is not None
        assert frame.tb_frame.f_locals == {"what_for": "a reason"}


async def test_a_silent_host(database18: str, driver: Driver) -> None:
    """A port that accepts and never answers."""
    held = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        with pytest.raises(ConnectError):
            async with PgNotifyBus(
                f"postgresql://x@127.0.0.1:{port}/x", ["c"], driver=driver, connect_timeout=2
            ):
                pass
    finally:
        server.close()
        for writer in held:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await server.wait_closed()


async def test_run_waits_for_a_server_that_is_not_there_yet(
    database18: str, driver: Driver, unused_tcp_port: int
) -> None:
    """`run` is patient where `async with` is not, and stops promptly while it backs off."""
    recorder = RecordingObserver()
    shutdown = asyncio.Event()
    bus = PgNotifyBus(
        f"postgresql://x@127.0.0.1:{unused_tcp_port}/x",
        ["c"],
        driver=driver,
        observer=recorder,
        backoff_initial=30,
    )
    running = asyncio.create_task(bus.run(shutdown))
    await recorder.wait_for(observe.ConnectFailed)
    assert bus.health().state == "down"
    shutdown.set()
    async with asyncio.timeout(1):
        await running


async def test_a_server_that_is_full_is_waited_for(
    pg18: EmbeddedServer, database18: str, driver: Driver
) -> None:
    """Trap 9: "too many connections" passes; `async with` waits for `start_timeout`."""
    role = "crowded"
    await execute(
        database18, f"DROP ROLE IF EXISTS {role}; CREATE ROLE {role} LOGIN CONNECTION LIMIT 1"
    )
    await execute(database18, f"ALTER ROLE {role} PASSWORD '{PASSWORD}'")
    ((name,),) = await execute(database18, "SELECT current_database()")
    dsn = pg18.dsn_for(database=name, user=role, password=PASSWORD)
    recorder = RecordingObserver()
    occupant = await psycopg.AsyncConnection.connect(dsn)
    try:
        bus = PgNotifyBus(dsn, ["c"], driver=driver, observer=recorder, backoff_initial=0.05)
        entering = asyncio.create_task(bus.__aenter__())
        failed = await recorder.wait_for(observe.ConnectFailed, 2)
        assert isinstance(failed.error, ConnectError)
        assert failed.error.waiting_helps
        await occupant.close()
        await entering
        await bus.__aexit__(None, None, None)
    finally:
        await occupant.close()
        await execute(database18, f"DROP ROLE {role}")


async def test_a_factory_that_fails_is_tried_again(database18: str) -> None:
    """Whatever it raises may pass: the bus lives on, and says so."""
    calls = 0

    async def fresh() -> object:
        nonlocal calls
        calls += 1
        if calls in (2, 3):
            raise RuntimeError("the vault is sealed")
        return await psycopg.AsyncConnection.connect(database18)

    recorder = RecordingObserver()
    async with PgNotifyBus(fresh, ["c"], observer=recorder, backoff_initial=0.05):
        await kill_listener(database18)
        failed = await recorder.wait_for(observe.ConnectFailed, 2)
        assert "the vault is sealed" in str(failed.error)
        assert isinstance(failed.error.__cause__, RuntimeError)
        await recorder.wait_for(observe.LinkUp, 2)


async def test_a_factory_with_a_dsn_that_cannot_be_read_shows_no_secret(database18: str) -> None:
    """What a driver says of it would repeat the password."""
    for dsn in ("u:s3cret@host/x", "host=x password='s3cret"):

        async def fresh(dsn: str = dsn) -> object:
            return await psycopg.AsyncConnection.connect(dsn)

        with pytest.raises(ConnectError, match="ProgrammingError") as refused:
            async with PgNotifyBus(fresh, ["c"]):
                pass
        assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_an_encoding_of_the_roles_own(database18: str, driver: Driver, encoding: str) -> None:
    """`client_encoding` other than UTF-8, set for the database: payloads arrive as they are."""
    ((name,),) = await execute(database18, "SELECT current_database()")
    await execute(database18, f"ALTER DATABASE {name} SET client_encoding = '{encoding}'")
    async with PgNotifyBus(database18, ["kůň"], driver=driver) as bus:
        receiver = bus.subscribe("kůň")
        assert receiver is not None
        await bus.notify("kůň", "žluťoučký € 日本")
        assert await receiver.recv() == "žluťoučký € 日本"


async def test_sending_leaves_the_pool_to_the_application(database18: str) -> None:
    """Of a pool of two, the listener keeps one; the other is only borrowed."""
    async with asyncpg.create_pool(database18, min_size=1, max_size=2) as pool:
        async with PgNotifyBus(pool, ["c"], connect_timeout=0.3) as bus:
            receiver = bus.subscribe("c")
            assert receiver is not None
            await bus.notify("c", "1")
            assert await receiver.recv() == "1"
            async with pool.acquire(timeout=2) as connection:
                assert await connection.fetchval("SELECT 1") == 1
                with pytest.raises(ConnectError, match="no connection of the pool is free"):
                    await bus.notify("c", "2")
            await bus.notify("c", "3")
            assert await receiver.recv() == "3"


# -- the door: what is not a source ---------------------------------------------------------------


@pytest.mark.parametrize("source", [None, 42, b"postgresql://", ["dsn"], object()])
def test_an_unknown_kind_of_source(source: object) -> None:
    with pytest.raises(TypeError, match="a DSN string, an asyncpg"):
        PgNotifyBus(source, ["c"])


@pytest.mark.parametrize(
    ("dsn", "driver"),
    [
        ("postgresql://u:s3cret@host:port/x", "psycopg"),
        ("postgresql://u:s3cret@[host/x", "psycopg"),
        ("s3cret", "psycopg"),
        ("mysql://u:s3cret@host/x", "psycopg"),
        ("postgresql://u:s3c/ret@host/x", "psycopg"),
        ("postgresql://u:s3c@ret@host/x", "psycopg"),
        ("postgresql://u:s3cret", "psycopg"),
        ("postgresql://host,u:s3cret/x", "asyncpg"),
        ("host=x password='s3cret", "psycopg"),
        ("postgresql://u:s3cret@host:port/x", "asyncpg"),
        ("mysql://u:s3cret@host/x", "asyncpg"),
        ("postgresql+mystery://u:s3cret@host/x", None),
        ("postgresql://u:s3[cret]@host/x", "asyncpg"),
        ("postgresql://u:s3\u2100cret@host/x", "asyncpg"),
    ],
)
def test_a_malformed_dsn(dsn: str, driver: Driver | None) -> None:
    """Refused before any I/O, and without repeating what may be the password."""
    with pytest.raises(ValueError, match="DSN") as refused:
        PgNotifyBus(dsn, ["c"], driver=driver)
    assert_no_secret(refused.value, "s3c", "ret@")


def test_numbers_outside_their_range() -> None:
    options: list[dict[str, Any]] = [
        {"capacity": 0},
        {"capacity": -1},
        {"probe_interval": 0},
        {"probe_timeout": 0},
        {"connect_timeout": -1},
        {"backoff_initial": 0},
        {"backoff_initial": 2, "backoff_maximum": 1},
        {"driver": "libpq"},
    ]
    for option in options:
        with pytest.raises(ValueError, match=r"must be|at least"):
            PgNotifyBus("", ["c"], **option)
    with pytest.raises(TypeError):
        PgNotifyBus("", ["c"], capacity=1.5)  # type: ignore[arg-type]


async def test_synchronous_things_are_refused_with_the_right_name(database18: str) -> None:
    from sqlalchemy import create_engine

    engine = create_engine(database18.replace("postgresql://", "postgresql+psycopg://"))
    with pytest.raises(TypeError, match="create_async_engine"):
        PgNotifyBus(engine, ["c"])
    with pytest.raises(TypeError, match="AsyncConnectionPool"):
        PgNotifyBus(psycopg_pool.ConnectionPool(database18, open=False), ["c"])
    async with await psycopg.AsyncConnection.connect(database18) as connection:
        with pytest.raises(TypeError, match="callable"):
            PgNotifyBus(connection, ["c"])

    def synchronous() -> object:
        return psycopg.connect(database18)

    made: list[Any] = []

    def remember() -> object:
        made.append(synchronous())
        return made[-1]

    with pytest.raises(TypeError, match="psycopg AsyncConnection"):
        async with PgNotifyBus(remember, ["c"]):
            pass
    made[0].close()


@pytest.mark.parametrize(("driver", "package"), [("psycopg", "psycopg"), ("asyncpg", "asyncpg")])
def test_a_driver_that_is_not_installed(
    driver: Driver, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MissingExtra, match=rf"pip install 'pgnotifybus\[{package}\]'") as missing:
        PgNotifyBus("postgresql://localhost/x", ["c"], driver=driver)
    assert isinstance(missing.value, ImportError)


def test_no_secret_in_any_repr_or_description(database18: str) -> None:
    assert PASSWORD in database18 or "s3cret" in database18
    for driver in ("psycopg", "asyncpg"):
        bus = PgNotifyBus(database18, ["c"], driver=driver)
        shown = [repr(bus), str(bus.health()), str(bus.statistics())]
        shown.append(connector(database18, driver).describe())
        assert "s3cret" not in " ".join(shown)
        assert "127.0.0.1" in shown[-1]


def assert_no_secret(error: BaseException, *secrets: str) -> None:
    """Nothing of the whole chain of causes tells a secret."""
    seen: BaseException | None = error
    while seen is not None:
        for secret in secrets:
            assert secret not in str(seen)
            assert secret not in repr(seen)
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
