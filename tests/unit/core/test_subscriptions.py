"""What is wanted against what is acknowledged: the plans that follow."""

from __future__ import annotations

from pgnotifybus.core.subscriptions import Plan, Subscriptions


class Wishes:
    """Who wants what, and what has been forgotten."""

    def __init__(self, *wanted: str) -> None:
        self.wanted = set(wanted)
        self.forgotten: list[str] = []
        self.subscriptions = Subscriptions(self.wanted.__contains__, self.forgotten.append)
        self.subscriptions.link_lost(wanted)

    def want(self, *names: str) -> None:
        self.wanted.update(names)
        self.touch(*names)

    def leave(self, *names: str) -> None:
        self.wanted.difference_update(names)
        self.touch(*names)

    def touch(self, *names: str) -> None:
        for name in names:
            self.subscriptions.touch(name)


def live(*names: str) -> Wishes:
    """Everything wanted is acknowledged."""
    wishes = Wishes(*names)
    wishes.subscriptions.begin()
    wishes.subscriptions.acknowledge()
    assert wishes.subscriptions.acknowledged == set(names)
    return wishes


def test_a_new_link_is_asked_for_everything_in_one_plan() -> None:
    """Trap 36: one round trip, in the order in which the channels came."""
    wishes = Wishes("b", "a")
    assert wishes.subscriptions.begin() == Plan(listen=("b", "a"))
    assert not wishes.subscriptions.is_live("a"), "not before it is acknowledged"
    wishes.subscriptions.acknowledge()
    assert wishes.subscriptions.is_live("a")
    assert not wishes.subscriptions.begin()


def test_only_what_was_touched_is_looked_at() -> None:
    wishes = live("a")
    wishes.wanted.clear()
    assert not wishes.subscriptions.begin()
    wishes.touch("a")
    assert wishes.subscriptions.begin() == Plan(unlisten=("a",))


def test_a_plan_has_a_length_and_is_false_if_there_is_nothing_to_do() -> None:
    assert len(Plan(("a", "b"), ("c",))) == 3
    assert Plan(unlisten=("c",))
    assert not Plan()


def test_a_wish_that_is_taken_back_before_it_is_asked_for_costs_nothing() -> None:
    wishes = live()
    wishes.want("a")
    wishes.leave("a")
    assert not wishes.subscriptions.begin()
    assert wishes.forgotten == ["a"]


def test_a_wish_that_is_taken_back_under_way_is_undone_by_the_next_plan() -> None:
    """Trap 14: cancellation between LISTEN and registration."""
    wishes = live()
    wishes.want("a")
    wishes.subscriptions.begin()
    wishes.leave("a")
    assert wishes.subscriptions.acknowledge() == Plan(listen=("a",))
    assert wishes.subscriptions.begin() == Plan(unlisten=("a",))
    wishes.subscriptions.acknowledge()
    assert wishes.subscriptions.acknowledged == frozenset()
    wishes.touch("a")
    assert not wishes.subscriptions.begin()
    assert wishes.forgotten == ["a"]


def test_what_is_being_left_is_not_live_and_who_wants_it_now_gets_a_listen_behind_it() -> None:
    """Trap 14: the last one leaves while a new one comes."""
    wishes = live("a")
    wishes.leave("a")
    assert wishes.subscriptions.begin() == Plan(unlisten=("a",))
    wishes.want("a")
    assert not wishes.subscriptions.is_live("a")
    wishes.subscriptions.acknowledge()
    assert wishes.subscriptions.begin() == Plan(listen=("a",))


def test_a_new_wish_before_the_plan_is_made_keeps_the_channel() -> None:
    wishes = live("a")
    wishes.leave("a")
    wishes.want("a")
    assert wishes.subscriptions.is_live("a")
    assert not wishes.subscriptions.begin()


def test_after_a_doubt_the_channel_is_asked_for_anew() -> None:
    """Trap 16: what is in flight for those who have left arrives in front of the answer."""
    wishes = live("a", "b")
    wishes.subscriptions.doubt("a")
    assert not wishes.subscriptions.is_live("a")
    assert wishes.subscriptions.is_live("b")
    wishes.touch("a")
    assert wishes.subscriptions.begin() == Plan(listen=("a",))
    wishes.subscriptions.acknowledge()
    assert wishes.subscriptions.is_live("a")
    wishes.subscriptions.doubt("a")
    wishes.leave("a")
    assert wishes.subscriptions.begin() == Plan(unlisten=("a",)), "the server still listens to it"


def test_a_doubt_about_what_is_not_acknowledged_says_nothing() -> None:
    wishes = live()
    wishes.subscriptions.doubt("a")
    wishes.touch("a")
    assert not wishes.subscriptions.begin()


