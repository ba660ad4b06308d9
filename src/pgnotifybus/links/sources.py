"""From what the user passed to something that connects. Layer: links.

A source is a DSN, an asyncpg pool, a psycopg pool, a SQLAlchemy async engine, or an async callable
that returns a connection. None of the packages is imported before it is needed: an object can
only come from a package that has been imported already.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, Protocol
from urllib.parse import urlsplit

from pgnotifybus.core.dsn import MALFORMED, take_apart
from pgnotifybus.errors import FatalLinkError, MissingExtra, PgNotifyBusError, PoolTooSmall
from pgnotifybus.links.base import Link, Outlet, ServerError, connect_failure

Driver = Literal["psycopg", "asyncpg"]

Release = Callable[[], Awaitable[None]]

_KINDS: Final = (
    "a DSN string, an asyncpg.Pool, a psycopg_pool.AsyncConnectionPool, a SQLAlchemy AsyncEngine, "
    "or an async callable that returns a fresh asyncpg or psycopg connection"
)

# SQLAlchemy's names for the same drivers.
_DIALECTS: Final[dict[str, Driver]] = {
    "psycopg": "psycopg",
    "psycopg_async": "psycopg",
    "asyncpg": "asyncpg",
}


class Connector(Protocol):
    """Something that makes links."""

    def describe(self) -> str:
        """Where it connects to, in words that carry no secret."""

    async def connect(self, part: str, timeout: float) -> Link:
        """A new link, fit for a listener but listening to nothing.

        Args:
            part: What the link is for; becomes part of its application_name.
            timeout: The seconds that one host may take. The caller sets the deadline for all.

        Raises:
            ConnectError: If there is no connection now.
            FatalLinkError: If waiting will not bring one.

        Cancel safety: no connection is left behind.
        """

    async def outlet(self, timeout: float) -> Outlet:
        """Something to send notifications with; otherwise as `connect`."""


class _Connects:
    """What all connectors share but the pool that lends: an outlet is a link of its own."""

    async def connect(self, part: str, timeout: float) -> Link:
        raise NotImplementedError

    async def outlet(self, timeout: float) -> Outlet:
        return await self.connect("publisher", timeout)


def connector(source: object, driver: Driver | None = None) -> Connector:
    """Choose how to connect; no I/O.

    Args:
        source: What the user passed.
        driver: Which driver a DSN is for; None means what the DSN names
            (`postgresql+asyncpg://`), else psycopg.

    Raises:
        TypeError: If the source is none that is known.
        ValueError: If the DSN is malformed or the driver unknown.
        MissingExtra: If the driver that a DSN needs is not installed.
    """
    if driver not in (None, "psycopg", "asyncpg"):
        raise ValueError(f"driver must be 'psycopg' or 'asyncpg', not {driver!r}")
    if isinstance(source, str):
        return _from_dsn(source, driver)
    if driver is not None:
        raise ValueError("driver= goes with a DSN only: other sources bring their own driver")
    package = _package(source)
    names = {cls.__name__ for cls in type(source).__mro__}
    if package == "asyncpg" and "Pool" in names:
        return _AsyncpgPool(source)
    if package == "psycopg_pool" and "AsyncConnectionPool" in names:
        return _PsycopgPool(source)
    if package == "sqlalchemy" and "AsyncEngine" in names:
        return _Engine(source)
    if package == "psycopg_pool":
        raise TypeError("the source is a synchronous psycopg pool: pass an AsyncConnectionPool")
    if package == "sqlalchemy" and "Engine" in names:
        raise TypeError("the source is a synchronous Engine: pass one of create_async_engine()")
    if package in ("asyncpg", "psycopg", "sqlalchemy") and not inspect.isroutine(source):
        raise TypeError(
            f"the source is a {package} {type(source).__name__}, which the bus could not renew "
            "after a loss: pass a callable that returns a fresh connection"
        )
    if callable(source):
        return _Factory(source)
    raise TypeError(f"a source must be {_KINDS}; not {type(source).__name__}")


def _package(value: object) -> str:
    """The package of the first class in the ancestry that is of a package we know."""
    for cls in type(value).__mro__:
        package = cls.__module__.partition(".")[0]
        if package in ("asyncpg", "psycopg", "psycopg_pool", "sqlalchemy"):
            return package
    return ""


# -- DSN ------------------------------------------------------------------------------------------


def _from_dsn(dsn: str, driver: Driver | None) -> Connector:
    dsn, named = take_apart(dsn)
    if named is not None:
        if named not in _DIALECTS:
            raise ValueError(f"the DSN names the driver {named!r}; known: {', '.join(_DIALECTS)}")
        driver = driver or _DIALECTS[named]
    return _AsyncpgDsn(dsn) if driver == "asyncpg" else _PsycopgDsn(dsn)


class _PsycopgDsn(_Connects):
    def __init__(self, dsn: str, kwargs: dict[str, Any] | None = None) -> None:
        try:
            import psycopg
            from psycopg import conninfo
        except ImportError:
            raise MissingExtra("psycopg", 'or pass driver="asyncpg" if you have asyncpg') from None
        try:
            self._parameters = conninfo.conninfo_to_dict(dsn)
        except psycopg.Error:
            # What libpq says may repeat a part of the DSN, and so the password.
            raise ValueError(
                f"the DSN is malformed: {MALFORMED}, or 'host=... dbname=...'"
            ) from None
        ports = str(self._parameters.get("port") or "").split(",")
        if any(port and not port.isdecimal() for port in ports):
            raise ValueError(f"the DSN is malformed: {MALFORMED}")  # libpq says so too late
        self._dsn = dsn
        self._kwargs = kwargs or {}

    def describe(self) -> str:
        parameters = {**self._parameters, **self._kwargs}
        return _describe(
            str(parameters.get("host") or parameters.get("hostaddr") or ""),
            str(parameters.get("port") or ""),
            str(parameters.get("dbname") or ""),
        )

    async def connect(self, part: str, timeout: float) -> Link:
        import psycopg

        given = {**self._parameters, **self._kwargs}
        # Whole seconds, at least 2: that is libpq's grain.
        given.setdefault("connect_timeout", max(2, round(timeout)))
        kwargs = {**given, "autocommit": True}
        try:
            connection = await psycopg.AsyncConnection.connect(**kwargs)
        except (psycopg.Error, OSError) as error:
            raise connect_failure(
                self.describe(), str(error), getattr(error, "sqlstate", None)
            ) from error
        tuned = any(name.startswith(("keepalives", "tcp_user_timeout")) for name in given)
        return await _psycopg_link(connection, part, timeout, tune_socket=not tuned)


class _AsyncpgDsn(_Connects):
    def __init__(self, dsn: str) -> None:
        try:
            import asyncpg  # noqa: F401
        except ImportError:
            raise MissingExtra("asyncpg") from None
        if dsn and not dsn.startswith("postgresql://"):
            raise ValueError("the DSN is malformed: asyncpg takes postgresql://... only")
        self._dsn = dsn
        self._parts = urlsplit(dsn)

    def describe(self) -> str:
        host, _, port = self._parts.netloc.rpartition("@")[2].rpartition(":")
        if not host:
            host, port = port, ""
        return _describe(host, port, self._parts.path.lstrip("/"))

    async def connect(self, part: str, timeout: float) -> Link:
        import asyncpg

        try:
            connection = await asyncpg.connect(self._dsn or None, timeout=timeout)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
            raise connect_failure(
                self.describe(), _say(error), getattr(error, "sqlstate", None)
            ) from error
        return await _asyncpg_link(connection, part, timeout)


# -- pools and engines ----------------------------------------------------------------------------


class _PsycopgPool(_Connects):
    """Connects with the pool's parameters, and takes no connection of the pool."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def describe(self) -> str:
        return "the psycopg pool's server"

    async def connect(self, part: str, timeout: float) -> Link:
        conninfo = self._pool.conninfo
        if callable(conninfo):
            conninfo = conninfo()
            if inspect.isawaitable(conninfo):
                conninfo = await conninfo
        kwargs = self._pool.kwargs
        if callable(kwargs):
            kwargs = kwargs()
            if inspect.isawaitable(kwargs):
                kwargs = await kwargs
        # What the pool wants of its Python objects is nothing to a link, which uses none of them.
        python_only = {
            "autocommit",
            "row_factory",
            "cursor_factory",
            "context",
            "prepare_threshold",
        }
        parameters = {k: v for k, v in (kwargs or {}).items() if k not in python_only}
        try:
            dsn = _PsycopgDsn(conninfo or "", parameters)
        except ValueError as error:
            raise FatalLinkError(f"the pool's conninfo cannot be used: {error}") from None
        return await dsn.connect(part, timeout)


