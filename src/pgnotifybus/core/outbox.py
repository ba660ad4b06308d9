"""What a publisher has taken and not yet sent. Layer: core.

Messages leave in the order in which they were taken. One with a key replaces an earlier one of the
same channel and key that has not left yet: the newest wins, and takes its place at the end, because
what was published in between was published before it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

M = TypeVar("M")


@dataclass(slots=True)
class Item(Generic[M]):
    """One message on its way."""

    number: int
    """Rises with each message taken; the first is 1."""
    message: M
    size: int
    """In bytes."""
    key: Hashable
    """What makes it replaceable; None if nothing does."""
    identity: Hashable
    """Two of the same may not leave together; None if it goes with any."""


class Outbox(Generic[M]):
    """The messages that wait, and those that have left and are not settled."""

    __slots__ = (
        "_by_key",
        "_leaving",
        "_waiting",
        "bytes",
        "capacity",
        "max_bytes",
        "replaced",
        "taken",
    )

    def __init__(self, capacity: int, max_bytes: float = math.inf) -> None:
        """Hold a number of messages, those that have left and are not settled included.

        Args:
            capacity: How many at the most; at least 1.
            max_bytes: How many bytes at the most, if it is more than one message.

        Raises:
            ValueError: If the capacity is below 1.
        """
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        self.capacity = capacity
        self.max_bytes = max_bytes
        self.bytes = 0
        """How many bytes the messages have that are held."""
        self._waiting: dict[int, Item[M]] = {}
        self._leaving: dict[int, Item[M]] = {}
        self._by_key: dict[Hashable, int] = {}
        self.taken = 0
        """How many messages were taken so far; the number of the newest."""
        self.replaced = 0
        """How many messages were replaced by a newer one of the same key."""

    @property
    def waiting(self) -> int:
        """How many have not left yet."""
        return len(self._waiting)

    @property
    def held(self) -> int:
        """How many are not settled yet."""
        return len(self._waiting) + len(self._leaving)

    @property
    def oldest(self) -> int:
        """The number of the oldest message that is not settled; beyond the newest if all are."""
        for items in (self._leaving, self._waiting):
            for number in items:
                return number
        return self.taken + 1

    def put(self, message: M, size: int, key: Hashable = None, identity: Hashable = None) -> bool:
        """Take a message, if there is room for it, or will be when it has replaced one.

        Returns:
            Whether it was taken.
        """
        waiting = self._waiting
        others = len(waiting) + len(self._leaving)
        total = self.bytes + size
        replaces = None if key is None else self._by_key.get(key)
        if replaces is not None:
            others -= 1
            total -= waiting[replaces].size
        elif others >= self.capacity:
            return False
        if total > self.max_bytes and others:
            return False
        if replaces is not None:
            del waiting[replaces]
            self.replaced += 1
        self.bytes = total
        number = self.taken = self.taken + 1
        waiting[number] = Item(number, message, size, key, identity)
        if key is not None:
            self._by_key[key] = number
        return True

    def leave(self, limit: int, max_bytes: int) -> list[Item[M]]:
        """The oldest messages that may leave together: at least one if any waits.

        Args:
            limit: How many at the most.
            max_bytes: How many bytes at the most, if it is more than one message.
        """
        waiting, by_key = self._waiting, self._by_key
        batch: list[Item[M]] = []
        identities: set[Hashable] = set()
        size = 0
        for item in waiting.values():
            size += item.size
            if batch and (len(batch) >= limit or size > max_bytes or item.identity in identities):
                break
            if item.identity is not None:
                identities.add(item.identity)
            if item.key is not None:
                del by_key[item.key]
            batch.append(item)
        for item in batch:
            del waiting[item.number]
        self._leaving.update((item.number, item) for item in batch)
        return batch

    def settle(self, item: Item[M]) -> None:
        """A message that has left is done with, whatever has become of it."""
        del self._leaving[item.number]
        self.bytes -= item.size

    def drain(self) -> list[Item[M]]:
        """Give up: all that is not settled, in its order."""
        items = [*self._leaving.values(), *self._waiting.values()]
        self._leaving.clear()
        self._waiting.clear()
        self._by_key.clear()
        self.bytes = 0
        return items