def test_joining_and_leaving_go_in_one_plan() -> None:
    wishes = live("a")
    wishes.leave("a")
    wishes.want("b")
    assert wishes.subscriptions.begin() == Plan(listen=("b",), unlisten=("a",))


# -- refusals -------------------------------------------------------------------------------------


def test_one_channel_that_is_refused_is_named() -> None:
    wishes = live("a")
    wishes.want("bad")
    wishes.subscriptions.begin()
    assert wishes.subscriptions.refuse() == "bad"
    assert wishes.subscriptions.acknowledged == {"a"}
    assert not wishes.subscriptions.begin(), "asked for again only if somebody wants it again"
    wishes.touch("bad")
    assert wishes.subscriptions.begin() == Plan(listen=("bad",))


def test_of_a_refused_batch_each_is_asked_for_alone_and_before_anything_new() -> None:
    """Nothing of the batch was done, and nobody knows which one it was."""
    wishes = live("old")
    wishes.leave("old")
    wishes.want("a", "b")
    wishes.subscriptions.begin()
    assert wishes.subscriptions.refuse() is None
    wishes.want("new")
    assert wishes.subscriptions.begin() == Plan(unlisten=("old",))
    wishes.subscriptions.acknowledge()
    assert wishes.subscriptions.begin() == Plan(listen=("a",))
    assert wishes.subscriptions.refuse() == "a"
    assert wishes.subscriptions.begin() == Plan(listen=("b",))
    wishes.subscriptions.acknowledge()
    assert wishes.subscriptions.begin() == Plan(listen=("new",))
    wishes.subscriptions.acknowledge()
    assert wishes.subscriptions.acknowledged == {"b", "new"}


def test_suspects_that_nobody_wants_any_more_are_passed_over() -> None:
    """An empty plan would end the search, and whoever waits for the others would wait on."""
    wishes = live()
    wishes.want("a", "b", "c")
    wishes.subscriptions.begin()
    wishes.subscriptions.refuse()
    wishes.leave("a", "b")
    assert wishes.subscriptions.begin() == Plan(listen=("c",))
    assert wishes.forgotten == ["a", "b"]


def test_when_no_suspect_is_wanted_the_plan_is_for_what_was_touched() -> None:
    wishes = live()
    wishes.want("a", "b")
    wishes.subscriptions.begin()
    wishes.subscriptions.refuse()
    wishes.leave("a", "b")
    wishes.want("new")
    assert wishes.subscriptions.begin() == Plan(listen=("new",))


def test_after_a_refused_unlisten_the_server_may_or_may_not_listen() -> None:
    """So it is neither live nor forgotten: whoever wants it waits for a LISTEN."""
    wishes = live("a")
    wishes.leave("a")
    wishes.subscriptions.begin()
    assert wishes.subscriptions.refuse() == "a"
    assert not wishes.subscriptions.is_live("a")
    wishes.touch("a")
    assert wishes.subscriptions.begin() == Plan(unlisten=("a",)), "still to be left"
    assert wishes.forgotten == []
    wishes.subscriptions.refuse()
    wishes.want("a")
    assert wishes.subscriptions.begin() == Plan(listen=("a",))
    wishes.subscriptions.acknowledge()
    assert wishes.subscriptions.is_live("a")
    wishes.leave("a")
    wishes.subscriptions.begin()
    wishes.subscriptions.acknowledge()
    wishes.touch("a")
    wishes.subscriptions.begin()
    assert wishes.forgotten == ["a"], "no longer unsure"


# -- a link is lost -------------------------------------------------------------------------------


def test_with_the_link_everything_is_gone_and_the_next_plan_is_for_all() -> None:
    """Trap 3: what came during the outage is asked for together with the old channels."""
    wishes = live("a", "b")
    wishes.leave("b")
    wishes.subscriptions.begin()
    wishes.want("c")
    wishes.subscriptions.link_lost(["a", "b", "c"])
    assert wishes.subscriptions.acknowledged == frozenset()
    assert not wishes.subscriptions.is_live("a")
    assert wishes.subscriptions.begin() == Plan(listen=("a", "c"))
    assert wishes.forgotten == ["b"]


def test_suspects_and_doubts_end_with_the_link() -> None:
    wishes = live("a")
    wishes.leave("a")
    wishes.want("b")
    wishes.subscriptions.begin()
    wishes.subscriptions.refuse()
    wishes.subscriptions.link_lost(["a", "b"])
    assert wishes.subscriptions.begin() == Plan(listen=("b",))
    assert wishes.forgotten == ["a"]
