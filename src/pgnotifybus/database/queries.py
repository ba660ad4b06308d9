"""Queries as data, so that one piece of code serves every kind of connection. Layer: database."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple, TypeVar

from pgnotifybus.links.base import Rows, Runner

R = TypeVar("R")


class Query(NamedTuple):
    """One statement with text parameters `$1`, `$2`, ...; all columns it answers are text."""

    sql: str
    parameters: tuple[str, ...]


Script = Generator[Query, Rows, R]
"""Yields queries, is sent their rows, and returns its result: the same for every kind of driver."""


async def run(script: Script[R], runner: Runner) -> R:
    """Run a script over a connection of ours, and return its result."""
    try:
        query = next(script)
        while True:
            query = script.send(await runner.fetch(query.sql, *query.parameters))
    except StopIteration as end:
        result: R = end.value
        return result


def array(values: Sequence[str | None]) -> str:
    """PostgreSQL's text form of a text array.

    Args:
        values: Texts that PostgreSQL can store, so without NUL; None for null.

    Source: https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
    """
    if not values:
        return "{}"
    texts = [each for each in values if each is not None]
    if len(texts) < len(values):
        elements = ("NULL" if each is None else array([each])[1:-1] for each in values)
        return "{" + ",".join(elements) + "}"
    # All at once is several times faster than one by one, and NUL is in none of them.
    joined = "\0".join(texts).replace("\\", "\\\\").replace('"', '\\"')
    return '{"' + joined.replace("\0", '","') + '"}'
