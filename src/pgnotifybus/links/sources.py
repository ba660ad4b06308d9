"""From what the user passed to something that connects. Layer: links.

A source is a DSN, an asyncpg pool, a psycopg pool, a SQLAlchemy async engine, or an async callable
that returns a connection. None of the packages is imported before it is needed: an object can
only come from a package that has been imported already.
"""

from __future__ import annotations

import inspect
from typing import Final, cast

from pgnotifybus.core.dsn import take_apart
from pgnotifybus.links.base import Connector, Driver, Lender
from pgnotifybus.links.connectors import (
    AsyncpgDsn,
    AsyncpgPool,
    Engine,
    Factory,
    Password,
    PsycopgDsn,
    PsycopgPool,
    package_of,
)

__all__ = ["Connector", "Driver", "Lender", "Password", "connector"]

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


def connector(
    source: object, driver: Driver | None = None, password: Password | None = None
) -> Lender:
    """Choose how to connect; no I/O.

    Args:
        source: What the user passed.
        driver: Which driver a DSN is for; None means what the DSN names
            (`postgresql+asyncpg://`), else psycopg.
        password: What knows the password of a DSN; asked for each connection.

    Raises:
        TypeError: If the source is none that is known, or the password no function.
        ValueError: If the DSN is malformed or the driver unknown.
        MissingExtra: If the driver that a DSN needs is not installed.
    """
    if Lender in type(source).__mro__:  # it says of itself that it is one: that of `testing`
        return cast("Lender", source)
    if driver not in (None, "psycopg", "asyncpg"):
        raise ValueError(f"driver must be 'psycopg' or 'asyncpg', not {driver!r}")
    if password is not None and not callable(password):
        raise TypeError("password= must be a function; a password that stays is part of the DSN")
    if isinstance(source, str):
        return _from_dsn(source, driver, password)
    if driver is not None:
        raise ValueError("driver= goes with a DSN only: other sources bring their own driver")
    if password is not None:
        raise ValueError("password= goes with a DSN only: other sources bring their own")
    package = package_of(source)
    names = {cls.__name__ for cls in type(source).__mro__}
    if package == "asyncpg" and "Pool" in names:
        return AsyncpgPool(source)
    if package == "psycopg_pool" and "AsyncConnectionPool" in names:
        return PsycopgPool(source)
    if package == "sqlalchemy" and "AsyncEngine" in names:
        return Engine(source)
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
        return Factory(source)
    raise TypeError(f"a source must be {_KINDS}; not {type(source).__name__}")


def _from_dsn(dsn: str, driver: Driver | None, password: Password | None) -> Lender:
    dsn, named = take_apart(dsn)
    if named is not None:
        if named not in _DIALECTS:
            raise ValueError(f"the DSN names the driver {named!r}; known: {', '.join(_DIALECTS)}")
        driver = driver or _DIALECTS[named]
    if driver == "asyncpg":
        return AsyncpgDsn(dsn, password)
    return PsycopgDsn(dsn, password=password)
