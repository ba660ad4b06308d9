"""The ways to connect, one class a kind of source. Layer: links.

Drivers, pools and SQLAlchemy are imported where they are needed and not before.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol
from urllib.parse import parse_qs, urlsplit

from pgnotifybus.core.dsn import MALFORMED
from pgnotifybus.errors import (
    ConnectError,
    FatalLinkError,
    MissingExtra,
    PgNotifyBusError,
    PoolTooSmall,
)
from pgnotifybus.links.base import (
    KEEPALIVE_PARAMETERS,
    Borrowed,
    Link,
    Outlet,
    ServerError,
)
from pgnotifybus.links.failures import connect_failure

Release = Callable[[], Awaitable[None]]


def package_of(value: object) -> str:
    """The package of the first class in the ancestry that is of a package we know."""
    for cls in type(value).__mro__:
        package = cls.__module__.partition(".")[0]
        if package in ("asyncpg", "psycopg", "psycopg_pool", "sqlalchemy"):
            return package
    return ""


class OwnConnections:
    """What all connectors share but the pool that lends: an outlet is a link of its own."""

    async def connect(self, part: str, timeout: float) -> Link:
        raise NotImplementedError

    async def outlet(self, part: str, timeout: float) -> Outlet:
        return await self.connect(part, timeout)

    async def borrow(self, part: str, timeout: float) -> Borrowed:
        raise NotImplementedError


Password = Callable[[], str | Awaitable[str]]
"""Called for every new connection."""


# -- DSN ------------------------------------------------------------------------------------------


class PsycopgDsn(OwnConnections):
    def __init__(
        self,
        dsn: str,
        kwargs: dict[str, Any] | None = None,
        password: Password | None = None,
    ) -> None:
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
        self._password = password

    def describe(self) -> str:
        parameters = {**self._parameters, **self._kwargs}
        return _describe(
            str(parameters.get("host") or parameters.get("hostaddr") or ""),
            str(parameters.get("port") or ""),
            str(parameters.get("dbname") or ""),
        )

    async def connect(self, part: str, timeout: float) -> Link:
        given = _to_the_primary({**self._parameters, **self._kwargs})
        connection = await self._open(given, timeout)
        tuned = any(name.startswith(("keepalives", "tcp_user_timeout")) for name in given)
        return await _psycopg_link(connection, part, timeout, tune_socket=not tuned)

    async def borrow(self, part: str, timeout: float) -> Borrowed:
        given = _to_the_primary({**self._parameters, **self._kwargs})
        if not any(name.startswith(("keepalives", "tcp_user_timeout")) for name in given):
            given.update(KEEPALIVE_PARAMETERS)
        given.setdefault("application_name", f"pgnotifybus {part}")
        connection = await self._open(given, timeout)
        return Borrowed(connection, connection.close)

    async def _open(self, given: dict[str, Any], timeout: float) -> Any:
        import psycopg

        # Whole seconds, at least 2: that is libpq's grain.
        kwargs: dict[str, Any] = {"connect_timeout": max(2, round(timeout)), **given}
        kwargs["autocommit"] = True
        kwargs.update(await _password_now(self._password))
        outer = sys.exception()
        try:
            return await psycopg.AsyncConnection.connect(**kwargs)
        except asyncio.CancelledError as error:
            _let_go(error, outer)
            raise
        except (psycopg.Error, OSError) as error:
            _let_go(error, outer)
            raise connect_failure(
                self.describe(), str(error), getattr(error, "sqlstate", None)
            ) from error


class AsyncpgDsn(OwnConnections):
    def __init__(self, dsn: str, password: Password | None = None) -> None:
        try:
            import asyncpg  # noqa: F401
        except ImportError:
            raise MissingExtra("asyncpg") from None
        if dsn and not dsn.startswith("postgresql://"):
            raise ValueError("the DSN is malformed: asyncpg takes postgresql://... only")
        self._dsn = dsn
        self._password = password
        try:
            self._parts = urlsplit(dsn)
        except ValueError:  # which would repeat a part of it
            raise ValueError(f"the DSN is malformed: {MALFORMED}") from None
        query = parse_qs(self._parts.query)
        hosts = self._parts.netloc.rpartition("@")[2] or query.get("host", [""])[0]
        wants_primary = _several(hosts) and "target_session_attrs" not in query
        self._wanted: Any = "primary" if wants_primary and _ATTRIBUTES not in os.environ else None

    def describe(self) -> str:
        host, _, port = self._parts.netloc.rpartition("@")[2].rpartition(":")
        if not host:
            host, port = port, ""
        return _describe(host, port, self._parts.path.lstrip("/"))

    async def connect(self, part: str, timeout: float) -> Link:
        return await _asyncpg_link(await self._open(timeout), part, timeout)

    async def borrow(self, part: str, timeout: float) -> Borrowed:
        named = "application_name" in parse_qs(self._parts.query)
        settings = {} if named else {"application_name": f"pgnotifybus {part}"}
        connection = await self._open(timeout, settings)
        return Borrowed(connection, lambda: _close_asyncpg(connection))

    async def _open(self, timeout: float, settings: dict[str, str] | None = None) -> Any:
        import asyncpg

        password = await _password_now(self._password)
        try:
            return await asyncpg.connect(
                self._dsn or None,
                timeout=timeout,
                **password,
                server_settings=settings,
                target_session_attrs=self._wanted,
            )
        except _asyncpg_errors(ValueError) as error:
            raise connect_failure(
                self.describe(), _say(error), getattr(error, "sqlstate", None)
            ) from error


# -- pools and engines ----------------------------------------------------------------------------


class PsycopgPool(OwnConnections):
    """Connects with the pool's parameters, and takes no connection of the pool."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def describe(self) -> str:
        return "the psycopg pool's server"

    async def connect(self, part: str, timeout: float) -> Link:
        try:
            conninfo = await _value_of(self._pool.conninfo)
            kwargs = await _value_of(self._pool.kwargs)
        except Exception as error:  # as of a connection factory, it may pass
            raise connect_failure(
                self.describe(), f"the pool's conninfo raised {type(error).__name__}", None
            ) from error
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
            dsn = PsycopgDsn(conninfo or "", parameters)
        except ValueError as error:
            raise FatalLinkError(f"the pool's conninfo cannot be used: {error}") from None
        return await dsn.connect(part, timeout)

    async def borrow(self, part: str, timeout: float) -> Borrowed:
        if self._pool.max_size < 2:
            raise PoolTooSmall(
                "the psycopg pool has max_size=1 and a consumer would keep that one connection for "
                "itself: give the pool max_size=2 or more, or pass a DSN instead of the pool"
            )
        try:
            connection = await self._pool.getconn(timeout)
        except Exception as error:  # of the pool's `configure` or `check`: it may pass
            raise connect_failure(
                self.describe(), f"{type(error).__name__}: {error}", None
            ) from error
        return Borrowed(connection, lambda: self._pool.putconn(connection))


