"""The plans of `Subscriptions`, carried out on a naive server."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pgnotifybus.core.subscriptions import Plan, Subscriptions

NAMES = st.sampled_from("abcdef")


class Listening(RuleBasedStateMachine):
    """Wishes change at any moment; the server does a whole plan, or nothing, or goes away.

    The model is what a reader would write first: a set of wanted names, and a server with the set
    that it listens to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.wanted: set[str] = set()
        self.known: set[str] = set()
        """What the owner still holds something for."""
        self.listening: set[str] = set()
        self.refused: set[str] = set()
        self.plan: Plan | None = None
        self.subscriptions = Subscriptions(self.wanted.__contains__, self.forget)

    def forget(self, name: str) -> None:
        assert name not in self.wanted
        assert name not in self.subscriptions.acknowledged
        self.known.discard(name)

    # -- the wishes -------------------------------------------------------------------------------

    @rule(name=NAMES)
    def want(self, name: str) -> None:
        self.known.add(name)
        self.wanted.add(name)
        self.subscriptions.touch(name)

    @precondition(lambda self: self.wanted)
    @rule(name=NAMES, comes_back=st.booleans())
    def leave(self, name: str, comes_back: bool) -> None:
        if name in self.wanted:
            self.wanted.remove(name)
            self.subscriptions.doubt(name)
            self.subscriptions.touch(name)
            assert not self.subscriptions.is_live(name)
            if comes_back:
                self.want(name)
                assert not self.subscriptions.is_live(name), "what is in flight is for the old"

    # -- the server -------------------------------------------------------------------------------

    @rule(names=st.sets(NAMES, max_size=2))
    def the_server_refuses(self, names: set[str]) -> None:
        self.refused = names

    @precondition(lambda self: self.plan is None)
    @rule()
    def begin(self) -> None:
        plan = self.subscriptions.begin()
        assert set(plan.listen) <= self.wanted
        assert not self.wanted.intersection(plan.unlisten)
        assert len({*plan.listen, *plan.unlisten}) == len(plan)
        if plan:
            self.plan = plan
        self.known.difference_update(plan.unlisten)  # its owner lets go as soon as it is left

    @precondition(lambda self: self.plan is not None)
    @rule()
    def answer(self) -> None:
        assert self.plan is not None
        plan, self.plan = self.plan, None
        if self.refused.isdisjoint(plan.listen):
            self.listening.difference_update(plan.unlisten)
            self.listening.update(plan.listen)
            assert self.subscriptions.acknowledge() == plan
            return
        culprit = self.subscriptions.refuse()
        assert (culprit is not None) == (len(plan) == 1)
        if culprit is not None:
            assert culprit in self.refused
            # Who waited for it is told, and goes; a later wish touches it again.
            self.wanted.discard(culprit)
            self.subscriptions.touch(culprit)

    @rule()
    def the_link_is_lost(self) -> None:
        self.plan = None
        self.listening.clear()
        self.subscriptions.link_lost(sorted(self.known))

    @rule()
    def it_settles(self) -> None:
        """Whatever happened before: in the end exactly what is wanted is listened to."""
        for _ in range(50):
            if self.plan is not None:
                self.answer()
            self.begin()
            if self.plan is None:
                break
        else:
            raise AssertionError("the plans have no end")
        assert self.listening == self.wanted == self.subscriptions.acknowledged
        assert self.known == self.wanted, "something is held for a channel that nobody wants"
        assert all(map(self.subscriptions.is_live, self.wanted))

    # -- what always holds ------------------------------------------------------------------------

    @invariant()
    def what_is_acknowledged_is_listened_to(self) -> None:
        assert self.subscriptions.acknowledged <= self.listening

    @invariant()
    def what_is_live_is_not_being_left(self) -> None:
        leaving = self.plan.unlisten if self.plan is not None else ()
        for name in "abcdef":
            if self.subscriptions.is_live(name):
                assert name in self.listening
                assert name not in leaving


TestListening = Listening.TestCase
TestListening.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, print_blob=True
)