class _AsyncpgPool:
    """Keeps one connection of the pool for listening: asyncpg offers no way to take it out.

    To send, it borrows one for each notification, so that the application has all the others.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def describe(self) -> str:
        return "the asyncpg pool's server"

    async def connect(self, part: str, timeout: float) -> Link:
        import asyncpg

        if self._pool.get_max_size() < 2:
            raise PoolTooSmall(
                "the asyncpg pool has max_size=1 and the bus would keep that one connection for "
                "itself: give the pool max_size=2 or more, or pass a DSN instead of the pool"
            )
        try:
            connection = await self._pool.acquire(timeout=timeout)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise connect_failure(
                self.describe(), _say(error), getattr(error, "sqlstate", None)
            ) from error

        async def release() -> None:
            # The link has closed it, so the pool makes a new one when it needs it.
            await self._pool.release(connection)

        return await _asyncpg_link(connection, part, timeout, release)

    async def outlet(self, timeout: float) -> Outlet:
        from pgnotifybus.links.asyncpg import PoolOutlet

        return PoolOutlet(self._pool, self.describe(), timeout)


class _Engine(_Connects):
    """Connects through the engine and takes the connection out of its pool."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def describe(self) -> str:
        url = self._engine.url
        return _describe(url.host or "", str(url.port or ""), url.database or "")

    async def connect(self, part: str, timeout: float) -> Link:
        from sqlalchemy import exc

        try:
            outer = await self._engine.connect()
        except (exc.DBAPIError, exc.TimeoutError, OSError) as error:
            original = getattr(error, "orig", None)
            cause = getattr(original, "__cause__", None) or original or error
            raise connect_failure(
                self.describe(), _say(cause), getattr(cause, "sqlstate", None)
            ) from error
        except Exception as error:
            # Drivers' own errors come through where SQLAlchemy does not wrap them.
            if not _is_drivers(error):
                raise
            raise connect_failure(
                self.describe(), _say(error), getattr(error, "sqlstate", None)
            ) from error
        pooled = await outer.get_raw_connection()
        connection = pooled.driver_connection
        pooled.detach()

        async def release() -> None:
            # The link has closed it: let SQLAlchemy forget it without a rollback on a closed one.
            await outer.invalidate()
            await outer.close()

        return await _link_over(connection, part, timeout, release)


