"""A line on the terminal that says how far something is. Layer: cli."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.text import Text

_FRAME: Final = 0.1  # seconds


@contextlib.asynccontextmanager
async def progress(line: Callable[[], str]) -> AsyncIterator[None]:
    """Show a line on stderr, which must be a terminal, for as long as the body runs.

    Args:
        line: Says what to show; called many times a second, in the event loop.
    """
    live = Live(
        get_renderable=lambda: Text(line(), no_wrap=True, overflow="ellipsis"),
        console=Console(stderr=True),
        auto_refresh=False,  # its thread would read the state while it changes
        transient=True,
    )
    with live:
        frames = asyncio.create_task(_draw(live))
        try:
            yield
        finally:
            frames.cancel()
            await asyncio.wait({frames})


async def _draw(live: Live) -> None:
    while True:
        live.refresh()
        await asyncio.sleep(_FRAME)
