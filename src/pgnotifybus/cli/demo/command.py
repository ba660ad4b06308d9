"""`pgnotifybus demo`: from a server to the exit code. Layer: cli."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import typer
from rich.console import Console
from rich.live import Live

from pgnotifybus.cli import dsn as dsns
from pgnotifybus.cli.demo.shop import Shop
from pgnotifybus.cli.demo.show import Show
from pgnotifybus.cli.demo.story import Story
from pgnotifybus.cli.demo.summary import Summary
from pgnotifybus.cli.demo.view import View
from pgnotifybus.cli.outcomes import FAILED, OK, Signals, say
from pgnotifybus.errors import MissingExtra
from pgnotifybus.links.sources import Driver

_FRAME: Final = 0.1  # seconds


@dataclass(frozen=True, slots=True)
class Request:
    """How to run the demo."""

    dsn: str | None
    """A server to run it on; None starts one for it."""
    driver: Driver | None
    seconds: float | None
    """When it ends by itself; None for Ctrl-C."""
    json: bool


def demo(request: Request, signals: Signals) -> int:
    """Run the demo, and print what it has come to.

    Returns:
        The exit code: 1 if a number does not add up.
    """
    console = Console(stderr=request.json)
    with _server(request.dsn) as dsn:
        connector = dsns.connects(dsn, request.driver)
        with Shop(dsn, connector.describe(), signals) as shop:
            story = Story(aloud=not console.is_terminal)
            show = Show(dsn, shop, story, driver=request.driver, seconds=request.seconds)
            summary = signals.run(_watched(show, console), ask=show.stop.set)
    _print(summary, request.json)
    return OK if summary.ok else FAILED


async def _watched(show: Show, console: Console) -> Summary:
    """Run the show, with a live view where there is a terminal."""
    if not console.is_terminal:
        return await show.run()
    with Live(View(show), console=console, screen=True, auto_refresh=False) as live:
        frames = asyncio.create_task(_draw(live))
        try:
            return await show.run()
        finally:
            frames.cancel()
            await asyncio.wait({frames})


async def _draw(live: Live) -> None:
    # Not the thread of Live: it would read the state while it changes.
    while True:
        live.refresh()
        await asyncio.sleep(_FRAME)


@contextlib.contextmanager
def _server(option: str | None) -> Iterator[str]:
    """The server that was asked for, or else a private one, of which nothing is left.

    Not that of DATABASE_URL: a demo that writes must not run where nobody has asked for it.
    """
    if (dsn := dsns.given(option)) is not None:
        yield dsn
        return
    try:
        from pgnotifybus.embedded import EmbeddedServer, find

        version = find().version
    except MissingExtra:
        raise MissingExtra("embedded", "or run it on a server of yours: --dsn") from None
    with contextlib.ExitStack() as stack:
        with dsns.starting(version):
            server = stack.enter_context(EmbeddedServer(version=version))
        yield server.dsn


def _print(summary: Summary, json: bool) -> None:
    if json:
        typer.echo(summary.json())
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 100
    console.print(summary.table())
    console.print(summary.verdict())
    if not summary.ok:
        say("error: the demo's account does not add up")
