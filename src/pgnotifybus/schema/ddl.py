"""The statements that make what the library keeps in the database, as text. Layer: schema.

Running them twice does no harm, but takes locks: whoever can look first, should.
"""

from __future__ import annotations

from typing import Final

from pgnotifybus.core.names import MAX_CHANNEL_BYTES, literal, log_channel, quote
from pgnotifybus.core.position import TIMELINE_BITS

VERSION: Final = 2
"""The version of what this library installs. 1 had no event log."""

RELATIONS: Final = (
    "payloads",
    "payloads_expires_at",
    "log",
    "events",
    "events_era_xid",
    "segments",
    "consumers",
    "dead_letters",
)
"""Every table and index, but for those that belong to a constraint."""

TABLES: Final = ("payloads", "events", "log", "segments", "dead_letters", "consumers")

FUNCTIONS: Final = ("era", "wake", "append", "append_many")

SIGNATURES: Final = {
    "append": "append(text, text, text, jsonb)",
    "append_many": "append_many(text[], text[], text[], jsonb[])",
    "wake": "wake(text)",
    "era": "era()",
}
"""In the order in which they can be dropped; `events` stands between the last two."""

CREATE_SCHEMA: Final = "CREATE SCHEMA IF NOT EXISTS {schema};\n\n"

_PAYLOADS: Final = """\
-- Payloads that are too large for a notification, which then carries only the id.
CREATE TABLE IF NOT EXISTS {schema}.payloads (
  id uuid PRIMARY KEY,
  channel text NOT NULL,
  payload text NOT NULL,
  expires_at timestamptz NOT NULL
);
CREATE INDEX IF NOT EXISTS payloads_expires_at ON {schema}.payloads (expires_at);
ALTER TABLE {schema}.payloads
  ALTER COLUMN expires_at SET DEFAULT pg_catalog.clock_timestamp() + interval '{seconds} seconds';

"""

# The era is worked out once a session, which cannot outlive the server that it is about: a failover
# ends it, and one on a standby cannot write before.
_ERA: Final = """\
-- Which server writes: its identity in the upper bits, its timeline in the lower ones.
CREATE OR REPLACE FUNCTION {schema}.era() RETURNS bigint LANGUAGE plpgsql AS $function$
DECLARE
  known text := pg_catalog.current_setting('pgnotifybus.era', true);
  here bigint;
BEGIN
  IF known <> '' THEN
    RETURN known::bigint;
  END IF;
  SELECT ((pg_catalog.hashtextextended(
             system.system_identifier::text || ' ' || database.oid::text, 0)
           & 9223372036854775807) >> {bits} << {bits})
         | ('x' || pg_catalog.substr(
             pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8))::bit(32)::bigint
    INTO STRICT here
    FROM pg_catalog.pg_control_system() AS system, pg_catalog.pg_database AS database
   WHERE database.datname = pg_catalog.current_database();
  PERFORM pg_catalog.set_config('pgnotifybus.era', here::text, false);
  RETURN here;
END
$function$;

"""

# The transaction id is given before the id, so that nobody who started later has a smaller one.
# No CHECK: the server prepares it anew for each statement, which costs more than the index does.
_EVENTS: Final = """\
-- The event log.
CREATE TABLE IF NOT EXISTS {schema}.events (
  xid xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(),
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  era bigint NOT NULL,
  created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
  channel text NOT NULL,
  key text,
  payload text NOT NULL,
  headers jsonb
);
ALTER TABLE {schema}.events ALTER COLUMN era SET DEFAULT {era};
CREATE INDEX IF NOT EXISTS events_era_xid ON {schema}.events (era, xid);

-- One row: which log this is, how long events are kept, and what has been deleted already.
CREATE TABLE IF NOT EXISTS {schema}.log (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  epoch uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
  created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
  keep_seconds bigint DEFAULT {keep_seconds} CHECK (keep_seconds > 0),
  keep_bytes bigint CHECK (keep_bytes > 0),
  floor_era bigint,
  floor pg_snapshot,
  floor_id bigint NOT NULL DEFAULT 0
);
INSERT INTO {schema}.log DEFAULT VALUES ON CONFLICT DO NOTHING;

-- What was written from one look at the log to the next; retention deletes it segment by segment.
CREATE TABLE IF NOT EXISTS {schema}.segments (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  era bigint NOT NULL,
  snapshot pg_snapshot NOT NULL,
  closed_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
  events bigint NOT NULL,
  bytes bigint NOT NULL,
  last_id bigint NOT NULL
);

-- Cursors with a name.
CREATE TABLE IF NOT EXISTS {schema}.consumers (
  name text PRIMARY KEY,
  channels text[] NOT NULL,
  position text NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
  attempts integer NOT NULL DEFAULT 0,
  failing bigint,
  size integer,
  error text,
  retry_at timestamptz
);

-- Events that a consumer has given up.
CREATE TABLE IF NOT EXISTS {schema}.dead_letters (
  consumer text NOT NULL REFERENCES {schema}.consumers ON DELETE CASCADE,
  id bigint NOT NULL,
  channel text NOT NULL,
  key text,
  payload text NOT NULL,
  headers jsonb,
  created_at timestamptz NOT NULL,
  position text NOT NULL,
  attempts integer NOT NULL,
  error text NOT NULL,
  died_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
  replay boolean NOT NULL DEFAULT false,
  PRIMARY KEY (consumer, id)
);

"""

# Without a call of PL/pgSQL for each row, where the session knows it already.
_THIS_ERA: Final = """\
coalesce(nullif(pg_catalog.current_setting('pgnotifybus.era', true), '')::bigint, {schema}.era())"""

