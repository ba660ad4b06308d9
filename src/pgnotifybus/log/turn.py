"""The connection of the one consumer of its name that works, and the lock that it holds by it.
Layer: log.

The turn is an advisory lock of the session, so that it ends with it, whatever becomes of the
process. It only saves the others trouble: what makes each event take effect once is the lock on the
consumer's row, which every transaction takes before it reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Final, TypeVar

from pgnotifybus.database.queries import Script
from pgnotifybus.database.work import Transaction, Work, server_error
from pgnotifybus.errors import Closed, LinkLost, PgNotifyBusError
from pgnotifybus.links.base import Lender
from pgnotifybus.log.ledger import Ledger
from pgnotifybus.log.refusals import refusal

R = TypeVar("R")

STAND_BY: Final = 2.0
"""The seconds between two looks at whether the one who works is still there."""
_STATEMENT: Final = 30.0
"""The seconds that a statement of ours may take; one may wait for a predecessor's transaction."""


class Turn:
    """Of all consumers of one name, one has the turn."""

    def __init__(self, lender: Lender, ledger: Ledger, timeout: float) -> None:
        self._lender = lender
        self._ledger = ledger
        self._timeout = timeout
        self._work: Work | None = None
        self._left = asyncio.Event()

    @property
    def is_ours(self) -> bool:
        """Whether this one works, as far as it knows."""
        return self._work is not None and not self._work.is_lost

    async def wait(self) -> Work:
        """Stand by until nobody of the same name works, and keep it so.

        Raises:
            Closed: If it is given up meanwhile, for good.
            LinkError, FatalLinkError, SchemaError: If there is no connection, or no right to.
        """
        if self._work is not None and self._work.is_lost:
            await self.drop()
        while self._work is None:
            self._check_left()
            work = await self._try()
            if work is not None:
                self._work = work
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STAND_BY * (0.75 + random.random() / 2)):
                    await self._left.wait()
        return self._work

    def leave(self) -> None:
        """Stand by no more."""
        self._left.set()

    async def give_up(self) -> None:
        """Let another one work, now and for good; the connection is given back as it came."""
        self.leave()
        work, self._work = self._work, None
        if work is None:
            return
        try:
            async with self._deadline(work), work.transaction():
                await work.run(self._ledger.end_turn())
        except BaseException as error:  # the end of the session ends the turn as well
            await _discard(work)
            if not isinstance(error, Exception):
                raise
        else:
            await work.close()

    async def drop(self) -> None:
        """End the session, and with it the turn; a pool then makes a new one."""
        work, self._work = self._work, None
        if work is not None:
            await _discard(work)

    async def once(self, script: Script[R]) -> R:
        """Run a script in a transaction of its own, over a connection of its own."""
        work = await self._connect()
        try:
            async with self._understood(work), work.transaction():
                result: R = await work.run(script)
                return result
        finally:
            await work.close()

    # -- over the connection that has the turn -----------------------------------------------------

    async def begin(self, work: Work) -> Transaction:
        """Begin a transaction; a connection that cannot is given up."""
        transaction = work.transaction()
        try:
            async with self._understood(work):
                return await transaction.__aenter__()
        except BaseException:
            await self.drop()
            raise

    async def run(self, work: Work, script: Script[R]) -> R:
        """Run a script in the open transaction."""
        async with self._understood(work):
            result: R = await work.run(script)
            return result

    async def commit(self, work: Work, transaction: Transaction) -> None:
        """Commit; what the server says to that is raised as the driver has it."""
        async with self._deadline(work):
            try:
                await transaction.commit()
            except Exception as error:
                if server_error(error) is None:
                    raise _lost(error) from error
                raise

    async def roll_back(self, work: Work, transaction: Transaction, error: BaseException) -> None:
        """Roll back because of an error; a connection that cannot even do that is given up."""
        if transaction.ended and server_error(error) is not None and not work.is_lost:
            return  # the server has refused to commit
        if transaction.ended or work.is_lost:
            await self.drop()
            return
        try:
            async with self._deadline(work):
                await transaction.__aexit__(type(error), error, error.__traceback__)
        except BaseException as failure:
            # Drivers let the error itself through, which is not a failure of theirs.
            if failure is not error:
                await self.drop()
                if not isinstance(failure, Exception):
                    raise

    # -- inside ------------------------------------------------------------------------------------

    async def _try(self) -> Work | None:
        """A connection that has the turn, if nobody else has it."""
        work = await self._connect()
        try:
            async with self._understood(work), work.transaction():
                got = await work.run(self._ledger.try_turn())
            if got:
                self._check_left()
                return work
        except BaseException:
            await _discard(work)
            raise
        await work.close()
        return None

    def _check_left(self) -> None:
        if self._left.is_set():
            raise Closed("the consumer is closed")

    async def _connect(self) -> Work:
        try:
            async with asyncio.timeout(3 * self._timeout):
                return Work(await self._lender.borrow("consumer", self._timeout))
        except TimeoutError:
            raise LinkLost("the server did not answer in time") from None

    @contextlib.asynccontextmanager
    async def _understood(self, work: Work) -> AsyncIterator[None]:
        """Let the driver do something, with a deadline, and understand its errors."""
        try:
            async with self._deadline(work):
                yield
        except PgNotifyBusError:
            raise
        except Exception as error:
            meaning = self._meaning(error)
            if meaning is None:
                raise
            raise meaning from error

    @contextlib.asynccontextmanager
    async def _deadline(self, work: Work) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(_STATEMENT):
                yield
        except TimeoutError:
            await work.kill()
            raise LinkLost(f"the server has not answered for {_STATEMENT:g} s") from None

    def _meaning(self, error: Exception) -> PgNotifyBusError | None:
        """What the error means, if it is about the connection or the schema."""
        refused = server_error(error)
        if refused is None:
            return _lost(error)
        sqlstate = refused.sqlstate or ""
        if sqlstate.startswith(("42", "3F")):
            what = f"use the consumer {self._ledger.name!r}"
            return refusal(refused, self._ledger.schema, what)
        passes = not refused.for_good and not sqlstate.startswith("25")
        return LinkLost(str(refused)) if passes else None


def _lost(error: Exception) -> LinkLost:
    return LinkLost(" ".join(str(error).split()) or type(error).__name__)


async def _discard(work: Work) -> None:
    await work.kill()
    await work.close()
