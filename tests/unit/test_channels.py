"""What the channels count, seen from another thread."""

from __future__ import annotations

from typing import Any

from pgnotifybus.channels import Channels, Totals


def fetch(*_: object) -> None:
    raise AssertionError("nothing is spilled here")


class Interrupted(dict[str, Any]):
    """A dict in whose copying a channel is left by the other thread, the first time."""

    def __init__(self, channels: Channels, name: str) -> None:
        super().__init__(channels._channels)
        self._leave = [lambda: channels._forget(name)]

    def copy(self) -> dict[str, Any]:
        copied = dict(self)
        if self._leave:
            self._leave.pop()()
        return copied


async def test_a_channel_that_is_left_while_somebody_reads_counts_once() -> None:
    """A counter that counted it twice, or not at all, would have to go back or forth again."""
    channels = Channels(["orders"], 16, fetch)
    room = channels._add("room", configured=False)
    channels._routes.update(room=room.shared, orders=channels.all()["orders"])
    channels.deliver("orders", ["1"], [1])
    channels.deliver("room", ["1", "2", "3"], [1, 1, 1])
    room.shared.skipped += 2
    channels._channels = Interrupted(channels, "room")
    there, former = channels.account()
    assert list(there) == ["orders"]
    assert former == Totals(received=3, deliveries=0, skipped=2)
    assert channels.account() == (there, former)
