"""The faults."""

from __future__ import annotations

from typing import Final

from chaos import between, network, process, servers
from chaos.case import Case

_STANDBY: Final = {"hot_standby": "on"}
_STREAMING: Final = {"wal_level": "replica", "max_prepared_transactions": "4"}
_SMALL_QUEUE: Final = {"max_notify_queue_pages": "64"}

CASES: Final[dict[str, Case]] = {
    "terminated": Case("the backend is terminated", servers.terminate),
    "restarted": Case("the server is restarted, fast", servers.doing("restart", "fast")),
    "restarted at once": Case(
        "the server is restarted, immediate", servers.doing("restart", "immediate")
    ),
    "crashed": Case(
        "the server is killed (SIGKILL) and recovers", servers.doing("kill"), servers.doing("start")
    ),
    "stopped": Case(
        "the server is stopped (SIGSTOP) for half a minute, and goes on",
        servers.doing("pause"),
        servers.doing("resume"),
        noticed_by="probe",
        meanwhile=network.tried_in_vain_twice,
    ),
    "black hole, idle": Case(
        "the network swallows everything, nothing is sent",
        network.doing("stall"),
        network.reset_and_heal,
        noticed_by="probe",
        quiet=True,
    ),
    "black hole": Case(
        "the network swallows everything, under traffic",
        network.doing("stall"),
        network.reset_and_heal,
        noticed_by="probe",
    ),
    "black hole, up": Case(
        "the network swallows what goes to the server, nothing is sent",
        network.doing("stall", "up"),
        network.reset_and_heal,
        noticed_by="probe",
        quiet=True,
    ),
    "black hole, probe in flight": Case(
        "the network swallows the answer to a probe",
        network.stall_an_answer,
        network.reset_and_heal,
        noticed_by="probe",
        quiet=True,
    ),
    "black hole, LISTEN": Case(
        "the network swallows the answer to a LISTEN",
        network.stall_a_listen,
        network.reset_and_heal,
        noticed_by="probe",
        afterwards=network.wish_is_granted,
    ),
    "black hole, connecting": Case(
        "the connection is reset, and the next attempts are swallowed",
        network.lose_it_and_stall,
        network.reset_and_heal,
        meanwhile=network.tried_in_vain,
    ),
    "black hole, TLS handshake": Case(
        "the connection is reset, and the next TLS handshake is swallowed",
        network.stall_the_handshake,
        network.reset_and_heal,
        prepare=network.through_tls,
        meanwhile=network.tried_in_vain,
    ),
    "black hole, TLS": Case(
        "the network swallows everything, through TLS with a private CA",
        network.doing("stall"),
        network.reset_and_heal,
        prepare=network.through_tls,
        noticed_by="probe",
    ),
    "reset": Case("the connection is reset (RST)", network.doing("reset")),
    "closed": Case("the connection is closed (FIN)", network.doing("cut")),
    "half-closed, down": Case(
        "the server's side is closed (FIN one way)", network.doing("half_close")
    ),
    "half-closed, up": Case(
        "the client's side is closed on the way (FIN one way)", network.doing("half_close", "up")
    ),
    "kept open": Case(
        "a proxy keeps the client's side open, and the server's is gone",
        network.doing("close_server_side"),
        network.reset_and_heal,
        noticed_by="probe",
    ),
    "drips": Case(
        "the network carries one byte a second",
        network.doing("drip", 1),
        network.reset_and_heal,
        noticed_by="probe",
    ),
    "refused": Case(
        "connections are reset, and refused",
        network.refuse,
        network.heal,
        meanwhile=network.tried_in_vain,
    ),
    "another address": Case(
        "the name of the server means another address",
        network.leave_the_address,
        network.name_another,
        prepare=network.by_name,
        meanwhile=network.tried_in_vain,
    ),
    "another password": Case(
        "the password has changed",
        servers.change_the_password,
        servers.tell_the_password,
        prepare=servers.as_somebody,
        meanwhile=network.tried_in_vain,
    ),
    "too many connections": Case(
        "there are too many connections (53300)",
        servers.let_nobody_in,
        servers.let_them_in,
        prepare=servers.as_somebody,
        meanwhile=network.tried_in_vain,
    ),
    "rejected": Case(
        "pg_hba.conf rejects the role",
        servers.reject,
        servers.accept,
        prepare=servers.as_somebody,
        meanwhile=network.tried_in_vain,
    ),
    "database dropped": Case(
        "the database is dropped, and made again",
        servers.drop_the_database,
        servers.create_the_database,
        meanwhile=network.tried_in_vain,
    ),
    "demoted": Case(
        "the primary becomes a standby, and is promoted",
        servers.become_a_standby,
        servers.promote,
        settings=_STANDBY,
        meanwhile=servers.seen_to_be_a_standby,
        says=("standby",),
    ),
    "failed over": Case(
        "the primary ends, and a standby that has streamed from it is promoted",
        servers.doing("stop"),
        servers.promote_the_other,
        prepare=servers.with_a_standby,
        settings=_STREAMING,
        meanwhile=network.tried_in_vain,
        says=("standby", "down"),  # which of them depends on which host was tried last
    ),
    "queue full": Case(
        "the notification queue is filled until nobody can commit (54000), and emptied",
        servers.fill_the_queue,
        settings=_SMALL_QUEUE,
        noticed_by="nobody",
    ),
    "pooler reset": Case(
        "the way to PgBouncer in session mode is reset",
        network.doing("reset"),
        prepare=between.through_sessions,
        needs_pgbouncer=True,
    ),
    "pooler swallows": Case(
        "PgBouncer is changed to transaction mode, which swallows LISTEN, and back",
        between.share_sessions,
        between.keep_sessions,
        prepare=between.through_sessions,
        needs_pgbouncer=True,
        meanwhile=between.seen_to_be_shared,
        says=("behind a pooler",),
    ),
    "past the pooler": Case(
        "PgBouncer is in transaction mode, and the way of direct_dsn is reset",
        network.doing("reset"),
        prepare=between.past_shared_sessions,
        needs_pgbouncer=True,
    ),
    "pool terminated": Case(
        "the asyncpg pool of the bus is terminated, for good",
        between.terminate_the_pool,
        prepare=between.of_asyncpgs_pool,
        meanwhile=network.tried_in_vain,
        for_good=True,
    ),
    "pool closed": Case(
        "the psycopg pool of the bus is closed",
        between.close_the_pool,
        prepare=between.of_psycopgs_pool,
        noticed_by="nobody",
    ),
    "ten thousand channels": Case(
        "the backend of 10,000 channels is terminated", servers.terminate, channels=10_000
    ),
    "ten thousand receivers": Case(
        "the backend of 10,000 receivers is terminated", servers.terminate, receivers=10_000
    ),
    "blocked": Case(
        "the event loop is blocked for longer than a probe may take",
        process.block,
        noticed_by="nobody",
    ),
    "forked": Case("the process is forked", process.fork, noticed_by="nobody"),
    "another time": Case(
        "the wall clock jumps by a day, and back", process.change_the_clock, noticed_by="nobody"
    ),
}
