"""The numbers at the end, for people and as JSON. Layer: cli."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from pgnotifybus._version import __version__


@dataclass(frozen=True, slots=True)
class Result:
    """The numbers of one subscriber."""

    name: str
    sent: int
    """Notifications that committed since it subscribed."""
    delivered: int
    skipped: int
    """It was too slow; told exactly, by gaps."""
    missed: int
    """They committed while there was no link, inside a gap that told of it; measured."""
    unread: int
    lost: int
    """Missing without a gap."""
    gaps: int
    agrees: bool
    """Whether the library's own account says the same."""

    @property
    def adds_up(self) -> bool:
        """Whether everything that was sent is accounted for."""
        whole = self.sent == self.delivered + self.skipped + self.missed
        return whole and self.agrees and not self.lost and not self.unread


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run of the demo has come to."""

    server_version: str
    driver: str
    seconds: float
    generations: int
    kills: int
    sent: int
    settled: bool
    """Whether, at the end, everybody got the last change."""
    receivers: tuple[Result, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was lost silently."""
        # They share one link, so what fell into its gaps is the same for all.
        same = len({each.missed for each in self.receivers}) == 1
        return self.settled and same and all(each.adds_up for each in self.receivers)

    def json(self) -> str:
        """One JSON object on one line."""
        receivers = []
        for each in self.receivers:
            fields = asdict(each)
            del fields["agrees"]
            receivers.append({**fields, "adds_up": each.adds_up})
        return json.dumps(
            {
                "ok": self.ok,
                "version": __version__,
                "server_version": self.server_version,
                "driver": self.driver,
                "seconds": round(self.seconds, 2),
                "generations": self.generations,
                "kills": self.kills,
                "sent": self.sent,
                "settled": self.settled,
                "receivers": receivers,
            }
        )

    def table(self) -> Table:
        """The same for people."""
        table = Table(box=SIMPLE_HEAD, pad_edge=False, title_justify="left", title_style="bold")
        table.title = (
            f"{self.sent} notifications in {self.seconds:.0f} s, {self.kills} connection(s) "
            f"killed, {self.generations} generation(s)"
        )
        table.add_column("subscriber")
        for name in ("delivered", "+ skipped", "+ missed", "= sent", "gaps", "lost"):
            table.add_column(name, justify="right")
        table.add_column("")
        for each in self.receivers:
            verdict = Text("adds up", "green") if each.adds_up else Text("DOES NOT ADD UP", "red")
            numbers = (each.delivered, each.skipped, each.missed, each.sent, each.gaps, each.lost)
            table.add_row(each.name, *(str(number) for number in numbers), verdict)
        return table

    def verdict(self) -> Text:
        """The last line."""
        if self.ok:
            return Text("Nothing was lost silently: every gap was told, in its place.", "green")
        if not self.settled:
            return Text("The link did not come back, so the account is not complete.", "red")
        return Text("The numbers do not add up: this is a bug, please report it.", "red")
