"""`pgnotifybus doctor`: what is wrong with a server, for who listens to it. Layer: cli."""

from __future__ import annotations

import json as json_format
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pgnotifybus.cli import dsn as dsns
from pgnotifybus.cli import schema as schemas
from pgnotifybus.cli.options import (
    SERVER,
    DriverOption,
    DsnOption,
    SchemaOption,
    VerboseOption,
    driver_of,
    show_log,
)
from pgnotifybus.cli.outcomes import FAILED, OK, reported
from pgnotifybus.cli.render import printable
from pgnotifybus.core.names import SCHEMA
from pgnotifybus.diagnosis.doctor import examine
from pgnotifybus.diagnosis.finding import LEVELS, Finding, worst

_TIMEOUT: Final = 10.0
_STYLES: Final = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "bold red"}
_WIDTH: Final = 100
"""Of the table where there is no terminal that has one."""

EPILOG: Final = (
    f"{SERVER}\n\nExit codes: 0 all is well, or worth a note · 1 a warning or a problem, or no "
    "connection · 2 bad usage, or a package is missing · 130 Ctrl-C · 143 SIGTERM"
)


def doctor(
    json: Annotated[
        bool, typer.Option("--json", help="Print all findings as one JSON object.")
    ] = False,
    schema: SchemaOption = SCHEMA,
    dsn: DsnOption = None,
    driver: DriverOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Connect as a bus would, and say what is wrong, or soon will be.

    It looks at the server, at what lies in between, at the notification queue and who holds it, at
    triggers, and at the tables of this library; and it sends a few notifications to itself, on a
    channel of its own. Nothing is changed.

    `pgnotifybus doctor`

    `pgnotifybus doctor --json | jq '.findings[] | select(.level == "problem")'`
    """
    show_log(verbose)
    with reported() as signals:
        schemas.checked_name(schema)
        with dsns.server(dsn) as place:
            connector = dsns.connects(place, driver_of(driver))
            findings = signals.run(examine(connector, schema, _TIMEOUT))
    level = worst(findings)
    if json:
        told = [each._asdict() for each in findings]
        typer.echo(json_format.dumps({"level": level, "findings": told}))
    else:
        _show(findings)
    raise typer.Exit(OK if level in ("ok", "note") else FAILED)


def _show(findings: list[Finding]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH)
    table = Table.grid(padding=(0, 2))
    for each in findings:
        level = Text(each.level, style=_STYLES[each.level])
        table.add_row(level, Text(each.id), Text(printable(each.seen)))
        for text, style in ((each.why, "dim"), (each.advice and f"-> {each.advice}", "")):
            if text and each.level != "ok":
                table.add_row("", "", Text(printable(text), style=style))
    with console.capture() as drawn:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in drawn.get().splitlines()))
    counts = {level: sum(each.level == level for each in findings) for level in LEVELS}
    found = [f"{count} {level}" for level, count in counts.items() if count]
    console.print(Text(", ".join(found)))
