"""One connection for one errand in the database, and what to say if the server refuses.
Layer: schema.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import AsyncIterator
from typing import Final

from pgnotifybus.core.names import SCHEMA
from pgnotifybus.database.sidelink import SideLink
from pgnotifybus.errors import SchemaError, SchemaMissing
from pgnotifybus.links.base import Driver, ServerError
from pgnotifybus.links.sources import connector

_CONNECT_TIMEOUT: Final = 10.0  # seconds that connecting to one host may take

TIMEOUT: Final = 60.0
"""The seconds that a transaction may take, waiting for locks aside."""


@contextlib.asynccontextmanager
async def side(source: object, driver: Driver | None, timeout: float) -> AsyncIterator[SideLink]:
    """A connection for one errand; what is not committed by then is not."""
    link = SideLink(
        connector(source, driver), part="schema", connect_timeout=_CONNECT_TIMEOUT, timeout=timeout
    )
    try:
        yield link
    finally:
        await link.close()


def refused(error: ServerError, what: str, schema: str, rights: str) -> SchemaError:
    """What to raise when the server refuses something about our tables.

    Args:
        error: What the server said.
        what: What was to be done, as in "cannot ...".
        schema: The schema of the tables.
        rights: What to do if rights are missing.
    """
    match error.sqlstate:
        case "42501":
            advice = rights
        case "55P03":
            advice = "somebody uses the tables: try again, or raise lock_timeout"
        case "3F000" | "42P01" | "42883" | "42703":
            option = "" if schema == SCHEMA else f" --schema {shlex.quote(schema)}"
            command = f"`pgnotifybus schema install{option}`"
            return SchemaMissing(f"cannot {what}: {error}: install it first: {command}")
        case _:
            return SchemaError(f"cannot {what}: {error}")
    return SchemaError(f"cannot {what}: {error}: {advice}")
