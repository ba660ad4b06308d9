"""Connect as a bus would, ask, and judge. Layer: diagnosis."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Final

from pgnotifybus.core.names import quote
from pgnotifybus.diagnosis import facts, rules
from pgnotifybus.diagnosis.finding import Finding
from pgnotifybus.errors import BehindPooler, FatalLinkError, LinkError, SchemaError, SchemaMissing
from pgnotifybus.links.base import Connector, Link, Rows, ServerError, discard
from pgnotifybus.pooler import echo, hand_back
from pgnotifybus.schema.checking import check_version

_ROUND_TRIPS: Final = 5

Rule = Callable[[Rows], Iterable[Finding]]


async def examine(connector: Connector, schema: str, timeout: float) -> list[Finding]:
    """All findings about a server.

    Args:
        connector: What connects to it.
        schema: Where the spill table and the event log would be.
        timeout: The seconds that connecting to one host, or one answer, may take; a notification
            may take half of them.

    Raises:
        ConnectError, FatalLinkError: If there is no connection.

    Cancel safety: no connection is left behind.
    """
    try:
        async with asyncio.timeout(3 * timeout):
            link = await connector.connect("doctor", timeout)
    except TimeoutError:
        raise LinkError(f"{connector.describe()} did not answer in time") from None
    try:
        return await _Examination(connector, link, timeout).all(schema)
    finally:
        await discard(link)


class _Examination:
    def __init__(self, connector: Connector, link: Link, timeout: float) -> None:
        self._connector = connector
        self._link = link
        self._timeout = timeout
        self._delivery = timeout / 2
        self._number = 0
        self._listeners = 0
        self._findings: list[Finding] = []

    async def all(self, schema: str) -> list[Finding]:
        await self._ask("server-version", facts.SERVER, self._note_server)
        await self._ask("tls", facts.CONNECTION, rules.connection)
        await self._ask("session-timeouts", facts.TIMEOUTS, rules.timeouts)
        await self._ask("probe-rights", facts.RIGHTS, rules.rights)
        await self._ask("queue-usage", facts.QUEUE, rules.queue)
        await self._ask("stuck-sessions", facts.STUCK, rules.stuck)
        await self._ask("listeners", facts.LISTENERS, self._note_listeners)
        await self._ask("notify-lock", facts.WAITING, rules.waiting)
        await self._ask(
            "row-triggers", facts.TRIGGERS, lambda rows: rules.triggers(rows, self._listeners)
        )
        if await self._has_schema(schema):
            name = quote(schema)
            await self._ask("spill-table", facts.SPILL.format(schema=name), rules.spill)
            await self._ask("consumers", facts.LOG.format(schema=name), rules.log)
        if not any(each.id == "standby" and each.level == "problem" for each in self._findings):
            await self._deliver()
        return self._findings

    def _note_server(self, rows: Rows) -> Iterable[Finding]:
        self._number = int(rows[0][0] or 0)
        return rules.server(rows, datetime.now(UTC).date())

    def _note_listeners(self, rows: Rows) -> Iterable[Finding]:
        self._listeners = sum(row[7] == "true" for row in rows)
        return rules.listeners(rows, self._number)

    async def _ask(self, what: str, sql: str, rule: Rule) -> None:
        """Ask one thing; that it cannot be known is a finding, and the rest goes on."""
        try:
            async with asyncio.timeout(self._timeout):
                rows = await self._link.fetch(sql)
        except ServerError as error:
            self._unknown(what, str(error))
            return
        except TimeoutError:  # the session is of no use any more
            self._link.abort()
            raise LinkError(f"the server has not answered for {self._timeout:g} s") from None
        self._findings += rule(rows)

    async def _has_schema(self, schema: str) -> bool:
        try:
            async with asyncio.timeout(self._timeout):
                await check_version(self._link, schema)
        except SchemaMissing as error:
            self._findings.append(
                Finding(
                    "schema",
                    "note",
                    str(error).partition(":")[0],
                    "Large payloads and the event log need it; small notifications do not.",
                    str(error).partition(": ")[2],
                )
            )
            return False
        except SchemaError as error:
            self._findings.append(Finding("schema", "problem", str(error)))
            return False
        except ServerError as error:
            self._unknown("schema", str(error))
            return False
        self._findings.append(Finding("schema", "ok", f"the schema {schema!r} is there, and whole"))
        return True

    async def _deliver(self) -> None:
        """Whether notifications arrive, how soon, and whether there is a pooler in between."""
        try:
            async with asyncio.timeout(self._timeout):
                pooled = (await self._link.inspect()).pid != self._link.pid
            seconds = await self._round_trip()
        except (LinkError, FatalLinkError, ServerError) as error:
            self._unknown("round-trip", str(error))
            return
        except TimeoutError:  # a statement was not answered
            pooled, seconds = False, None
        if pooled and seconds is None:
            swallows = BehindPooler(f"{self._connector.describe()} is a pooler")
            why = "It takes LISTEN, and nothing ever arrives."
            self._findings.append(
                Finding("pooler", "problem", swallows.cause, why, swallows.advice)
            )
            await hand_back(self._link)
            return
        self._findings.append(rules.pooler(pooled))
        self._findings.append(rules.round_trip(seconds, self._delivery))

    async def _round_trip(self) -> float | None:
        """The median of a few round trips, in seconds; None if one does not come back."""
        now = asyncio.get_running_loop().time
        async with (
            asyncio.timeout(self._timeout) as deadline,
            echo(self._connector, self._link, self._delivery) as once,
        ):
            taken: list[float] = []
            for _ in range(_ROUND_TRIPS):
                deadline.reschedule(now() + self._timeout)
                seconds = await once()
                if seconds is None:
                    return None
                taken.append(seconds)
            return statistics.median(taken)

    def _unknown(self, what: str, reason: str) -> None:
        self._findings.append(
            Finding(what, "note", f"could not be found out: {reason}", "", "Ask with another role")
        )
