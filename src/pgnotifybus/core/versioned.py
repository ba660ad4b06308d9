"""A value with a version: what a watch channel is made of. Layer: core.

A reader remembers the version it has seen last. Whether there is something new for it is one
comparison, however many values came and went in between.
"""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class Versioned(Generic[T]):
    """The newest value, and a number that grows by one with each."""

    __slots__ = ("value", "version")

    def __init__(self, value: T) -> None:
        self.value = value
        self.version = 0

    def replace(self, value: T) -> None:
        """Make `value` the newest; it counts as new even if it equals the old one."""
        self.value = value
        self.version += 1
