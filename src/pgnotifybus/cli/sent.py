"""What has become of the lines of a stream, for people and as JSON. Layer: cli."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Final

from pgnotifybus.errors import PublishFailed
from pgnotifybus.publish.settings import PublisherStatistics

_SHOWN: Final = 3  # sizes and reasons; the first few say what kind of trouble it is


@dataclass(slots=True)
class Sent:
    """The account of a stream: accepted = sent + replaced + unsent + unknown, when it has ended."""

    channel: str
    accepted: int = 0
    """Lines that were taken; the number of the last one."""
    sent: int = 0
    replaced: int = 0
    unsent: int = 0
    unknown: int = 0
    waiting: int = 0
    commits: int = 0
    bytes: int = 0
    """Of the lines that were taken."""
    seconds: float = 0.0
    sizes: list[int] = field(default_factory=list)
    """In bytes, of the first lines that failed."""
    reasons: list[str] = field(default_factory=list)
    """Why lines failed, the first few."""

    def count(self, statistics: PublisherStatistics) -> None:
        """Take over the publisher's account."""
        self.accepted = statistics.accepted
        self.sent = statistics.sent
        self.replaced = statistics.replaced
        self.unsent = statistics.unsent
        self.unknown = statistics.unknown
        self.waiting = statistics.waiting
        self.commits = statistics.commits

    def fail(self, failure: PublishFailed) -> None:
        """Take note of lines that failed; they are counted by the publisher."""
        room = _SHOWN - len(self.sizes)
        failed = [*failure.unsent, *failure.unknown]
        self.sizes += [len(payload.encode()) for _, payload in failed[:room]]
        if failure.reason not in self.reasons and len(self.reasons) < _SHOWN:
            self.reasons.append(failure.reason)

    @property
    def ok(self) -> bool:
        """Whether every line that was taken was sent or replaced."""
        return not self.unsent and not self.unknown

    def json(self) -> str:
        """One JSON object on one line."""
        return json.dumps(
            {
                "channel": self.channel,
                "accepted": self.accepted,
                "sent": self.sent,
                "replaced": self.replaced,
                "unsent": self.unsent,
                "unknown": self.unknown,
                "commits": self.commits,
                "bytes": self.bytes,
                "seconds": round(self.seconds, 3),
            }
        )

    def summary(self) -> str:
        """All of it in one line."""
        rate = self.sent / self.seconds if self.seconds > 0 else 0.0
        parts = [
            f"sent {_counted(self.sent, 'line')} to {self.channel} in "
            f"{_counted(self.commits, 'commit')}, {self.seconds:.2f} s, {rate:,.0f} lines/s"
        ]
        if self.replaced:
            parts.append(f"{self.replaced:,} replaced by newer ones of the same key")
        if self.unsent:
            parts.append(f"{self.unsent:,} not sent")
        if self.unknown:
            parts.append(f"{self.unknown:,} sent or not, which is not known")
        return "; ".join(parts)

    def progress(self) -> str:
        """How far it is, in one short line."""
        return f"{_counted(self.sent, 'line')} sent to {self.channel}, {self.waiting:,} waiting"

    def failure(self) -> str:
        """What was not sent, and why; nothing of a payload but its size."""
        parts = [f"{_counted(self.unsent, 'line')} not sent"] if self.unsent else []
        if self.unknown:
            parts.append(f"{_counted(self.unknown, 'line')} sent or not, which is not known")
        said = " and ".join(parts)
        if self.sizes:
            more = ", ..." if self.unsent + self.unknown > len(self.sizes) else ""
            said += f" (of {', '.join(f'{size:,}' for size in self.sizes)}{more} bytes)"
        return f"{said}: {'; '.join(self.reasons) or 'interrupted'}"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
