"""A schema with an orders table whose trigger notifies; it is dropped at the end. Layer: cli.

The channel's name is that of the schema, which is made up anew for each run: two demos on one
server, or somebody's own channel "orders", do not disturb each other's counting.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

import psycopg
from psycopg import sql

from pgnotifybus.cli.dsn import for_psycopg
from pgnotifybus.cli.outcomes import CommandFailed, Signals, say
from pgnotifybus.links.failures import connect_failure

_TIMEOUT: Final = 10.0  # seconds for each statement
_ITEMS: Final = ("tea", "bread", "lamp", "chair", "book", "kite")
_STATES: Final = ("paid", "packed", "shipped", "delivered")

_CREATE: Final = """
CREATE SCHEMA {schema};
CREATE TABLE {schema}.orders (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    item text NOT NULL,
    status text NOT NULL DEFAULT 'new',
    change bigint NOT NULL
);
CREATE FUNCTION {schema}.tell() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    PERFORM pg_catalog.pg_notify({channel}, pg_catalog.json_build_object(
        'change', NEW.change, 'order', NEW.id, 'status', NEW.status)::text);
    RETURN NULL;
END $body$;
CREATE TRIGGER tell AFTER INSERT OR UPDATE ON {schema}.orders
    FOR EACH ROW EXECUTE FUNCTION {schema}.tell();
