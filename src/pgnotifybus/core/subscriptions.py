"""Which channels should be listened to, which are, and what to ask the server for. Layer: core.

One party (the supervisor) talks to the server, one statement at a time, and asks here what to
say; everybody else only says what they want. That makes the races go away: however wishes change
while a statement is under way, the next plan is the difference between what is wanted then and
what the server has acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """One transaction: what to UNLISTEN and what to LISTEN. Falsy if there is nothing to do."""

    listen: tuple[str, ...] = ()
    unlisten: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.listen) + len(self.unlisten)


class Subscriptions:
    """What is wanted, and what the server has acknowledged on the present link."""

    __slots__ = (
        "_acknowledged",
        "_forget",
        "_is_wanted",
        "_suspects",
        "_touched",
        "_under_way",
        "_unsure",
    )

    def __init__(self, is_wanted: Callable[[str], bool], forget: Callable[[str], None]) -> None:
        """Start without a link.

        Args:
            is_wanted: Whether a channel should be listened to; asked when a plan is made.
            forget: Told of a channel that is neither wanted nor listened to.
        """
        self._is_wanted = is_wanted
        self._forget = forget
        self._acknowledged: set[str] = set()
        self._unsure: set[str] = set()
        """Left in a transaction that was refused: the server may or may not listen to them."""
        self._under_way = Plan()
        # Only what has been touched is looked at: a plan costs nothing for ten thousand others.
        self._touched: dict[str, None] = {}
        self._suspects: dict[str, None] = {}
        """One of these made the server refuse a transaction: they are asked for one by one."""

    @property
    def acknowledged(self) -> frozenset[str]:
        """What the server listens to for us, as far as it has said so."""
        return frozenset(self._acknowledged)

    def touch(self, name: str) -> None:
        """Say that a channel may be wanted now, or no longer."""
        self._touched[name] = None

    def doubt(self, name: str) -> None:
        """Say that nobody wants a channel at this moment; may be called from any thread.

        Whoever comes after must not get what is in flight for those who were there before. So even
        if it is wanted again before the UNLISTEN is sent, it is asked for anew: what was in flight
        arrives in front of the answer.
        """
        if name in self._acknowledged:
            self._unsure.add(name)
            self._acknowledged.discard(name)

    def is_live(self, name: str) -> bool:
        """Whether what commits from now on will arrive: acknowledged, and not being left."""
        return name in self._acknowledged and name not in self._under_way.unlisten

    def begin(self) -> Plan:
        """What to ask the server for now; it counts as under way until it is answered."""
        plan = Plan()
        while self._suspects and not plan:  # one that is no longer wanted must not end the search
            name = next(iter(self._suspects))
            del self._suspects[name]
            plan = self._difference([name])
        if not plan:
            names, self._touched = list(self._touched), {}
            plan = self._difference(names)
        self._under_way = plan
        return plan

    def _difference(self, names: Iterable[str]) -> Plan:
        """What it takes to get from what is acknowledged to what is wanted."""
        listen, unlisten = [], []
        for name in names:
            known = name in self._acknowledged or name in self._unsure
            if self._is_wanted(name):
                if name not in self._acknowledged:
                    listen.append(name)
            elif known:
                unlisten.append(name)
            else:
                self._forget(name)
        return Plan(tuple(listen), tuple(unlisten))

    def acknowledge(self) -> Plan:
        """The server has done what was under way."""
        plan, self._under_way = self._under_way, Plan()
        self._acknowledged.difference_update(plan.unlisten)
        self._acknowledged.update(plan.listen)
        self._unsure.difference_update(plan.unlisten, plan.listen)
        return plan

    def refuse(self) -> str | None:
        """The server has done nothing of what was under way.

        Returns:
            The channel that it refuses, if that is certain; None if they must be asked for one by
            one to find out, which the next plans do.
        """
        plan, self._under_way = self._under_way, Plan()
        self._acknowledged.difference_update(plan.unlisten)
        self._unsure.update(plan.unlisten)
        if len(plan) == 1:
            return (plan.listen + plan.unlisten)[0]
        self._suspects.update(dict.fromkeys(plan.unlisten + plan.listen))
        return None

    def link_lost(self, names: Iterable[str]) -> None:
        """A link is gone and everything acknowledged with it; the next plan is for `names`."""
        self._acknowledged.clear()
        self._unsure.clear()
        self._suspects.clear()
        self._under_way = Plan()
        self._touched = dict.fromkeys(names)
