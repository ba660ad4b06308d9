"""What the database knows of consumers, and the queries for it. Layer: log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from pgnotifybus.core.names import literal, log_channel, quote
from pgnotifybus.core.position import Instant, Position, decode, encode
from pgnotifybus.core.snapshot import Snapshot
from pgnotifybus.database.queries import Query, Script, array
from pgnotifybus.errors import EventLogError
from pgnotifybus.links.base import (
    KEEPALIVE_COUNT,
    KEEPALIVE_IDLE,
    KEEPALIVE_INTERVAL,
    USER_TIMEOUT_MS,
    Rows,
)
from pgnotifybus.log.cursor import Cursor
from pgnotifybus.log.event import NO_HEADERS, Event, headers_text
from pgnotifybus.log.rows import events_of

_KEEPALIVE: Final = {
    "tcp_keepalives_idle": KEEPALIVE_IDLE,
    "tcp_keepalives_interval": KEEPALIVE_INTERVAL,
    "tcp_keepalives_count": KEEPALIVE_COUNT,
    "tcp_user_timeout": USER_TIMEOUT_MS,
}
_NOTICE_DEATH: Final = "SELECT " + ", ".join(
    f"pg_catalog.set_config('{name}', '{value}', false)" for name, value in _KEEPALIVE.items()
)
_AS_BEFORE: Final = (
    "SELECT pg_catalog.set_config(name, reset_val, false) FROM pg_catalog.pg_settings"
    f" WHERE name IN {tuple(_KEEPALIVE)}"
)

_ENTER: Final = """\
INSERT INTO {schema}.consumers (name, channels, position)
VALUES (CAST($1 AS text), CAST(CAST($2 AS text) AS text[]), CAST($3 AS text))
ON CONFLICT (name) DO NOTHING RETURNING name"""

_CHANNELS: Final = """\
SELECT (channels = CAST(CAST($2 AS text) AS text[]))::text
  FROM {schema}.consumers WHERE name = CAST($1 AS text)"""

_GO_ON_WITH: Final = """\
UPDATE {schema}.consumers SET channels = CAST(CAST($2 AS text) AS text[])
 WHERE name = CAST($1 AS text) AND channels <> CAST(CAST($2 AS text) AS text[]) RETURNING name"""

_TAKE: Final = """\
SELECT position, attempts::text, failing::text, size::text,
       greatest(extract(epoch FROM retry_at - pg_catalog.clock_timestamp()), 0)::text,
       EXISTS (SELECT 1 FROM {schema}.dead_letters AS letter
                WHERE letter.consumer = consumers.name AND letter.replay)::text
  FROM {schema}.consumers WHERE name = CAST($1 AS text){lock}"""

_STORE: Final = """\
UPDATE {schema}.consumers
   SET position = CAST($2 AS text), attempts = CAST(CAST($3 AS text) AS integer),
       failing = {failing}, size = {size}, error = nullif(CAST($4 AS text), ''),
       retry_at = pg_catalog.clock_timestamp()
                  + CAST(CAST($5 AS text) AS float8) * interval '1 second',
       updated_at = pg_catalog.clock_timestamp()
 WHERE name = CAST($1 AS text) RETURNING name"""

# Not copied from the table: retention may have deleted it meanwhile.
_BURY: Final = """\
INSERT INTO {schema}.dead_letters
       (consumer, id, channel, key, payload, headers, created_at, position, attempts, error)
SELECT CAST($1 AS text), {id}, event[1], event[2], event[3], CAST(event[4] AS jsonb),
       CAST(CAST($3 AS text) AS timestamptz), CAST($4 AS text), {attempts}, CAST($5 AS text)
  FROM (SELECT CAST(CAST($2 AS text) AS text[]) AS event) AS given
ON CONFLICT (consumer, id) DO UPDATE
   SET attempts = excluded.attempts, error = excluded.error, died_at = pg_catalog.now(),
       replay = false
RETURNING consumer"""

_REBURY: Final = """\
UPDATE {schema}.dead_letters
   SET attempts = attempts + 1, error = CAST($3 AS text), died_at = pg_catalog.now(), replay = false
 WHERE consumer = CAST($1 AS text) AND id = ANY (CAST(CAST($2 AS text) AS bigint[]))
