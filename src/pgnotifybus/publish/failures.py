"""What a publisher has given up, and who is told of it. Layer: publish."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pgnotifybus.errors import PublishFailed


class Failure(NamedTuple):
    """One message that was given up."""

    number: int
    message: tuple[str, str]
    """Its channel and payload."""
    size: int
    unknown: bool
    """Whether it may have been sent."""
    reason: str


class Hearing:
    """Somebody who waits for messages up to a number, and is told which of them failed."""

    def __init__(self, upto: int, failures: list[Failure]) -> None:
        self.upto = upto
        self.failures = failures

    def error(self) -> PublishFailed | None:
        """What to raise, if there is anything."""
        return _error(self.failures)


class Failures:
    """Keeps each failure until somebody is told of it."""

    def __init__(self, capacity: int, max_bytes: float) -> None:
        """Keep nothing yet.

        Args:
            capacity: How many may be kept before whoever publishes next has to be told.
            max_bytes: The same, of their payloads.
        """
        self._capacity = capacity
        self._max_bytes = max_bytes
        self._kept: list[Failure] = []
        self._bytes = 0
        self._hearings: list[Hearing] = []
        self.overdue = False
        """Whether so much is kept that it must not become more: nobody has asked."""

    def add(self, failure: Failure) -> None:
        """Tell everybody who waits for this message, or keep it."""
        concerned = [each for each in self._hearings if each.upto >= failure.number]
        for each in concerned:
            each.failures.append(failure)
        if not concerned:
            self._kept.append(failure)
            self._bytes += failure.size
            self._judge()

    @contextlib.contextmanager
    def hearing(self, upto: int) -> Iterator[Hearing]:
        """Collect the failures of messages up to a number, those that are kept first.

        If the body raises, nobody has been told, and they are kept again.
        """
        hearing = Hearing(upto, [each for each in self._kept if each.number <= upto])
        self._keep(each for each in self._kept if each.number > upto)
        self._hearings.append(hearing)
        try:
            yield hearing
        except BaseException:
            self._keep(sorted([*self._kept, *hearing.failures]))
            raise
        finally:
            self._hearings.remove(hearing)

    def take(self) -> PublishFailed | None:
        """What to raise for all that is kept, if there is anything; it is kept no longer."""
        error = _error(self._kept)
        self._keep(())
        return error

    def _keep(self, failures: Iterable[Failure]) -> None:
        self._kept = list(failures)
        self._bytes = sum(each.size for each in self._kept)
        self._judge()

    def _judge(self) -> None:
        self.overdue = len(self._kept) >= self._capacity or self._bytes >= self._max_bytes


def _error(failures: list[Failure]) -> PublishFailed | None:
    if not failures:
        return None
    return PublishFailed(
        failures[-1].reason,
        [each.message for each in failures if not each.unknown],
        [each.message for each in failures if each.unknown],
    )
