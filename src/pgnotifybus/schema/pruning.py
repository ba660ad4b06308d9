"""Deleting what is too old from the spill table. Layer: schema."""

from __future__ import annotations

from typing import Final

from pgnotifybus.core.names import SCHEMA, check_schema, quote
from pgnotifybus.links.base import Driver, Runner, ServerError
from pgnotifybus.schema.errands import TIMEOUT, refused, side

# One at a time, and the others do not wait for it. Locking the rows would do that too, but needs
# the right to UPDATE them.
_PRUNE: Final = """\
WITH turn AS MATERIALIZED (
  SELECT pg_catalog.pg_try_advisory_xact_lock(
           pg_catalog.hashtext('pgnotifybus prune'), pg_catalog.hashtext(CAST($1 AS text))) AS ours
), expired AS MATERIALIZED (
  SELECT id FROM {schema}.payloads
   WHERE expires_at < pg_catalog.now() AND (SELECT ours FROM turn)
   ORDER BY expires_at LIMIT {limit}
), gone AS (
  DELETE FROM {schema}.payloads AS payloads USING expired WHERE payloads.id = expired.id RETURNING 1
)
SELECT pg_catalog.count(*)::text FROM gone"""


async def prune(source: object, *, schema: str = SCHEMA, driver: Driver | None = None) -> int:
    """Delete the payloads whose retention is over, a thousand in a transaction.

    A bus that receives spilled payloads does it by itself, about once a minute; this is for
    databases where none does.

    Args:
        source: Where to connect, as for `PgNotifyBus`.
        schema: The schema of the spill table.
        driver: As for `PgNotifyBus`.

    Returns:
        How many were deleted; none while a bus or somebody else is deleting them.

    Raises:
        SchemaError: If the table is not there, or may not be deleted from.
        ConnectError, FatalLinkError, LinkLost, ValueError: As for `install`.

    Cancel safety: what was deleted so far stays deleted.
    """
    check_schema(schema)
    total = 0
    async with side(source, driver, TIMEOUT) as link:
        try:
            while True:
                async with link.use() as runner:  # each time with a deadline of its own
                    deleted = await prune_some(runner, schema)
                if not deleted:
                    return total
                total += deleted
        except ServerError as error:
            name = quote(schema)
            rights = (
                f"GRANT USAGE ON SCHEMA {name}, and GRANT SELECT, DELETE ON {name}.payloads, to "
                "the role"
            )
            raise refused(error, f"prune the schema {schema!r}", schema, rights) from error


async def prune_some(runner: Runner, schema: str, limit: int = 1000) -> int:
    """Delete some payloads whose retention is over; how many, none while somebody else does it."""
    rows = await runner.fetch(_PRUNE.format(schema=quote(schema), limit=limit), schema)
    return int(rows[0][0] or 0)
