"""The live picture. Layer: cli.

It is drawn anew from the state of the show many times a second, and changes nothing in it.
"""

from __future__ import annotations

from typing import Final

from rich.box import ROUNDED
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pgnotifybus._version import __version__
from pgnotifybus.cli.demo.show import CAPACITY, Show
from pgnotifybus.cli.demo.story import Entry, Kind
from pgnotifybus.cli.demo.subscriber import Subscriber

_STYLES: Final[dict[Kind, tuple[str, str]]] = {
    "start": ("●", "green"),
    "burst": ("▲", "cyan"),
    "kill": ("✖", "bold red"),
    "down": ("○", "red"),
    "up": ("●", "bold green"),
    "gap": ("◆", "yellow"),
    "lag": ("◇", "magenta"),
    "end": ("■", "green"),
    "fault": ("!", "bold red"),
}
_STATES: Final = {
    "live": ("● live", "bold green"),
    "connecting": ("◌ connecting", "bold yellow"),
    "down": ("○ down", "bold red"),
}
_FRESH: Final = 2.0  # seconds for which an entry stands out


class View:
    """What a terminal shows of a demo."""

    def __init__(self, show: Show) -> None:
        self._show = show

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = options.height or options.size.height
        fixed = Group(self._head(), self._link(), self._subscribers(options.max_width))
        legend = self._legend()
        as_high_as_it_is = options.update(height=None)
        used = sum(len(console.render_lines(each, as_high_as_it_is)) for each in (fixed, legend))
        yield fixed
        yield self._story(max(1, height - used - 2))  # its frame
        yield legend

    def _head(self) -> RenderableType:
        show = self._show
        version = show.link.server_version.partition(" ")[0] if show.link else "..."
        left = Text(no_wrap=True, overflow="ellipsis")
        left.append(f" pgnotifybus {__version__}", "bold")
        left.append(f"  PostgreSQL {version} · one LISTEN, 3 subscribers", "dim")
        clock = _clock(show.story.seconds)
        if show.seconds is not None:
            clock += f" of {_clock(show.seconds)}"
        return _sides(left, Text(f"{clock} ", "bold"))

    def _link(self) -> RenderableType:
        show = self._show
        health = show.bus.health()
        text, style = _STATES.get(health.state, (health.state, "bold"))
        left = Text(no_wrap=True, overflow="ellipsis")
        left.append(f"{text:<13}", style)
        left.append("generation ", "dim")
        left.append(f"{health.generation}", "bold")
        if show.link is not None:
            gone = health.state != "live"
            left.append("   PID ", "dim")
            left.append(f"{show.link.pid}", "strike dim" if gone else "")
        left.append("   killed ", "dim")
        left.append(f"{show.kills}x", "bold red" if show.kills else "")
        right = Text(no_wrap=True)
        right.append(f"{show.orders.placed}", "bold")
        right.append(" orders, ", "dim")
        right.append(f"{show.orders.sent}", "bold")
        right.append(" changes", "dim")
        border = "green" if health.state == "live" else "red"
        return Panel(
            _sides(left, right),
            title="the link",
            title_align="left",
            box=ROUNDED,
            border_style=border,
            height=3,
        )

    def _subscribers(self, width: int) -> RenderableType:
        wide = width >= 100
        table = Table(box=None, expand=True, padding=(0, 1, 0, 0), header_style="dim")
        table.add_column("", no_wrap=True, style="bold")
        if wide:
            table.add_column("", no_wrap=True, style="dim", ratio=1)
        for name in ("delivered", "+ skipped", "+ missed", "+ unread"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column(f"ring of {CAPACITY}", no_wrap=True, ratio=1, min_width=10)
        table.add_column("= sent", justify="right", no_wrap=True)
        for subscriber in self._show.subscribers:
            table.add_row(*self._row(subscriber, wide))
        return Panel(
            table, title="subscribers", title_align="left", box=ROUNDED, border_style="blue"
        )

    def _row(self, subscriber: Subscriber, wide: bool) -> list[RenderableType]:
        show, account = self._show, subscriber.account
        unread = subscriber.receiver.statistics().unread
        open_ = show.orders.sent - account.explained - unread
        down = show.bus.health().state != "live"
        behind = account.generation < show.bus.health().generation or account.unsettled
        missed = Text(str(account.missed) if account.missed else "0")
        if account.missed:
            missed.stylize("yellow")
        if open_ > 0 and (down or behind):
            missed = Text.assemble(missed, (f"+{open_}?", "bold red"))
        skipped = Text(str(account.skipped), "magenta" if account.skipped else "")
        total = Text(str(show.orders.sent), "bold")
        return [
            subscriber.name,
            *([subscriber.work] if wide else []),
            Text(str(account.delivered), "green"),
            skipped,
            missed,
            Text(str(unread)),
            _gauge(unread),
            total,
        ]

    def _story(self, lines: int) -> RenderableType:
        entries = list(self._show.story.entries)[-lines:]
        table = Table.grid(padding=(0, 1, 0, 0), expand=True)
        table.add_column(justify="right", no_wrap=True, style="dim", width=7)
        table.add_column(no_wrap=True, width=1)
        table.add_column(no_wrap=True, width=6)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for entry in entries:
            self._add(table, entry)
        return Panel(
            table,
            title="what happens",
            title_align="left",
            box=ROUNDED,
            border_style="blue",
            height=lines + 2,
        )

    def _add(self, table: Table, entry: Entry) -> None:
        sign, style = _STYLES[entry.kind]
        fresh = self._show.story.seconds - entry.seconds < _FRESH
        table.add_row(
            f"{entry.seconds:.1f} s",
            Text(sign, style),
            Text(entry.who, style),
            Text(entry.text, "" if fresh else "dim"),
        )

    def _legend(self) -> RenderableType:
        text = Text(overflow="ellipsis")
        text.append(" skipped", "magenta")
        text.append(": too slow   ", "dim")
        text.append("missed", "yellow")
        text.append(": sent while the link was down\n", "dim")
        text.append(" Both stand in a ", "dim")
        text.append("Gap", "bold")
        text.append(": the subscriber re-reads the table there", "dim")
        return _sides(text, Text("\nCtrl-C ends ", "bold"))


def _sides(left: RenderableType, right: RenderableType) -> Table:
    grid = Table.grid(expand=True)
    grid.add_column(ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_row(left, right)
    return grid


def _gauge(unread: int) -> ProgressBar:
    """How full the ring is for one subscriber; red when it is overrun."""
    style = "yellow" if unread > CAPACITY // 2 else "green"
    return ProgressBar(
        total=CAPACITY,
        completed=min(unread, CAPACITY),
        style="bright_black",
        complete_style=style,
        finished_style="red",
    )


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
