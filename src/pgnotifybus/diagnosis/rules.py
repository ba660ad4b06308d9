"""From what the server has answered to what is well, and what is not. Layer: diagnosis. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Final

from pgnotifybus.core.health import QUEUE_WARNING
from pgnotifybus.diagnosis.finding import Finding
from pgnotifybus.links.base import Rows

# Source: https://www.postgresql.org/support/versioning/
END_OF_LIFE: Final = {
    12: date(2024, 11, 21),
    13: date(2025, 11, 13),
    14: date(2026, 11, 12),
    15: date(2027, 11, 11),
    16: date(2028, 11, 9),
    17: date(2029, 11, 8),
    18: date(2030, 11, 14),
}
_OLDEST: Final = 13
"""With functions for transaction ids of 64 bits, which the event log needs."""
_MENDED: Final = {14: 21, 15: 16, 16: 12, 17: 8, 18: 2}
"""The minor version of each branch, of February 2026, that mends two bugs of LISTEN and NOTIFY.
Source: https://www.postgresql.org/docs/release/18.2/"""
_MANY_LISTENERS: Final = 50
_SLOW_SECONDS: Final = 1.0
_WIDE_ROW: Final = 2_000
"""Bytes: where the average is a quarter of the limit, some row is over it."""


def server(rows: Rows, today: date) -> Iterator[Finding]:
    """Its version, encoding and role."""
    [(number, version, in_recovery, encoding)] = rows
    major = int(number or 0) // 10_000
    end = END_OF_LIFE.get(major)
    if major < _OLDEST:
        yield Finding(
            "server-version",
            "problem",
            f"PostgreSQL {version}",
            "The event log needs functions that came with 13.",
            "Upgrade to a version that is supported: https://www.postgresql.org/support/versioning/",
        )
    elif end is not None and today > end:
        yield Finding(
            "server-version",
            "warning",
            f"PostgreSQL {version}, of a branch that has not been supported since {end}",
            "Bugs of LISTEN and NOTIFY that are found from then on are not mended there.",
            "Upgrade to a version that is supported: https://www.postgresql.org/support/versioning/",
        )
    else:
        yield Finding("server-version", "ok", f"PostgreSQL {version}")
    yield _known_bugs(major, int(number or 0) % 10_000)
    if in_recovery == "true":
        yield Finding(
            "standby",
            "problem",
            "the server is a standby",
            "A standby takes neither LISTEN nor NOTIFY.",
            "Name all hosts in the DSN, host=one,two: then the primary is found, also after it has "
            "moved",
        )
    else:
        yield Finding("standby", "ok", "the server is a primary")
    if encoding == "UTF8":
        yield Finding("encoding", "ok", "the database is in UTF8")
    else:
        yield Finding(
            "encoding",
            "note" if encoding != "SQL_ASCII" else "warning",
            f"the database is in {encoding}",
            "What it cannot express is refused when it is sent; in SQL_ASCII, anything may arrive.",
            "Send ASCII, or use a database in UTF8",
        )


def _known_bugs(major: int, minor: int) -> Finding:
    mended = _MENDED.get(major, 0)
    if minor >= mended and (mended or major > max(_MENDED)):
        return Finding("known-bugs", "ok", "no bug of LISTEN and NOTIFY is known of this version")
    return Finding(
        "known-bugs",
        "warning",
        "VACUUM may delete what the server needs to read queued notifications (could not access "
        "status of transaction), and a listener that fails to read one goes on without it",
        "Notifications are lost without a trace, or no session can LISTEN any more.",
        f"Upgrade to {major}.{mended} or later: a restart"
        if mended
        else "Upgrade to 18.2 or later",
    )


def connection(rows: Rows) -> Iterator[Finding]:
    """Whether somebody could listen in."""
    [(ssl, version, local)] = rows
    if ssl == "true":
        yield Finding("tls", "ok", f"the connection is encrypted ({version})")
    elif local == "true":
        yield Finding("tls", "ok", "the connection does not leave this machine")
    else:
        yield Finding(
            "tls",
            "warning",
            "the connection is not encrypted",
            "Whoever is on the way can read payloads, and send others.",
            "Use sslmode=verify-full; without a certificate of the server at least sslmode=require",
        )


