"""The live picture fits its terminal, whatever has happened."""

from __future__ import annotations

import pytest
from rich.console import Console

from pgnotifybus import observe
from pgnotifybus.cli.demo.shop import Shop
from pgnotifybus.cli.demo.show import Show
from pgnotifybus.cli.demo.story import Story
from pgnotifybus.cli.demo.view import View
from pgnotifybus.cli.outcomes import Signals


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (100, 30), (60, 20)])
async def test_it_fills_the_screen_exactly(width: int, height: int) -> None:
    dsn = "postgresql://h/x"
    story = Story(aloud=False)
    show = Show(dsn, Shop(dsn, "h", Signals()), story, driver=None, seconds=60)
    show._subscribe()
    show._observe(observe.LinkUp(1, 4_000_000, "18.3", 1, 0.01))
    show.orders.sent = show.orders.placed = 123_456
    for number in range(50):
        story.add("gap", "report", f"Gap [red]{number} " + "long " * 40)
    console = Console(width=width, height=height, record=True, force_terminal=True)
    with console.capture() as capture:
        console.print(View(show), height=height, end="")
    lines = capture.get().rstrip("\n").split("\n")
    assert len(lines) == height
    assert any("[red]49" in line for line in lines)  # the newest entry, and no markup
    assert "123456" in capture.get()