class AsyncpgPool:
    """Keeps one connection of the pool for listening: asyncpg offers no way to take it out.

    To send, it borrows one for each notification, so that the application has all the others.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def describe(self) -> str:
        return "the asyncpg pool's server"

    async def connect(self, part: str, timeout: float) -> Link:
        connection = await self._acquire(timeout)

        async def release() -> None:
            # The link has closed it, so the pool makes a new one when it needs it.
            await self._pool.release(connection)

        return await _asyncpg_link(connection, part, timeout, release)

    async def borrow(self, part: str, timeout: float) -> Borrowed:
        connection = await self._acquire(timeout)
        # Giving it back resets the session, which asks the server.
        return Borrowed(connection, lambda: self._pool.release(connection, timeout=timeout))

    async def _acquire(self, timeout: float) -> Any:
        if self._pool.get_max_size() < 2:
            raise PoolTooSmall(
                "the asyncpg pool has max_size=1 and the bus would keep that one connection for "
                "itself: give the pool max_size=2 or more, or pass a DSN instead of the pool"
            )
        try:
            return await self._pool.acquire(timeout=timeout)
        except _asyncpg_errors() as error:
            raise connect_failure(
                self.describe(), _say(error), getattr(error, "sqlstate", None)
            ) from error
        except Exception as error:  # of the pool's `init` or `setup`: it may pass
            raise connect_failure(
                self.describe(), f"{type(error).__name__}: {error}", None
            ) from error

    async def outlet(self, part: str, timeout: float) -> Outlet:
        from pgnotifybus.links.asyncpg import PoolOutlet

        return PoolOutlet(self._pool, self.describe(), timeout)


class Engine(OwnConnections):
    """Connects through the engine and takes the connection out of its pool."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def describe(self) -> str:
        url = self._engine.url
        return _describe(url.host or "", str(url.port or ""), url.database or "")

    async def connect(self, part: str, timeout: float) -> Link:
        outer = await self._connect()
        pooled = await outer.get_raw_connection()
        connection = pooled.driver_connection
        pooled.detach()

        async def release() -> None:
            # The link has closed it: let SQLAlchemy forget it without a rollback on a closed one.
            await outer.invalidate()
            await outer.close()

        return await _link_over(connection, part, timeout, release)

    async def borrow(self, part: str, timeout: float) -> Borrowed:
        connection = await self._connect()
        try:
            pooled = await connection.get_raw_connection()
            if pooled.dbapi_connection.autocommit:  # `begin` would begin nothing
                await connection.execution_options(isolation_level="READ COMMITTED")
        except BaseException:
            await connection.close()
            raise
        return Borrowed(connection, connection.close)

    async def _connect(self) -> Any:
        from sqlalchemy import exc

        try:
            return await self._engine.connect()
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


