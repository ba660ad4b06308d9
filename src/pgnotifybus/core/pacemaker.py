"""Who tells the others that there are new events: the hand-over, without doing it. Layer: core.

Under load a NOTIFY with every commit is what costs most: commits with one queue for a lock of the
whole server. So one reader, the *pacemaker*, looks for new events every few milliseconds and tells
all others, and writers keep quiet meanwhile. Two advisory locks of the database make that safe:

- *office* is held by the one pacemaker, from its election to its farewell;
- *awake* is held by it, exclusively, while it looks. A writer that cannot have that lock shared
  does not notify. Its transaction has an id by then.

::

    REST -> ELECT -> LOOK -> ANNOUNCE -> ACQUIRE -> POLL.. -> RELEASE -> MARK -> DRAIN.. -> RESIGN
                         \\-> RELEASE, for who has just come and may not know of one that died

A writer that kept quiet must not be stranded:

- It commits while the pacemaker polls: the next poll sees it.
- It commits after `awake` was given up: then its transaction was running at that moment, so it is
  in the snapshot taken behind it (MARK), or else had ended and is seen by the poll behind that. The
  pacemaker drains: it goes on polling until all transactions of that snapshot have ended. Of the
  transactions that run, a snapshot knows only those that are older than the newest that has ended;
  so one of ours has to end in between, and it is the one that tells all of the release.
- The pacemaker dies: its locks die with it, and writers notify for themselves. It had announced
  itself before it took `awake`, so the others know that there may be stranded ones, and one of them
  takes over as soon as it can have the office. Who takes over tells all once, and drains as well.
- Somebody has just come, or was deaf for a while, and has not heard of a pacemaker that has died.
  So it drains too, and tries to until it has done so, or hears how the pacemaker is. First it
  looks, and then tells all that it drains: what had ended before its look is read because of that.

`tests/simulation/test_pacemaker_model.py` goes through every interleaving of this code.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Final, NamedTuple

from pgnotifybus.core.snapshot import Snapshot


class Stage(Enum):
    """What the pacemaker does next."""

    REST = "rest"
    """Nothing: it is none."""
    ELECT = "elect"
    """Try to get the office; do not wait for it."""
    LOOK = "look"
    """Take a snapshot; what has ended by then it need not tell."""
    ANNOUNCE = "announce"
    """Tell all that from now on somebody may be awake, and to look for themselves."""
    ACQUIRE = "acquire"
    """Get `awake`; only writers are in the way, and those for a moment."""
    POLL = "poll"
    """Look for what is new since the last look, and tell all."""
    RELEASE = "release"
    """Give up `awake`, if it has it, and tell all that it drains."""
    MARK = "mark"
    """Take a snapshot, behind the release."""
    DRAIN = "drain"
    """As POLL."""
    RESIGN = "resign"
    """Say farewell, if it was announced; and only then give up the office."""


class Pacemaker(NamedTuple):
    """The state of one; methods say what it becomes."""

    stage: Stage = Stage.REST
    announced: bool = False
    """Whether the others must be told when it ends."""
    drain_only: bool = False
    """Whether it has not been awake, and will only drain."""
    waiting: frozenset[int] = frozenset()
    """The transactions that may hold quiet writers."""

    def elect(self, *, drain_only: bool) -> Pacemaker:
        """Stand for office."""
        assert self.stage is Stage.REST
        return Pacemaker(Stage.ELECT, drain_only=drain_only)

    def elected(self, got: bool) -> Pacemaker:
        """The election is over."""
        if not got:
            return REST
        return self._replace(stage=Stage.LOOK)

    def looked(self) -> Pacemaker:
        """There is a snapshot to look from."""
        return self._replace(stage=Stage.RELEASE if self.drain_only else Stage.ANNOUNCE)

    def announcing(self) -> Pacemaker:
        """Whatever becomes of the announcement, others may have heard it."""
        return self._replace(stage=Stage.ACQUIRE, announced=True)

    def acquired(self) -> Pacemaker:
        """It is awake: writers keep quiet."""
        return self._replace(stage=Stage.POLL, waiting=frozenset())

    def polled(self, *, sleepy: bool) -> Pacemaker:
        """All that was new has been told."""
        return self._replace(stage=Stage.RELEASE if sleepy else Stage.POLL)

    def released(self) -> Pacemaker:
        """Writers notify for themselves again, and others know that somebody drains."""
        return self._replace(stage=Stage.MARK, announced=True, drain_only=False)

    def marked(self, running: Iterable[int]) -> Pacemaker:
        """These transactions may hold writers that have kept quiet."""
        return self._replace(stage=Stage.DRAIN, waiting=frozenset(running))

    def drained(self, snapshot: Snapshot, *, wanted: bool) -> Pacemaker:
        """All that was new has been told, as of this snapshot.

        Args:
            snapshot: Of the look.
            wanted: Whether there is so much to tell that it should be awake.
        """
        left = frozenset(xid for xid in self.waiting if not snapshot.sees(xid))
        if wanted:
            return self._replace(stage=Stage.ANNOUNCE, waiting=left)
        return self._replace(stage=Stage.DRAIN if left else Stage.RESIGN, waiting=left)

    def resigned(self) -> Pacemaker:
        """All is told, and the office free."""
        return REST


REST: Final = Pacemaker()