# Both locks in one expression: between two statements the session could be interrupted, and keep
# the lock. CASE, as the order in which AND looks at its arguments is not promised.
_WAKE: Final = """\
-- Tell those who follow, unless somebody holds the lock who looks for new events by itself.
CREATE OR REPLACE FUNCTION {schema}.wake(channel text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql AS $function$
BEGIN
  {tell}
END
$function$;

"""

_TELL: Final = """\
IF pg_catalog.current_setting('pgnotifybus.wake', true) IS DISTINCT FROM 'off'
     AND (CASE WHEN pg_catalog.pg_try_advisory_lock_shared({lock})
               THEN pg_catalog.pg_advisory_unlock_shared({lock}) ELSE false END)
  THEN
    PERFORM pg_catalog.pg_notify({wake}, coalesce('+' || $1, '*'));
  END IF;"""

_APPEND: Final = """\
-- Add an event, in the caller's transaction; answers its id.
CREATE OR REPLACE FUNCTION {schema}.append(
  channel text, payload text, key text DEFAULT NULL, headers jsonb DEFAULT NULL
) RETURNS bigint LANGUAGE plpgsql AS $function$
DECLARE
  new_id bigint;
BEGIN
  IF pg_catalog.octet_length($1) NOT BETWEEN 1 AND {channel_limit} THEN
    RAISE EXCEPTION 'the channel has % bytes, and not 1 to {channel_limit}',
      pg_catalog.octet_length($1) USING ERRCODE = 'check_violation';
  END IF;
  IF pg_catalog.octet_length($2) > {limit} THEN
    RAISE EXCEPTION 'the payload has % bytes, and {limit} is the limit', pg_catalog.octet_length($2)
      USING ERRCODE = 'string_data_right_truncation';
  END IF;
  INSERT INTO {schema}.events (channel, payload, key, headers)
  VALUES ($1, $2, $3, $4) RETURNING events.id INTO new_id;
  {tell}
  RETURN new_id;
END
$function$;

-- Add many, in their order; answers their ids.
CREATE OR REPLACE FUNCTION {schema}.append_many(
  channels text[], payloads text[], keys text[], headers jsonb[]
) RETURNS bigint[] LANGUAGE plpgsql AS $function$
DECLARE
  new_ids bigint[];
  longest integer := (SELECT pg_catalog.max(pg_catalog.octet_length(one.payload))
                        FROM pg_catalog.unnest($2) AS one (payload));
  odd integer := (SELECT pg_catalog.min(pg_catalog.octet_length(one.channel))
                    FROM pg_catalog.unnest($1) AS one (channel)
                   WHERE pg_catalog.octet_length(one.channel) NOT BETWEEN 1 AND {channel_limit});
BEGIN
  IF odd IS NOT NULL THEN
    RAISE EXCEPTION 'a channel has % bytes, and not 1 to {channel_limit}', odd
      USING ERRCODE = 'check_violation';
  END IF;
  IF longest > {limit} THEN
    RAISE EXCEPTION 'a payload has % bytes, and {limit} is the limit', longest
      USING ERRCODE = 'string_data_right_truncation';
  END IF;
  WITH added AS (
    INSERT INTO {schema}.events (channel, payload, key, headers)
    SELECT one.channel, one.payload, one.key, one.headers
      FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2),
                      pg_catalog.unnest($3), pg_catalog.unnest($4))
           WITH ORDINALITY AS one (channel, payload, key, headers, number)
     ORDER BY one.number
    RETURNING events.id
  )
  SELECT pg_catalog.array_agg(added.id ORDER BY added.id) INTO new_ids FROM added;
  PERFORM {schema}.wake(one.channel)
    FROM (SELECT DISTINCT pg_catalog.unnest($1) AS channel) AS one;
  RETURN new_ids;
END
$function$;

"""

_COMMENT: Final = "COMMENT ON SCHEMA {schema} IS '{remark}';\n"

KEEP_SECONDS: Final = 7 * 86_400
"""How long events are kept where nothing else was said: a week."""


def create(schema: str, *, remark: str, payload_seconds: int, event_bytes: int) -> str:
    """Statements that make everything in a schema that is there.

    Args:
        schema: The name of the schema.
        remark: The comment on it.
        payload_seconds: How long a payload of the spill table is kept.
        event_bytes: The largest payload of an event.
    """
    tag = "function"
    while f"${tag}$" in schema:
        tag += "_"
    lock = awake_lock(schema)
    wake = literal(log_channel(schema))
    parts = _PAYLOADS + _ERA + _EVENTS + _WAKE + _APPEND + _COMMENT
    return parts.replace("$function$", f"${tag}$").format(
        schema=quote(schema),
        seconds=payload_seconds,
        keep_seconds=KEEP_SECONDS,
        limit=event_bytes,
        channel_limit=MAX_CHANNEL_BYTES,
        bits=TIMELINE_BITS,
        era=_THIS_ERA.format(schema=quote(schema)),
        tell=_TELL.format(lock=lock, wake=wake),
        remark=remark,
    )


def drop(schema: str) -> str:
    """Statements that drop what `create` has made, and what is left of it, but not the schema."""
    name = quote(schema)
    functions = [f"DROP FUNCTION IF EXISTS {name}.{each}; " for each in SIGNATURES.values()]
    tables = [f"DROP TABLE IF EXISTS {name}.{each}; " for each in TABLES]
    return "".join([*functions[:-1], *tables, functions[-1]]) + f"COMMENT ON SCHEMA {name} IS NULL"


def awake_lock(schema: str) -> str:
    """The arguments of the advisory lock of whoever looks for new events by itself."""
    key = literal(schema)
    return f"pg_catalog.hashtext('pgnotifybus awake'), pg_catalog.hashtext({key})"