"""

# The PID alone would do, but a PID can be another backend's by the time the statement runs.
_TERMINATE: Final = """
SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
 WHERE pid = %s AND usename = current_user AND datname = current_database()
   AND application_name = ANY (%s)"""


class Shop:
    """The schema: made when entered, dropped when left, whatever happened meanwhile."""

    def __init__(self, dsn: str, where: str, signals: Signals) -> None:
        """Describe a shop; no I/O.

        Args:
            dsn: The server.
            where: The server, in words that may be shown.
            signals: What must not interrupt the dropping.
        """
        self.schema = f"pgnotifybus_demo_{secrets.token_hex(4)}"
        self.channel = f"{self.schema}_orders"
        self.where = where
        self._dsn = for_psycopg(dsn)
        self._signals = signals

    def __enter__(self) -> Self:
        try:
            with self._connect("setup") as connection:
                self._create(connection)
        except BaseException:
            with self._signals.deferred(), suppress(psycopg.Error, CommandFailed):
                self._drop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with self._signals.deferred():
                self._drop()
        except psycopg.Error as failure:
            say(
                f"warning: the schema could not be dropped ({_first_line(failure)}): run "
                f"DROP SCHEMA {self.schema} CASCADE"
            )

    async def connect(self, part: str) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        """A connection for a part of the demo.

        Raises:
            ConnectError, FatalLinkError: If there is none.
        """
        try:
            return await psycopg.AsyncConnection.connect(**self._parameters(part))
        except (psycopg.Error, OSError) as error:
            raise connect_failure(self.where, str(error), _sqlstate(error)) from None

    def listener_names(self) -> list[str]:
        """The application_name that the bus's connection may have."""
        own = psycopg.conninfo.conninfo_to_dict(self._dsn).get("application_name")
        environment = psycopg.pq.Conninfo.get_defaults()
        default = next((o.val for o in environment if o.keyword == b"application_name"), None)
        names = ["pgnotifybus listener"]
        names += [own] if isinstance(own, str) else []
        names += [default.decode()] if default else []
        return names

    # -- inside -----------------------------------------------------------------------------------

    def _parameters(self, part: str) -> dict[str, Any]:
        given = psycopg.conninfo.conninfo_to_dict(self._dsn)
        return {
            "connect_timeout": 10,
            **given,
            "autocommit": True,
            "application_name": f"pgnotifybus demo {part}",
        }

    def _connect(self, part: str) -> psycopg.Connection[tuple[Any, ...]]:
        try:
            return psycopg.connect(**self._parameters(part))
        except (psycopg.Error, OSError) as error:
            raise connect_failure(self.where, str(error), _sqlstate(error)) from None

    def _create(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        statement = sql.SQL(_CREATE).format(
            schema=sql.Identifier(self.schema), channel=sql.Literal(self.channel)
        )
        try:
            connection.execute(statement)
        except psycopg.errors.InsufficientPrivilege:
            raise CommandFailed(
                f"the user {connection.info.user} may not make a schema in the database "
                f"{connection.info.dbname}: GRANT CREATE ON DATABASE, or take another user, or "
                "leave out --dsn for an embedded server"
            ) from None
        except psycopg.Error as error:
            raise CommandFailed(f"cannot make the demo's schema: {_first_line(error)}") from None

    def _drop(self) -> None:
        with psycopg.connect(**{**self._parameters("setup"), "connect_timeout": 5}) as connection:
            connection.execute("SET lock_timeout = '5s'")
            connection.execute("SET client_min_messages = warning")  # not what goes with it
            drop = sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE")
            connection.execute(drop.format(sql.Identifier(self.schema)))


class Orders:
    """The table: one connection writes, another one reads."""

    def __init__(self, shop: Shop) -> None:
        self.sent = 0
        """How many changes have committed, and so the number of the newest one."""
        self.placed = 0
        self._shop = shop
        self._table = sql.Identifier(shop.schema, "orders")
        self._writer: psycopg.AsyncConnection[tuple[Any, ...]]
        self._reader: psycopg.AsyncConnection[tuple[Any, ...]]

    async def __aenter__(self) -> Self:
        self._writer = await self._shop.connect("writer")
        try:
            self._reader = await self._shop.connect("reader")
        except BaseException:
            await self._writer.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._writer.close()
        await self._reader.close()

    async def place(self, count: int = 1) -> None:
        """Insert new orders, all in one transaction: each is a change and sends a notification."""
        await self._run(
            self._writer,
            "INSERT INTO {table} (item, change) SELECT %(item)s, %(sent)s::bigint + n"
            " FROM generate_series(1, %(count)s::int) AS n ORDER BY n",
            {"item": random.choice(_ITEMS), "sent": self.sent, "count": count},
        )
        self.sent += count
        self.placed += count

    async def advance(self) -> None:
        """Change the status of some order."""
        rows = await self._run(
            self._writer,
            "UPDATE {table} SET status = %(status)s, change = %(change)s WHERE id = %(id)s"
            " RETURNING id",
            {
                "status": random.choice(_STATES),
                "change": self.sent + 1,
                "id": random.randint(1, max(1, self.placed)),
            },
        )
        self.sent += len(rows)

    async def read(self) -> tuple[int, int]:
        """How many orders there are, and the number of the newest change among them."""
        rows = await self._run(
            self._reader, "SELECT count(*), coalesce(max(change), 0) FROM {table}"
        )
        return rows[0][0], rows[0][1]

    async def terminate_listener(self, pid: int) -> bool:
        """End the server process of the bus's connection; whether there was one."""
        rows = await self._run(self._reader, _TERMINATE, (pid, self._shop.listener_names()))
        return bool(rows and rows[0][0])

    async def _run(
        self,
        connection: psycopg.AsyncConnection[tuple[Any, ...]],
        statement: str,
        parameters: Mapping[str, object] | Sequence[object] | None = None,
    ) -> list[tuple[Any, ...]]:
        query = sql.SQL(statement).format(table=self._table)
        try:
            async with asyncio.timeout(_TIMEOUT):
                cursor = await connection.execute(query, parameters)
                return await cursor.fetchall() if cursor.description else []
        except TimeoutError:
            raise CommandFailed(
                f"{self._shop.where} has not answered the demo for {_TIMEOUT:g} s"
            ) from None
        except psycopg.Error as error:
            raise CommandFailed(
                f"the demo's own connection failed, not the bus's: {_first_line(error)}"
            ) from None


def number_of(payload: str) -> int:
    """The number of the change that a notification tells of."""
    number = json.loads(payload)["change"]
    assert isinstance(number, int)
    return number


def _sqlstate(error: BaseException) -> str | None:
    return error.sqlstate if isinstance(error, psycopg.Error) else None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
