"""What the library keeps in the database: the spill table, and the event log. Layer: schema.

One schema holds all of it, `pgnotifybus` unless another name is given. Nothing needs it until a
payload is too large for a notification (`docs/topics/payloads.md`), or events are to outlive an
outage (`docs/topics/event-log.md`).
"""

from pgnotifybus.schema.ddl import VERSION
from pgnotifybus.schema.installing import install, remove, sql
from pgnotifybus.schema.pruning import prune

__all__ = ["VERSION", "install", "prune", "remove", "sql"]
