"""Options that the commands of the log share. Layer: cli."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from pgnotifybus.cli.options import EXIT_CODES, SERVER

EPILOG: Final = f"{SERVER}\n\n{EXIT_CODES}"

LogSchemaOption = Annotated[
    str, typer.Option("--schema", metavar="NAME", help="The schema of the event log.")
]
LinesOption = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
