"""What a link has received and not yet handed on. Layer: links."""

from __future__ import annotations

import asyncio

from pgnotifybus.links.base import OnUndecodable, Sink


class Inbox:
    """What has arrived and not yet been handed on, grouped by channel.

    What came in one packet may be more than a ring holds. Handed on at once, it would overrun even
    a receiver that is always ready. So a channel gets a batch in each turn of the event loop, and
    receivers have their turns in between. Nobody is waited for: a receiver that is not ready by
    then lags.
    """

    __slots__ = (
        "_batch",
        "_held",
        "_loop",
        "_on_undecodable",
        "_share",
        "_sink",
        "_turn_due",
        "_undecodable",
    )

    def __init__(self, *, share: int | None = None) -> None:
        """Hold nothing yet.

        Args:
            share: At least one message of so many held is handed on in a turn. For those who cannot
                stop messages from coming: so what is held stays small however fast they come.
        """
        self._loop = asyncio.get_running_loop()
        self._share = share
        self._held: dict[str, tuple[list[str], list[int]]] = {}
        self._undecodable: dict[str, int] = {}
        self._sink: Sink | None = None
        self._on_undecodable: OnUndecodable | None = None
        self._batch: int | None = None
        self._turn_due = False

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
    def behind(self) -> bool:
        """Whether something waits for a later turn of the loop."""
        return self._turn_due

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
            if self._share is not None:
                size = max(size, len(payloads) // self._share)
            sink(channel, payloads[:size], pids[:size])
            if size < len(payloads):
                self._held[channel] = (payloads[size:], pids[size:])
        if self._undecodable:
            self._tell_undecodable()
        if self._held:
            self._turn_due = True
            self._loop.call_soon(self._turn)

    def flush(self) -> None:
        """Hand on everything now: behind it comes what must not be overtaken."""
        if self._sink is not None:
            held, self._held = self._held, {}
            for channel, (payloads, pids) in held.items():
                self._sink(channel, payloads, pids)
            self._tell_undecodable()

    def _turn(self) -> None:
        self._turn_due = False
        self.hand_on()

    def _tell_undecodable(self) -> None:
        undecodable, self._undecodable = self._undecodable, {}
        if self._on_undecodable is not None:
            for channel, count in undecodable.items():
                self._on_undecodable(channel, count)
