"""How a publisher is to work, and how it is doing. Layer: publish."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pgnotifybus.publish.message import Envelope

Delivery = Literal["at-least-once", "at-most-once"]


@dataclass(frozen=True, slots=True)
class PublisherStatistics:
    """The account of a publisher: accepted = sent + replaced + unsent + unknown + waiting."""

    accepted: int
    """Messages taken so far."""
    sent: int
    """Messages committed."""
    replaced: int
    """Messages that a newer one of the same key took the place of."""
    unsent: int
    """Messages given up that were certainly not sent."""
    unknown: int
    """Messages given up of which it is not known whether they were sent."""
    waiting: int
    """Messages that are not settled yet."""
    commits: int
    """Transactions committed."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a publisher works; see `PgNotifyBus.publisher`."""

    batch_size: int = 1000
    linger: float = 0.01
    capacity: int = 10_000
    capacity_bytes: int = 64 * 1024 * 1024
    durable: bool = True
    delivery: Delivery = "at-least-once"
    collapse_duplicates: bool = False
    drain_timeout: float = 10.0
    envelope: Envelope | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "capacity", "capacity_bytes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an int of at least 1, not {value!r}")
        for name in ("linger", "drain_timeout"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be at least 0 seconds, not {value!r}")
        if self.delivery not in ("at-least-once", "at-most-once"):
            raise ValueError(
                f"delivery must be 'at-least-once' or 'at-most-once', not {self.delivery!r}"
            )
