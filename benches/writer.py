"""The load: a process of its own, so that it does not share the receiver's interpreter.

Usage: python -m benches.writer DSN bursts COUNT BURST | python -m benches.writer DSN singles COUNT
It waits for a line on its input before it writes, and prints a line when it has written.
"""

from __future__ import annotations

import sys

import psycopg

from benches.designs import CHANNEL, now

PAYLOAD_BYTES = 100


def main(dsn: str, kind: str, count: int, burst: int = 1) -> None:
    """Write, when told to."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off")
        for _ in sys.stdin:
            if kind == "bursts":
                for first in range(0, count, burst):
                    connection.execute(
                        "SELECT count(pg_notify(%s, rpad(i::text, %s, '.')))"
                        " FROM generate_series(%s::int, %s) AS i",
                        (CHANNEL, PAYLOAD_BYTES, first, first + burst - 1),
                    )
            elif kind == "singles":
                for number in range(count):
                    payload = f"{number}".ljust(PAYLOAD_BYTES, ".")
                    connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, payload))
            else:  # one commit with the time in it, for latency
                connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, repr(now())))
            sys.stdout.write("written\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *(int(argument) for argument in sys.argv[3:]))