class _Factory(_Connects):
    """Calls the user's function for every new link."""

    def __init__(self, factory: Callable[[], Any]) -> None:
        self._factory = factory

    def describe(self) -> str:
        return "the server of the connection factory"

    async def connect(self, part: str, timeout: float) -> Link:
        try:
            connection = self._factory()
            if inspect.isawaitable(connection):
                connection = await connection
        except PgNotifyBusError:
            raise
        except Exception as error:
            # Whatever it was, it may pass: a password that could not be fetched just now, say.
            text = _say(error) if _is_drivers(error) else f"{type(error).__name__}: {error}"
            raise connect_failure(
                self.describe(), text, getattr(error, "sqlstate", None)
            ) from error
        return await _link_over(connection, part, timeout)


# -- what they share ------------------------------------------------------------------------------


async def _link_over(
    connection: Any, part: str, timeout: float, release: Release | None = None
) -> Link:
    package = _package(connection)
    names = {cls.__name__ for cls in type(connection).__mro__}
    if package == "psycopg" and "AsyncConnection" in names:
        return await _psycopg_link(connection, part, timeout, release)
    if package == "asyncpg" and {"Connection", "PoolConnectionProxy"} & names:
        return await _asyncpg_link(connection, part, timeout, release)
    raise TypeError(
        "the source must bring an asyncpg connection or a psycopg AsyncConnection, not "
        f"{package + ' ' if package else ''}{type(connection).__name__}"
    )


async def _psycopg_link(
    connection: Any,
    part: str,
    timeout: float,
    release: Release | None = None,
    *,
    tune_socket: bool = True,
) -> Link:
    from pgnotifybus.links.psycopg import PsycopgLink

    return await _prepared(PsycopgLink(connection, release, tune_socket=tune_socket), part, timeout)


async def _asyncpg_link(
    connection: Any, part: str, timeout: float, release: Release | None = None
) -> Link:
    from pgnotifybus.links.asyncpg import AsyncpgLink

    return await _prepared(AsyncpgLink(connection, release), part, timeout)


class _Preparable(Link, Protocol):
    async def prepare(self, part: str) -> None: ...


async def _prepared(link: _Preparable, part: str, timeout: float) -> Link:
    try:
        async with asyncio.timeout(timeout):
            await link.prepare(part)
    except ServerError as error:
        link.abort()
        await link.close()
        raise connect_failure("the server", str(error), error.sqlstate) from error
    except BaseException:
        link.abort()
        await link.close()
        raise
    return link


def _is_drivers(error: BaseException) -> bool:
    return isinstance(error, OSError) or _package(error) in ("asyncpg", "psycopg")


def _say(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__


def _describe(host: str, port: str, database: str) -> str:
    # What a DSN leaves out, both drivers take from libpq's variables.
    host = host or os.environ.get("PGHOST", "")
    port = port or os.environ.get("PGPORT", "")
    database = database or os.environ.get("PGDATABASE", "")
    where = f"{host or 'the local server'}{':' + port if port else ''}"
    return f"{where}, database {database}" if database else where