RETURNING consumer"""

_LETTER: Final = """\
letter.id::text, letter.channel, letter.key, letter.payload, letter.headers::text,
       pg_catalog.to_json(letter.created_at AT TIME ZONE 'UTC')::text"""

_REPLAYED: Final = """\
SELECT {letter}, letter.position FROM {schema}.dead_letters AS letter
 WHERE letter.consumer = CAST($1 AS text) AND letter.replay ORDER BY letter.id LIMIT 1"""

_DEAD: Final = """\
SELECT {letter}, letter.position, letter.attempts::text, letter.error,
       pg_catalog.to_json(letter.died_at AT TIME ZONE 'UTC')::text, letter.replay::text
  FROM {schema}.dead_letters AS letter
 WHERE letter.consumer = CAST($1 AS text) ORDER BY letter.id"""

_FORGET: Final = """\
DELETE FROM {schema}.dead_letters
 WHERE consumer = CAST($1 AS text) AND id = ANY (CAST(CAST($2 AS text) AS bigint[]))
RETURNING consumer"""

_REPLAY: Final = """\
UPDATE {schema}.dead_letters SET replay = true
 WHERE consumer = CAST($1 AS text) AND NOT replay
   AND ({all} OR id = ANY (CAST(CAST($2 AS text) AS bigint[])))