class Factory(OwnConnections):
    """Calls the user's function for every new link."""

    def __init__(self, factory: Callable[[], Any]) -> None:
        self._factory = factory

    def describe(self) -> str:
        return "the server of the connection factory"

    async def connect(self, part: str, timeout: float) -> Link:
        return await _link_over(await self._call(), part, timeout)

    async def borrow(self, part: str, timeout: float) -> Borrowed:
        connection = await self._call()
        if package_of(connection) == "asyncpg":
            return Borrowed(connection, lambda: _close_asyncpg(connection))
        return Borrowed(connection, connection.close)

    async def _call(self) -> Any:
        try:
            connection = self._factory()
            if inspect.isawaitable(connection):
                connection = await connection
            return connection
        except PgNotifyBusError:
            raise
        except Exception as error:
            # Whatever it was, it may pass: a password that could not be fetched just now, say.
            # But what a driver says of a DSN that it cannot read may repeat the password.
            name = type(error).__name__
            if isinstance(error, ValueError) or name == "ProgrammingError":
                text = f"the connection factory raised {name}"
            else:
                text = _say(error) if _is_drivers(error) else f"{name}: {error}"
            raise connect_failure(
                self.describe(), text, getattr(error, "sqlstate", None)
            ) from error


async def _password_now(password: Password | None) -> dict[str, str]:
    """The password as a parameter, from the function that knows it; empty without one."""
    if password is None:
        return {}
    try:
        value = await _value_of(password)
    except Exception as error:  # as of a connection factory, it may pass
        raise ConnectError(
            f"the function for the password raised {type(error).__name__}: nothing was tried"
        ) from error
    if not isinstance(value, str):
        raise FatalLinkError(
            f"the function for the password returned {type(value).__name__}: it must be a str"
        )
    return {"password": value}


async def _value_of(value: Any) -> Any:
    """What a psycopg pool was given, or what the function that it was given says now."""
    if callable(value):
        value = value()
    return await value if inspect.isawaitable(value) else value


def _let_go(error: BaseException, outer: BaseException | None) -> None:
    """Clear the frames of an error: who keeps it keeps in them a connection that is half open.

    Args:
        error: The error, with those that it came of.
        outer: The one that the caller is handling, whose frames are none of our business.
    """
    seen: BaseException | None = error
    while seen is not None and seen is not outer:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__


# -- what they share ------------------------------------------------------------------------------

_ATTRIBUTES: Final = "PGTARGETSESSIONATTRS"


def _several(hosts: str) -> bool:
    return "," in (hosts or os.environ.get("PGHOST", ""))


def _to_the_primary(given: dict[str, Any]) -> dict[str, Any]:
    """Of several hosts take the primary, unless it was said which: no other takes a LISTEN."""
    from psycopg import pq

    said = "target_session_attrs" in given or _ATTRIBUTES in os.environ
    if said or not _several(str(given.get("host") or given.get("hostaddr") or "")):
        return given
    knows_primary = pq.version() >= 140_000  # libpq
    return {**given, "target_session_attrs": "primary" if knows_primary else "read-write"}


async def _link_over(
    connection: Any, part: str, timeout: float, release: Release | None = None
) -> Link:
    package = package_of(connection)
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


def _asyncpg_errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """What asyncpg raises when it cannot connect, and `others`."""
    import asyncpg

    return (
        *others,
        OSError,
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
    )


async def _close_asyncpg(connection: Any) -> None:
    await connection.close(timeout=1.0)


def _is_drivers(error: BaseException) -> bool:
    return isinstance(error, OSError) or package_of(error) in ("asyncpg", "psycopg")


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
