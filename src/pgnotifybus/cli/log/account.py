"""What has become of the lines that were to be appended, for people and as JSON. Layer: cli.

They are appended in their order, and what cannot be appended ends it. So the first `appended` lines
are in the log, of the next `unknown` it is not known, and the rest is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from pgnotifybus.cli.log.show import counted, json_line


@dataclass(slots=True)
class Account:
    """accepted = appended + unknown + waiting; what waits at the end is not appended."""

    channel: str
    accepted: int = 0
    """Lines that were taken; the number of the last one."""
    appended: int = 0
    unknown: int = 0
    commits: int = 0
    bytes: int = 0
    """Of the lines that were taken."""
    seconds: float = 0.0
    last_id: int | None = None
    """Of the last event that was appended."""

    def take(self, size: int) -> None:
        """A line was taken."""
        self.accepted += 1
        self.bytes += size

    def commit(self, ids: list[int] | None, count: int) -> None:
        """The next lines are in the log; their ids may not be known."""
        self.appended += count
        self.commits += 1
        if ids:
            self.last_id = ids[-1]

    @property
    def waiting(self) -> int:
        """Lines that are to be appended; at the end, those that were not."""
        return self.accepted - self.appended - self.unknown

    @property
    def ok(self) -> bool:
        """Whether every line that was taken is in the log."""
        return self.appended == self.accepted

    def json(self) -> str:
        """One JSON object on one line."""
        return json_line(
            {
                "channel": self.channel,
                "accepted": self.accepted,
                "appended": self.appended,
                "unsent": self.waiting,
                "unknown": self.unknown,
                "commits": self.commits,
                "bytes": self.bytes,
                "seconds": round(self.seconds, 3),
                "last_id": self.last_id,
            }
        )

    def summary(self) -> str:
        """All of it in one line."""
        rate = self.appended / self.seconds if self.seconds > 0 else 0.0
        last = "" if self.last_id is None else f"; the last id is {self.last_id}"
        return (
            f"appended {counted(self.appended, 'line')} to {self.channel} in "
            f"{counted(self.commits, 'commit')}, {self.seconds:.2f} s, {rate:,.0f} lines/s{last}"
        )

    def progress(self) -> str:
        """How far it is, in one short line."""
        appended = counted(self.appended, "line")
        return f"{appended} appended to {self.channel}, {self.waiting:,} waiting"

    def failure(self, reason: str) -> str:
        """Which lines were not appended, and why; nothing of what is in them."""
        parts = []
        if self.unknown:
            lines = _lines(self.appended + 1, self.appended + self.unknown)
            parts.append(f"whether {lines} was appended is not known")
        if self.waiting:
            lines = _lines(self.appended + self.unknown + 1, self.accepted)
            parts.append(f"{lines} was not appended")
        return f"{'; '.join(parts)}: {reason}"


def _lines(first: int, last: int) -> str:
    return f"line {first:,}" if first == last else f"each of lines {first:,} to {last:,}"