RETURNING id::text"""

_ALL: Final = """\
SELECT consumer.name, pg_catalog.to_json(consumer.channels)::text, consumer.position,
       pg_catalog.to_json(consumer.updated_at AT TIME ZONE 'UTC')::text,
       consumer.attempts::text, consumer.error,
       (SELECT pg_catalog.count(*) FROM {schema}.dead_letters AS letter
         WHERE letter.consumer = consumer.name)::text,
       EXISTS (SELECT 1 FROM pg_catalog.pg_locks AS lock
                WHERE lock.locktype = 'advisory' AND lock.granted
                  AND lock.database = (SELECT oid FROM pg_catalog.pg_database
                                        WHERE datname = pg_catalog.current_database())
                  AND lock.objsubid = 1
                  AND (lock.classid, lock.objid) = (
                        ({key} >> 32 & 4294967295)::oid, ({key} & 4294967295)::oid))::text
  FROM {schema}.consumers AS consumer ORDER BY consumer.name"""

_DROP: Final = "DELETE FROM {schema}.consumers WHERE name = CAST($1 AS text) RETURNING name"


_NOWHERE: Final = Instant(0, Snapshot(0))  # dead letters bring the cursors that they had


class Dropped(EventLogError):
    """There is no such consumer any more."""


class Entry(NamedTuple):
    """The row of a consumer, which is locked until the end of the transaction."""

    position: Position
    attempts: int
    failing: int | None
    """Which event has failed so often."""
    size: int | None
    """How many events to try at once; None for as many as are asked for."""
    wait: float
    """The seconds before the next attempt."""
    replays: bool


class DeadLetter(NamedTuple):
    """An event that a consumer has given up."""

    event: Event[str]
    attempts: int
    error: str
    died_at: datetime
    replay: bool
    """Whether it is about to be tried again."""


class ConsumerState(NamedTuple):
    """How a consumer is."""

    name: str
    channels: list[str]
    cursor: Cursor
    updated_at: datetime
    attempts: int
    """How often the next event has failed so far."""
    error: str | None
    """Why it failed last."""
    dead_letters: int
    active: bool
    """Whether some process is working on it."""


class Ledger:
    """The queries about one consumer."""

    def __init__(self, schema: str, name: str) -> None:
        self.schema = schema
        self.name = name
        self._quoted = quote(schema)

    @property
    def turn(self) -> str:
        """The key of the advisory lock of whoever works."""
        return _key(self.schema, literal(self.name))

    def try_turn(self) -> Script[bool]:
        """Become the one who works, if nobody is.

        From then on the server notices a client whose network is gone, and lets others work.
        """
        [(got,)] = yield Query(f"SELECT pg_catalog.pg_try_advisory_lock({self.turn})::text", ())
        if got == "true":
            yield Query(_NOTICE_DEATH, ())
        return got == "true"

    def end_turn(self) -> Script[None]:
        """Let others work; leaves the session as it was."""
        yield Query(_AS_BEFORE, ())
        yield Query(f"SELECT pg_catalog.pg_advisory_unlock({self.turn})::text", ())

    def enter(self, channels: Sequence[str], position: Position) -> Script[None]:
        """Make it, unless it is there."""
        parameters = (self.name, array(channels), encode(position))
        yield self._query(_ENTER, *parameters)

    def exists(self, channels: Sequence[str]) -> Script[bool]:
        """Whether it is there; if so, it goes on with these channels."""
        rows = yield self._query(_CHANNELS, self.name, array(channels))
        if rows and rows[0][0] != "true":
            yield self._query(_GO_ON_WITH, self.name, array(channels))
        return bool(rows)

    def take(self) -> Script[Entry]:
        """Lock its row, and read it.

        Raises:
            Dropped: If it is not there any more.
        """
        return self._read(" FOR UPDATE")

    def look(self) -> Script[Entry]:
        """Read its row as it is committed, and wait for nobody; otherwise as `take`."""
        return self._read("")

    def _read(self, lock: str) -> Script[Entry]:
        rows = yield self._query(_TAKE, self.name, lock=lock)
        if not rows:
            raise Dropped(f"the consumer {self.name!r} has been dropped")
        position, attempts, failing, size, wait, replays = rows[0]
        return Entry(
            decode(position or ""),
            int(attempts or 0),
            None if failing is None else int(failing),
            None if size is None else int(size),
            float(wait or 0),
            replays == "true",
        )

    def store(
        self,
        position: Position,
        *,
        attempts: int = 0,
        failing: int | None = None,
        size: int | None = None,
        error: str = "",
        wait: float = 0,
    ) -> Script[None]:
        """Write down how far it is."""
        parameters = (self.name, encode(position), str(attempts), error, str(wait))
        numbers = {"failing": failing, "size": size}
        parts = {name: "NULL" if each is None else str(each) for name, each in numbers.items()}
        yield self._query(_STORE, *parameters, **parts)

    def bury(self, event: Event[str], attempts: int, error: str) -> Script[None]:
        """Set an event aside."""
        headers = None if event.headers is NO_HEADERS else headers_text(event.headers)
        texts = array([event.channel, event.key, event.payload, headers])
        parameters = (self.name, texts, event.created_at.isoformat(), str(event.cursor), error)
        yield self._query(_BURY, *parameters, id=str(event.id), attempts=str(attempts))

    def replayed(self) -> Script[list[Event[str]]]:
        """The next of the dead letters that are to be tried again; alone, as others may fail."""
        rows = yield self._query(_REPLAYED, self.name, letter=_LETTER)
        return _letters(rows)

    def rebury(self, events: Sequence[Event[str]], error: str) -> Script[None]:
        """They have failed again."""
        yield self._query(_REBURY, self.name, _ids(event.id for event in events), error)

    def forget(self, ids: Sequence[int]) -> Script[int]:
        """Delete dead letters; how many."""
        rows = yield self._query(_FORGET, self.name, _ids(ids))
        return len(rows)

    def replay(self, ids: Sequence[int] | None) -> Script[int]:
        """Have dead letters tried again, or all; how many."""
        every = "true" if ids is None else "false"
        rows = yield self._query(_REPLAY, self.name, _ids(ids or ()), all=every)
        return len(rows)

    def tell(self) -> Script[None]:
        """Wake the one who works, of whichever process, once the transaction is committed."""
        channel = literal(log_channel(self.schema))
        yield Query(f"SELECT pg_catalog.pg_notify({channel}, '*')::text", ())

    def dead(self) -> Script[list[DeadLetter]]:
        """All dead letters."""
        rows = yield self._query(_DEAD, self.name, letter=_LETTER)
        events = _letters([row[:7] for row in rows])
        return [
            DeadLetter(event, int(row[7] or 0), row[8] or "", _time(row[9]), row[10] == "true")
            for event, row in zip(events, rows, strict=True)
        ]

    def drop(self) -> Script[bool]:
        """Forget the consumer, with its dead letters; whether there was one."""
        return bool((yield self._query(_DROP, self.name)))

    def _query(self, sql: str, *parameters: str, **parts: str) -> Query:
        return Query(sql.format(schema=self._quoted, **parts), parameters)


def consumers(schema: str) -> Script[list[ConsumerState]]:
    """All consumers of a log."""
    rows = yield Query(_ALL.format(schema=quote(schema), key=_key(schema, "consumer.name")), ())
    return [
        ConsumerState(
            name or "",
            json.loads(channels or "[]"),
            Cursor(position or ""),
            _time(updated),
            int(attempts or 0),
            error,
            int(letters or 0),
            active == "true",
        )
        for name, channels, position, updated, attempts, error, letters, active in rows
    ]


def _letters(rows: Rows) -> list[Event[str]]:
    cursors = [Cursor(row[6] or "") for row in rows]
    return [
        events_of([row[:6]], cursor.position, _NOWHERE)[0]._replace(cursor=cursor)
        for row, cursor in zip(rows, cursors, strict=True)
    ]


def _ids(ids: Any) -> str:
    return "{" + ",".join(str(int(each)) for each in ids) + "}"


def _key(schema: str, name: str) -> str:
    # All 64 bits: of two names with the same key, one would stand by for ever.
    seed = f"pg_catalog.hashtext({literal('pgnotifybus consumer ' + schema)})"
    return f"pg_catalog.hashtextextended({name}, {seed})"


def _time(text: str | None) -> datetime:
    return datetime.fromisoformat((text or "")[1:-1]).replace(tzinfo=UTC)
