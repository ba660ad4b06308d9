"""`pgnotifybus log append CHANNEL -`: each line of stdin is an event. Layer: cli.

Lines are appended as they come: while one batch is committed, the next one gathers. While the
server is away they wait, and what comes on stdin waits with them. A commit that was not answered is
asked about before anything is appended again, so that no line is in the log twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, TextIO

import typer

from pgnotifybus.cli.lines import Line, Lines, bad_line
from pgnotifybus.cli.log.account import Account
from pgnotifybus.cli.log.append import side_of
from pgnotifybus.cli.outcomes import FAILED, OK, USAGE, CommandFailed, Signals, UsageProblem, say
from pgnotifybus.cli.progress import progress
from pgnotifybus.cli.stdin import Stdin
from pgnotifybus.core.backoff import Backoff
from pgnotifybus.database.queries import run
from pgnotifybus.database.sidelink import SLOWEST
from pgnotifybus.errors import LinkError, PgNotifyBusError
from pgnotifybus.links.base import Connector, Runner, ServerError
from pgnotifybus.log import appending
from pgnotifybus.log.appending import New
from pgnotifybus.log.refusals import refusal
from pgnotifybus.publish.committing import Committer, InDoubt
from pgnotifybus.publish.statements import identify
from pgnotifybus.schema.checking import check_version

_BATCH: Final = 1000
_BATCH_BYTES: Final = 8 * 1024 * 1024
_HELD: Final = 2 * _BATCH
_HELD_BYTES: Final = 32 * 1024 * 1024
"""How much is read ahead of the server."""

_PATIENCE: Final = 60.0
"""The seconds for which the end waits for a server that takes nothing: as long as a failover."""
_DRAIN: Final = 3.0
"""The seconds for which it waits after a signal: who stops a service kills it after ten."""
_IDLE_SECONDS: Final = 10

# A server that has not heard our COMMIT must not keep the transaction open for ever.
_BEGIN: Final = """\
BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = 0; \
SET LOCAL idle_in_transaction_session_timeout = '{seconds}s'"""
_TRANSACTION: Final = "SELECT pg_catalog.pg_current_xact_id()::text"


@dataclass(frozen=True, slots=True)
class Request:
    """What to append, and what to say about it."""

    stdin: Stdin
    channel: str
    schema: str
    key: str | None
    headers: dict[str, str] | None
    json: bool
    verbose: bool


def stream(connector: Connector, request: Request, signals: Signals) -> int:
    """Append the lines of stdin, and say what has become of them.

    Returns:
        The exit code.

    Raises:
        ConnectError, FatalLinkError: If there is no connection at the start; nothing was read.
        SchemaMissing, SchemaError: If there is no log; nothing was read.
        Signalled: If it was interrupted twice, or before anything was read.
    """
    streaming = _Streaming(connector, request)
    try:
        signals.run(streaming.run(), ask=streaming.stop.set)
    finally:
        if streaming.begun:
            streaming.tell(signals.received)
    return 128 + signals.received if signals.received else streaming.code


class _Waiting(NamedTuple):
    """A line that is to be appended."""

    event: New
    size: int


class _Streaming:
    def __init__(self, connector: Connector, request: Request) -> None:
        self._request = request
        self._side = side_of(connector)
        self._committer = Committer(self._side, request.schema, durable=True)
        self._account = Account(request.channel)
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._changed = asyncio.Event()
        """Set when there is more to append, or room for more, or the end of the input."""
        self._read_all = False
        self._in_doubt = 0
        """How many lines are being committed, which may be in the log whatever happens now."""
        self._problem: PgNotifyBusError | None = None
        """Why the input was not read to its end, or not all of it was appended."""
        self._delayed: str | None = None
        """Why nothing can be appended for now."""
        self.begun = False
        self.stop = asyncio.Event()

    async def run(self) -> None:
        """Append all that comes, or what has come until `stop` is set.

        Raises:
            ConnectError, FatalLinkError, SchemaError: If it cannot begin.

        Cancel safety: what has not been appended is given up, and counted.
        """
        stopping = asyncio.create_task(self.stop.wait())
        beginning = asyncio.create_task(self._check())
        tasks: set[asyncio.Task[object]] = {stopping, beginning}
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await asyncio.wait({stopping, beginning}, return_when=asyncio.FIRST_COMPLETED)
            if not beginning.done():
                return
            beginning.result()
            self.begun = True
            async with self._shown():
                reading = asyncio.create_task(self._read())
                writing = asyncio.create_task(self._write())
                tasks |= {reading, writing}
                await asyncio.wait(
                    {reading, writing, stopping}, return_when=asyncio.FIRST_COMPLETED
                )
                await _ended(reading)
                self._read_all = True
                self._changed.set()
                await self._drain(writing, stopping)
        finally:
            for task in tasks:
                await _ended(task)
            self._account.unknown = self._in_doubt
            self._account.seconds = loop.time() - began
            await self._side.close()
        for task in (reading, writing):
            if not task.cancelled():
                task.result()  # there is none but for a mistake of ours

    @property
    def code(self) -> int:
        """The exit code, if no signal was received."""
        if self._account.ok and self._problem is None:
            return OK
        return USAGE if self._account.ok and isinstance(self._problem, UsageProblem) else FAILED

    def tell(self, signal_number: int | None) -> None:
        """Say what has become of the lines."""
        account, request, problem = self._account, self._request, self._problem
        whole = account.ok and problem is None and signal_number is None
        if not request.json and (request.verbose or not whole or _is_terminal(sys.stderr)):
            say(account.summary())
        if signal_number is not None:
            name = signal.Signals(signal_number).name
            say(f"stopped by {name}: nothing behind line {account.accepted:,} was taken")
        if isinstance(problem, UsageProblem):
            say(f"error: {problem}; neither it nor what follows it was appended")
        if not account.ok:
            named = None if isinstance(problem, UsageProblem) else problem
            say(f"error: {account.failure(str(named or self._delayed or 'interrupted'))}")
        elif problem is not None and not isinstance(problem, UsageProblem):
            say(f"error: {problem}")
        if request.json:
            typer.echo(account.json())

    # -- reading ----------------------------------------------------------------------------------

    async def _check(self) -> None:
        """Fail at once where waiting would be in vain."""
        async with self._side.use() as runner:
            try:
                await check_version(runner, self._request.schema)
            except ServerError as error:
                raise refusal(error, self._request.schema, "append to the log") from error

    async def _read(self) -> None:
        """Take all lines, up to the first that cannot be appended."""
        lines = Lines()
        try:
            while data := await self._request.stdin.read():
                await self._take(lines.feed(data))
            await self._take(lines.end())
        except (UsageProblem, CommandFailed) as problem:
            self._problem = problem

    async def _take(self, lines: Iterator[Line]) -> None:
        request = self._request
        for line in lines:
            while len(self._waiting) >= _HELD or self._waiting_bytes > _HELD_BYTES:
                await self._change()
            try:
                event = appending.new(
                    request.channel,
                    line.text,
                    request.key,
                    request.headers,
                    appending.MAX_EVENT_BYTES,
                )
            except ValueError as error:
                raise bad_line(line.number, f"cannot be appended: {error}") from None
            self._waiting.append(_Waiting(event, line.size))
            self._waiting_bytes += line.size
            self._account.take(line.size)
            self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    # -- appending --------------------------------------------------------------------------------

    async def _write(self) -> None:
        """Append what waits, until all is read and appended, or some of it cannot be."""
        while True:
            while not self._waiting:
                if self._read_all:
                    return
                await self._change()
            batch = self._batch()
            try:
                await self._append(batch)
            except PgNotifyBusError as problem:
                self._problem = problem
                return
            for _ in batch:
                self._waiting_bytes -= self._waiting.popleft().size
            self._changed.set()

    def _batch(self) -> list[New]:
        batch: list[New] = []
        size = 0
        for line in itertools.islice(self._waiting, _BATCH):
            size += line.size
            if batch and size > _BATCH_BYTES:
                break
            batch.append(line.event)
        return batch

    async def _append(self, batch: list[New]) -> None:
        """Append some lines in one transaction, exactly once, however long that takes.

        Raises:
            SchemaError, FatalLinkError: If the server refuses; none of them is in the log.
            CommandFailed: If nobody knows whether they are.

        Cancel safety: `_in_doubt` says whether they may be in the log.
        """
        backoff = Backoff(0.1, 5.0)
        doubt: InDoubt | None = None
        while True:
            try:
                if doubt is not None:
                    match await self._committer.outcome(doubt):
                        case "committed":
                            self._appended(None, len(batch))
                            return
                        case "unknown":
                            raise CommandFailed(
                                "the connection was lost while they were committed, and the "
                                "server could not say afterwards"
                            )
                    doubt, self._in_doubt = None, 0
                self._appended(await self._commit(batch), len(batch))
            except InDoubt as error:
                doubt = error
                continue
            except ServerError as error:
                if error.for_good:
                    raise refusal(error, self._request.schema, "append to the log") from error
                failure: Exception = error
            except LinkError as error:
                failure = error
            else:
                return
            delay = backoff.next_delay()
            self._delay(failure)
            await asyncio.sleep(delay)

    async def _commit(self, batch: list[New]) -> list[int]:
        """Append some lines in one transaction; their ids.

        Raises:
            ServerError, LinkError, FatalLinkError: None of them is in the log.
            InDoubt: The connection was lost while it committed.
        """
        size = sum(event.size for event in batch)
        transaction: str | None = None
        server: str | None = None
        try:
            async with self._side.use(size=size) as runner:
                server = await _identity(runner)
                await runner.execute(_BEGIN.format(seconds=_IDLE_SECONDS + size // SLOWEST))
                try:
                    ids = await run(appending.append_many(self._request.schema, batch), runner)
                    [(transaction,)] = await runner.fetch(_TRANSACTION)
                except ServerError:
                    await runner.execute("ROLLBACK")
                    raise
                self._in_doubt = len(batch)
                try:
                    await runner.execute("COMMIT")
                except ServerError:  # which has ended the transaction
                    self._in_doubt = 0
                    raise
                return ids
        except LinkError as error:
            if self._in_doubt:
                assert transaction is not None
                raise InDoubt(transaction, server) from error
            raise

    def _appended(self, ids: list[int] | None, count: int) -> None:
        self._in_doubt = 0
        self._delayed = None
        self._account.commit(ids, count)

    def _delay(self, error: Exception) -> None:
        """Say once in each outage that lines wait."""
        if self._delayed is None:
            waiting = self._account.waiting
            say(f"-- cannot append: {error}; {waiting:,} waiting, trying again")
        self._delayed = str(error)

    # -- ending -----------------------------------------------------------------------------------

    async def _drain(self, writing: asyncio.Task[None], stopping: asyncio.Task[bool]) -> None:
        """Wait until all is appended, unless the server takes nothing for too long."""
        while not writing.done():
            before = self._account.appended
            stopped = stopping.done()
            waited_for = {writing} if stopped else {writing, stopping}
            done, _ = await asyncio.wait(
                waited_for,
                timeout=_DRAIN if stopped else _PATIENCE,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not done and (stopped or self._account.appended == before):
                return

    # -- what people see --------------------------------------------------------------------------

    def _shown(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Show how far it is, where somebody looks on and does not type."""
        quiet = self._request.verbose or self._request.json or _is_terminal(sys.stdin)
        if quiet or not _is_terminal(sys.stderr):
            return contextlib.nullcontext()
        return progress(self._account.progress)


async def _identity(runner: Runner) -> str | None:
    """Which server it is; None if this role may not know."""
    try:
        [(server,)] = await runner.fetch(identify().sql)
    except ServerError as error:
        if not error.for_good:
            raise
        return None
    return server


async def _ended(task: asyncio.Task[object] | asyncio.Task[None]) -> None:
    """Cancel a task, and wait until it has ended."""
    task.cancel()
    await asyncio.wait({task})


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()  # None if it was closed from the start