def timeouts(rows: Rows) -> Iterator[Finding]:
    """Settings that end idle sessions."""
    if not rows:
        yield Finding("session-timeouts", "ok", "no timeout of sessions is set")
        return
    named = ", ".join(f"{name} is {value}" for name, value in rows)
    yield Finding(
        "session-timeouts",
        "note",
        named,
        "They end a session that listens, as that is idle by trade. The bus turns them off for its "
        "own; other listeners have to.",
        "For other listeners: ALTER ROLE ... SET idle_session_timeout = 0",
    )


def rights(rows: Rows) -> Iterator[Finding]:
    """What the role may ask."""
    [(may_ask, sees_all)] = rows
    if may_ask == "true":
        yield Finding("probe-rights", "ok", "the role may ask what its session listens to")
    else:
        yield Finding(
            "probe-rights",
            "warning",
            "the role may not execute pg_listening_channels()",
            "A probe can tell that the server answers, but not that it still listens for us.",
            "GRANT EXECUTE ON FUNCTION pg_listening_channels() to the role",
        )
    if sees_all != "true":
        yield Finding(
            "activity-rights",
            "note",
            "the role sees little of the sessions of others",
            "Slow listeners and waiting commits of other roles are not found.",
            "GRANT pg_read_all_stats to the role, or run this as a superuser",
        )


def queue(rows: Rows) -> Iterator[Finding]:
    """How full it is, and how large."""
    [(usage, pages, block)] = rows
    share = float(usage or 0)
    size = int(pages or 1_048_576) * int(block or 8192)
    of = f"{share:.1%} of {_bytes(size)}"
    why = (
        "Notifications wait there until the slowest session that listens has read them, whatever "
        "it listens to. Once it is full, every transaction that notifies fails (54000)."
    )
    if share >= QUEUE_WARNING:
        yield Finding(
            "queue-usage",
            "problem",
            f"the queue is full to {of}",
            why,
            "End what is stuck; see below",
        )
    elif share > 0.05:
        yield Finding(
            "queue-usage", "warning", f"the queue is full to {of}", why, "See stuck-sessions"
        )
    else:
        yield Finding("queue-usage", "ok", f"the queue is full to {of}")


def stuck(rows: Rows) -> Iterator[Finding]:
    """Who may keep the queue from being emptied."""
    if not rows:
        yield Finding("stuck-sessions", "ok", "no session is stuck for a minute or longer")
    for pid, application, database, state, seconds, wait in rows:
        doing = "does not read what it is sent" if wait == "ClientWrite" else f"is {state}"
        yield Finding(
            "stuck-sessions",
            "warning",
            f"PID {pid} ({application or 'no application_name'}, database {database}) {doing} for "
            f"{int(seconds or 0):,} s",
            "If it listens, it holds the queue for all: a session reads notifications only between "
            "transactions. Which sessions listen, PostgreSQL does not say.",
            f"End its transaction, or the session: SELECT pg_terminate_backend({pid})",
        )


def listeners(rows: Rows, number: int) -> Iterator[Finding]:
    """How many there are, and what they cost."""
    here = sum(row[7] == "true" for row in rows)
    seen = f"{here} in this database, {len(rows)} in all, as far as they can be told"
    if number >= 190_000 or here <= _MANY_LISTENERS:
        yield Finding("listeners", "ok", seen)
    else:
        yield Finding(
            "listeners",
            "warning",
            seen,
            "Before PostgreSQL 19, each commit that notifies wakes every session that listens in "
            "the database, to whatever.",
            "One listening connection a process is enough: share one bus",
        )


def waiting(rows: Rows) -> Iterator[Finding]:
    """Commits that queue for the lock of NOTIFY."""
    [(count,)] = rows
    if count == "0":
        yield Finding("notify-lock", "ok", "no commit waits for the lock of NOTIFY")
        return
    yield Finding(
        "notify-lock",
        "warning",
        f"{count} commit{' waits' if count == '1' else 's wait'} for the lock of NOTIFY at this "
        "moment",
        "One transaction of the whole server at a time commits with a notification.",
        "Send many in one commit (bus.publisher()), or use the event log, whose writers keep quiet "
        "under load",
    )


