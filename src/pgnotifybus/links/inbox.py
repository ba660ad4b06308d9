"""What a link has received and not yet handed on. Layer: links."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from pgnotifybus.links.base import OnUndecodable, Sink

_PATIENCE: Final = 0.1
"""How many seconds messages may wait for turns of the loop before they are handed on faster."""

_SHARE: Final = 8
"""Then one of so many is handed on in a turn: however fast they come, what is held is bounded."""


class Inbox:
    """What has arrived and not yet been handed on, grouped by channel.

    What came in one packet may be more than a ring holds. Handed on at once, it would overrun even
    a receiver that is always ready. So a channel gets a batch in each turn of the event loop, and
    receivers have their turns in between. Nobody is waited for: a receiver that is not ready by
    then lags. And when the turns take long, because somebody keeps the loop busy, what is held is
    handed on faster, so that it stays small and nobody hears of anything late.
    """

    __slots__ = (
        "_batch",
        "_behind_since",
        "_held",
        "_loop",
        "_on_undecodable",
        "_sink",
        "_turn_due",
        "_turns",
        "_undecodable",
    )

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._held: dict[str, tuple[list[str], list[int]]] = {}
        self._undecodable: dict[str, int] = {}
        self._sink: Sink | None = None
        self._on_undecodable: OnUndecodable | None = None
        self._batch: int | None = None
        self._turn_due = False
        self._turns = 0
        """How many turns have passed since nothing was held."""
        self._behind_since = 0.0

    def start(
        self, sink: Sink, on_undecodable: OnUndecodable | None = None, batch: int | None = None
    ) -> None:
        self._sink = sink
        self._on_undecodable = on_undecodable
        self._batch = batch
        self.hand_on()

    def of(self, channel: str) -> tuple[list[str], list[int]]:
        """Where to put the payloads of a channel, and the PIDs of their senders."""
        held = self._held.get(channel)
        if held is None:
            held = self._held[channel] = ([], [])
        return held

    @property
    def catching_up(self) -> bool:
        """Whether something waits for a later turn of the loop, and has not waited for long."""
        return self._turn_due and not self._overdue()

    def note_undecodable(self, channel: str) -> None:
        self._undecodable[channel] = self._undecodable.get(channel, 0) + 1

    def hand_on(self) -> None:
        """Hand on a batch of each channel now, and the rest in the next turns."""
        if self._turn_due or self._sink is None:
            return
        sink, batch = self._sink, self._batch
        held, self._held = self._held, {}
        for channel, (payloads, pids) in held.items():
            size = len(payloads) if batch is None else batch
            if self._turns and self._overdue():
                size = max(size, len(payloads) // _SHARE)
            sink(channel, payloads[:size], pids[:size])
            if size < len(payloads):
                self._held[channel] = (payloads[size:], pids[size:])
        if self._undecodable:
            self._tell_undecodable()
        if self._held:
            if not self._turns:
                self._behind_since = self._loop.time()
            self._turns += 1
            self._turn_due = True
            self._loop.call_soon(self._turn)
        else:
            self._turns = 0

    def flush(self, channels: Iterable[str] | None = None) -> None:
        """Hand on everything now: behind it comes what must not be overtaken.

        Args:
            channels: Of which channels; None for all.
        """
        if self._sink is None:
            return
        for channel in list(self._held) if channels is None else channels:
            held = self._held.pop(channel, None)
            if held is not None:
                self._sink(channel, *held)
        self._tell_undecodable()

    def _turn(self) -> None:
        self._turn_due = False
        self.hand_on()

    def _overdue(self) -> bool:
        return self._loop.time() - self._behind_since > _PATIENCE

    def _tell_undecodable(self) -> None:
        undecodable, self._undecodable = self._undecodable, {}
        if self._on_undecodable is not None:
            for channel, count in undecodable.items():
                self._on_undecodable(channel, count)
