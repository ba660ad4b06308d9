"""The questions to the server. Layer: diagnosis.

Each is one statement, answered alone: what one may not see, or a version that does not know it,
leaves the others as they are. All columns are text.
"""

from __future__ import annotations

from typing import Final

SERVER: Final = """\
SELECT pg_catalog.current_setting('server_version_num'),
       pg_catalog.current_setting('server_version'),
       pg_catalog.pg_is_in_recovery()::text,
       pg_catalog.pg_encoding_to_char(encoding)
  FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()"""

CONNECTION: Final = """\
SELECT (SELECT ssl.ssl::text FROM pg_catalog.pg_stat_ssl AS ssl
         WHERE ssl.pid = pg_catalog.pg_backend_pid()),
       (SELECT ssl.version FROM pg_catalog.pg_stat_ssl AS ssl
         WHERE ssl.pid = pg_catalog.pg_backend_pid()),
       (pg_catalog.inet_client_addr() IS NULL
        OR pg_catalog.inet_client_addr() << '127.0.0.0/8'
        OR pg_catalog.inet_client_addr() = '::1')::text"""

# What role, database or DSN have said: for itself, a link sets all of them to 0.
TIMEOUTS: Final = """\
SELECT name, reset_val || coalesce(' ' || unit, '') FROM pg_catalog.pg_settings
 WHERE name IN ('idle_session_timeout', 'idle_in_transaction_session_timeout',
                'statement_timeout', 'transaction_timeout')
   AND reset_val <> '0' ORDER BY name"""

RIGHTS: Final = """\
SELECT pg_catalog.has_function_privilege('pg_catalog.pg_listening_channels()', 'EXECUTE')::text,
       pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')::text"""

QUEUE: Final = """\
SELECT pg_catalog.pg_notification_queue_usage()::text,
       pg_catalog.current_setting('max_notify_queue_pages', true),
       pg_catalog.current_setting('block_size')"""

# PostgreSQL tells nobody which sessions listen, nor how far they have read: these are those that
# say so of themselves, and those that look as if they could not read.
LISTENERS: Final = """\
SELECT pid::text, coalesce(application_name, ''), coalesce(datname, ''), coalesce(state, ''),
       coalesce(extract(epoch FROM pg_catalog.clock_timestamp() - state_change), 0)::bigint::text,
       coalesce(extract(epoch FROM pg_catalog.clock_timestamp() - xact_start), 0)::bigint::text,
       coalesce(wait_event, ''), (datname = pg_catalog.current_database())::text
  FROM pg_catalog.pg_stat_activity
 WHERE backend_type = 'client backend' AND pid <> pg_catalog.pg_backend_pid()
   AND (application_name LIKE 'pgnotifybus listener%' OR query ILIKE 'LISTEN %')
 ORDER BY state_change"""

STUCK: Final = """\
SELECT pid::text, coalesce(application_name, ''), coalesce(datname, ''), coalesce(state, ''),
       extract(epoch FROM pg_catalog.clock_timestamp()
                          - coalesce(xact_start, state_change))::bigint::text,
       coalesce(wait_event, '')
  FROM pg_catalog.pg_stat_activity
 WHERE backend_type = 'client backend' AND pid <> pg_catalog.pg_backend_pid()
   AND (state LIKE 'idle in transaction%' OR wait_event = 'ClientWrite')
   AND pg_catalog.clock_timestamp() - coalesce(xact_start, state_change) > interval '1 minute'
 ORDER BY coalesce(xact_start, state_change) LIMIT 5"""

# What NOTIFY locks before its commit: "database 0", in all databases the same (async.c).
WAITING: Final = """\
SELECT pg_catalog.count(*)::text FROM pg_catalog.pg_locks
 WHERE locktype = 'object' AND classid = 'pg_catalog.pg_database'::regclass AND objid = 0
   AND NOT granted"""

# Which of them send NEW or OLD whole, and how large rows are, as far as that can be known without
# reading them: their average width when the table was last analyzed, and whether any has a value
# of over some 2,000 bytes, which PostgreSQL keeps in a table beside.
TRIGGERS: Final = """\
SELECT trigger.tgrelid::regclass::text, trigger.tgname::text, (trigger.tgtype & 1 = 1)::text,
       (function.prosrc ~* '\\m(row_to_json|to_jsonb?|hstore)\\s*\\(\\s*(new|old)\\s*[,)]'
        OR function.prosrc ~* '\\m(new|old)(\\.\\*\\))?\\s*::\\s*text')::text,
       (SELECT pg_catalog.sum(width.avg_width)::text FROM pg_catalog.pg_stats AS width
         WHERE width.schemaname = space.nspname AND width.tablename = class.relname
           AND NOT width.inherited),
       (class.reltoastrelid <> 0
        AND pg_catalog.pg_relation_size(class.reltoastrelid) > 0)::text
  FROM pg_catalog.pg_trigger AS trigger
  JOIN pg_catalog.pg_proc AS function ON function.oid = trigger.tgfoid
  JOIN pg_catalog.pg_class AS class ON class.oid = trigger.tgrelid
  JOIN pg_catalog.pg_namespace AS space ON space.oid = class.relnamespace
 WHERE NOT trigger.tgisinternal AND trigger.tgenabled <> 'D'
   AND function.prosrc ~* '\\m(pg_notify|notify)\\M'
 ORDER BY 3 DESC, 1, 2 LIMIT 20"""

SPILL: Final = """\
SELECT pg_catalog.count(*)::text,
       coalesce(pg_catalog.max(pg_catalog.octet_length(payload)), 0)::text,
       pg_catalog.count(*) FILTER (WHERE expires_at < pg_catalog.now() - interval '1 hour')::text
  FROM {schema}.payloads"""

LOG: Final = """\
SELECT pg_catalog.count(*)::text,
       pg_catalog.count(*) FILTER (WHERE attempts > 0)::text,
       coalesce(pg_catalog.string_agg(name, ', ' ORDER BY name)
                FILTER (WHERE attempts > 0), ''),
       (SELECT pg_catalog.count(*) FROM {schema}.dead_letters)::text
  FROM {schema}.consumers"""

AWAKE: Final = """\
SELECT pg_catalog.count(*)::text FROM pg_catalog.pg_locks
 WHERE locktype = 'advisory' AND granted AND mode = 'ExclusiveLock' AND objsubid = 2
   AND database = (SELECT oid FROM pg_catalog.pg_database
                    WHERE datname = pg_catalog.current_database())
   AND classid = (pg_catalog.hashtext('pgnotifybus awake')::bigint & 4294967295)::oid
   AND objid = (pg_catalog.hashtext({schema})::bigint & 4294967295)::oid"""