def triggers(rows: Rows, listeners: int) -> Iterator[Finding]:
    """Those that notify for each row, or send it whole, or to nobody.

    Args:
        rows: Triggers that notify.
        listeners: How many sessions listen in the database, as far as they can be told.
    """
    if rows and not listeners:
        named = ", ".join(f"{row[1]} on {row[0]}" for row in rows)
        yield Finding(
            "unheard-triggers",
            "note",
            f"triggers notify, and no session listens in this database: {named}",
            "Each of their commits takes the lock of NOTIFY all the same, one at a time.",
            "Start who should listen, or remove them: `pgnotifybus trigger remove TABLE`",
        )
    yield from _whole_rows(rows)
    each_row = [(row[0], row[1]) for row in rows if row[2] == "true"]
    if not each_row:
        yield Finding("row-triggers", "ok", "no trigger notifies for each row")
        return
    named = ", ".join(f"{trigger} on {table}" for table, trigger in each_row)
    yield Finding(
        "row-triggers",
        "warning",
        f"triggers that notify for each row: {named}",
        "A statement that changes 10,000 rows sends 10,000 notifications.",
        "`pgnotifybus trigger install TABLE --channel NAME` makes one that sends one for each "
        "statement",
    )


def _whole_rows(rows: Rows) -> Iterator[Finding]:
    """Those whose payloads grow with the rows, up to the limit."""
    found: list[str] = []
    near = False
    for table, trigger, _, whole, width, has_long in rows:
        if whole != "true":
            continue
        sizes = [f"{int(width):,} bytes on average"] if width else []
        sizes += ["some over 2,000"] if has_long == "true" else []
        found.append(f"{trigger} on {table}" + (f" ({', '.join(sizes)})" if sizes else ""))
        near |= has_long == "true" or int(width or 0) >= _WIDE_ROW
    if found:
        yield Finding(
            "whole-rows",
            "warning" if near else "note",
            f"triggers send whole rows: {', '.join(found)}",
            "A row of more than 7,999 bytes as text cannot be written: the notification fails, and "
            "the statement with it.",
            "Send the key: `pgnotifybus trigger install TABLE --channel NAME` makes one that does",
        )


def spill(rows: Rows) -> Iterator[Finding]:
    """The table for large payloads."""
    [(count, largest, late)] = rows
    if int(late or 0):
        yield Finding(
            "spill-table",
            "warning",
            f"{int(late or 0):,} of {int(count or 0):,} large payloads should have been deleted",
            "A bus that receives large payloads deletes the old ones; here none does, or none may.",
            "`pgnotifybus schema prune`, from cron for instance",
        )
        return
    seen = f"{int(count or 0):,} large payloads"
    if int(count or 0):
        seen += f", the largest of {int(largest or 0):,} bytes"
    yield Finding("spill-table", "ok", seen)


def log(rows: Rows) -> Iterator[Finding]:
    """The consumers of the event log."""
    [(count, failing, names, dead)] = rows
    if int(failing or 0) or int(dead or 0):
        yield Finding(
            "consumers",
            "warning",
            f"{failing} of {count} consumers are failing"
            + (f" ({names})" if names else "")
            + f", and there are {dead} dead letters",
            "An event that fails is tried again, and set aside in the end, without effect.",
            "`pgnotifybus log consumers` says why; `pgnotifybus log consumers dead NAME` what",
        )
    else:
        yield Finding("consumers", "ok", f"{count} consumers, none of them failing")


def pooler(found: bool) -> Finding:
    """Whether there is one that delivers."""
    if found:
        return Finding(
            "pooler",
            "note",
            "there is a pooler, and it delivers notifications",
            "In another mode than session pooling it would swallow them.",
            "Leave it in session mode for listeners, or give the bus direct_dsn",
        )
    return Finding("pooler", "ok", "no pooler was found")


def round_trip(seconds: float | None, patience: float) -> Finding:
    """How long a notification takes; None if it did not come in time."""
    if seconds is None:
        return Finding(
            "round-trip",
            "problem",
            f"a notification did not arrive within {patience:g} s",
            "Whoever listens hears nothing.",
            "Look at notify-lock and queue-usage: a commit that hangs, or a session that holds the "
            "queue",
        )
    seen = f"a notification arrives after {seconds * 1000:.1f} ms"
    if seconds < _SLOW_SECONDS:
        return Finding("round-trip", "ok", seen)
    return Finding(
        "round-trip",
        "warning",
        seen,
        "It is sent, committed and delivered: a slow disk, network or server, or many commits that "
        "notify.",
        "Look at the disk (synchronous commits) and at notify-lock",
    )


def _bytes(size: int) -> str:
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size / 1024:.3g} KiB"
