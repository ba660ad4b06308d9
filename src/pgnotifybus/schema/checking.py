"""Whether the schema can be used. Layer: schema."""

from __future__ import annotations

import shlex

from pgnotifybus.core.names import SCHEMA
from pgnotifybus.errors import SchemaError, SchemaMissing
from pgnotifybus.links.base import Runner
from pgnotifybus.schema import ddl
from pgnotifybus.schema.installing import look_up, version_of


async def check_version(runner: Runner, schema: str) -> None:
    """See that the event log is there, and one that this library can use.

    Raises:
        SchemaMissing: If it is not there, or only half.
        SchemaError: If it is of a newer version.
    """
    there = await look_up(runner, schema)
    version = None if there is None else version_of(there)
    if version is not None and version > ddl.VERSION:
        raise SchemaError(
            f"the schema {schema!r} is of version {version}, this library knows {ddl.VERSION}: "
            "upgrade the library"
        )
    if there is None or not there.whole:
        option = "" if schema == SCHEMA else f" --schema {shlex.quote(schema)}"
        how = "is not there" if there is None else "has not all that it should have"
        raise SchemaMissing(
            f"the schema {schema!r} {how}: run `pgnotifybus schema install{option}`, or "
            "`await schema.install(source)`"
        )
