"""What to say when the server refuses something about the log. Layer: log."""

from __future__ import annotations

from pgnotifybus.core.names import quote
from pgnotifybus.errors import SchemaError
from pgnotifybus.links.base import ServerError
from pgnotifybus.schema.errands import refused


def refusal(error: ServerError, schema: str, what: str) -> SchemaError:
    """The error to raise; it names the GRANT where one is missing.

    Args:
        error: What the server said.
        schema: The schema of the log.
        what: What was to be done, as in "cannot ...".
    """
    return refused(error, what, schema, grants(schema))


def grants(schema: str) -> str:
    """What a role needs, by what it does."""
    name = quote(schema)
    return (
        f"GRANT USAGE ON SCHEMA {name} to the role; to append, GRANT INSERT, SELECT ON "
        f"{name}.events; to follow, GRANT SELECT ON {name}.events, {name}.log, {name}.segments; to "
        f"consume, also GRANT SELECT, INSERT, UPDATE, DELETE ON {name}.consumers, "
        f"{name}.dead_letters; to prune, GRANT SELECT, DELETE ON {name}.events, GRANT SELECT, "
        f"INSERT, DELETE ON {name}.segments and GRANT SELECT, UPDATE ON {name}.log"
    )


def caller_refusal(error: Exception, schema: str) -> SchemaError | None:
    """The same for what a driver of the caller's raises; None if it is about something else."""
    original = getattr(error, "orig", None) or error
    original = getattr(original, "__cause__", None) or original
    sqlstate = getattr(original, "sqlstate", None)
    if sqlstate not in ("42501", "3F000", "42P01", "42883"):
        return None
    message = str(original.args[0]) if original.args else str(original)
    return refusal(ServerError(message.splitlines()[0], sqlstate), schema, "append to the log")
