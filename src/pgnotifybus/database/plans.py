"""Statements that a session of ours runs again and again, planned once. Layer: database.

Planning the read of an event log takes four times as long as the read itself. A plan that is kept
knows nothing of its parameters, so the planner is told to trust the indexes. Without them it takes
a few new rows for a third of the table, and starts workers and a compiler for each read.
"""

from __future__ import annotations

from typing import Final

from pgnotifybus.core.names import literal
from pgnotifybus.links.base import Rows, Runner, ServerError

_PREPARE_SESSION: Final = (
    "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; "
    "SET enable_bitmapscan = off; SET max_parallel_workers_per_gather = 0; SET jit = off"
)
_MOST: Final = 8
"""Statements that a session keeps; a read has one for each era and limit."""


class Plans:
    """What is prepared in one session after the other; only for sessions that nobody else uses.

    A statement is prepared when it comes for the second time: most come once.
    """

    def __init__(self) -> None:
        self._runner: Runner | None = None
        self._seen: set[str] = set()
        self._names: dict[str, str] = {}
        self._count = 0

    def over(self, runner: Runner) -> Runner:
        """The same session, whose `fetch` keeps plans."""
        if runner is not self._runner:  # another session, in which nothing is prepared
            self._forget()
            self._runner = runner
        return _Planned(runner, self)

    async def fetch(self, runner: Runner, sql: str, parameters: tuple[str | None, ...]) -> Rows:
        """Run a statement, prepared if it has been run before."""
        name = self._names.get(sql)
        if name is None:
            if sql not in self._seen or len(self._names) == _MOST:
                if len(self._seen) < 10 * _MOST:
                    self._seen.add(sql)
                return await runner.fetch(sql, *parameters)
            name = await self._prepare(runner, sql, len(parameters))
        values = ", ".join("NULL" if each is None else literal(each) for each in parameters)
        try:
            return await runner.fetch(f"EXECUTE {name} ({values})" if values else f"EXECUTE {name}")
        except ServerError:  # a plan may be out of date: the statement itself will say what is
            self._forget()
            return await runner.fetch(sql, *parameters)

    async def _prepare(self, runner: Runner, sql: str, count: int) -> str:
        if not self._names:
            await runner.execute(_PREPARE_SESSION)
        self._count += 1  # never the same: one that was forgotten is still there
        name = f"pgnotifybus_{self._count}"
        types = f" ({', '.join(['text'] * count)})" if count else ""
        await runner.execute(f"PREPARE {name}{types} AS {sql}")
        self._names[sql] = name
        return name

    def _forget(self) -> None:
        self._runner = None
        self._seen.clear()
        self._names.clear()


class _Planned:
    """A `Runner` that keeps plans."""

    def __init__(self, runner: Runner, plans: Plans) -> None:
        self._runner = runner
        self._plans = plans

    async def execute(self, sql: str) -> None:
        await self._runner.execute(sql)

    async def fetch(self, sql: str, *parameters: str | None) -> Rows:
        return await self._plans.fetch(self._runner, sql, parameters)
