"""The rules of `core/position.py` that are SQL. Layer: log.

- An event is *new since* a snapshot if its transaction had not ended then, or it was written in a
  later era.
- It is *in* a snapshot if its transaction had ended then. Events of foreign eras (of a database
  that this one was restored from) were there before all.
"""

from __future__ import annotations

from pgnotifybus.core.names import quote
from pgnotifybus.core.position import Instant, first_era, last_era


def parameter(number: int) -> str:
    """A snapshot that is sent as a parameter."""
    return f"CAST(CAST(${number} AS text) AS pg_snapshot)"


def newer(schema: str, since: Instant, snapshot: str | None = None, columns: str = "*") -> str:
    """SELECTs of all that is new since a snapshot, over the index on transactions.

    Args:
        schema: The schema of the log.
        since: The snapshot.
        snapshot: Where the statement has it, as a `parameter`, so that plans can be kept. If None
            it is written into the text, so that the planner knows how few it is about.
        columns: What to select.
    """
    if snapshot is None:
        end = f"CAST('{since.snapshot.end}' AS xid8)"
        running = f"CAST('{{{','.join(map(str, since.snapshot.running))}}}' AS xid8[])"
    else:
        end = f"pg_catalog.pg_snapshot_xmax({snapshot})"
        running = f"ARRAY(SELECT pg_catalog.pg_snapshot_xip({snapshot}))"
    era, events = since.era, f"SELECT {columns} FROM {quote(schema)}.events AS new"
    # A prepared transaction outlives the failover after which it is committed: its events are of
    # an earlier era than the snapshot in which it was running. The first era has no earlier one.
    eras = f"= {era}"
    if era > first_era(era) + 1:
        eras = f"= ANY (ARRAY(SELECT pg_catalog.generate_series({first_era(era)}, {era})))"
    return (
        f"{events} WHERE new.era = {era} AND new.xid >= {end}"
        f"\nUNION ALL {events} WHERE new.era {eras} AND new.xid = ANY ({running})"
        f"\nUNION ALL {events} WHERE new.era > {era} AND new.era <= {last_era(era)}"
    )


def is_newer(since: Instant, snapshot: str) -> str:
    """The same as a condition, where one goes by ids."""
    era = since.era
    return (
        f"((new.era > {era} AND new.era <= {last_era(era)}) OR "
        f"(new.era >= {first_era(era)} AND new.era <= {era} AND NOT {_sees(snapshot)}))"
    )


def is_in(target: Instant, snapshot: str) -> str:
    """That an event is in a snapshot."""
    first, last = first_era(target.era), last_era(target.era)
    return (
        f"(new.era < {first} OR new.era > {last} OR "
        f"(new.era <= {target.era} AND {_sees(snapshot)}))"
    )


def is_not_before(microseconds: int) -> str:
    """That an event was not appended before a time."""
    return (
        "new.created_at >= CAST('epoch' AS timestamptz) "
        f"+ {microseconds} * interval '1 microsecond'"
    )


def _sees(snapshot: str) -> str:
    return f"pg_catalog.pg_visible_in_snapshot(new.xid, {snapshot})"
