"""A small PostgreSQL, some processes and every order in which they may act.

A state is a tuple; `steps` answers what may happen next, and `explore` goes through all of it. What
the pacemaker decides is decided by the real `core/pacemaker.py`. What `log/pacing.py`,
`log/wakes.py`, `log/tail.py` and the server do is modelled here, as little of it as matters:

- The follower lives in the first process. It is woken, and reads what is visible, in a step of its
  own. Nobody wakes it just because time goes by (the tail does, after a minute): the wake-ups alone
  have to suffice.
- What is told is heard at once, by all who listen; only reading takes its time.
- A silence is as long as it pleases: who believes in a pacemaker may try to take over at any time.
- A statement happens at once. One that has two effects in the code is two acts here, and a
  connection may be lost between any two acts.
- A snapshot is what PostgreSQL makes: it ends behind the newest transaction that has *ended*. One
  that runs and is newer than all that have ended is not among its running ones.
- Every notification is a transaction, and takes an id: `PreCommit_Notify` has one assigned.

Source: https://github.com/postgres/postgres/blob/REL_18_0/src/backend/storage/ipc/procarray.c
(`GetSnapshotData`) and `src/backend/commands/async.c` (`PreCommit_Notify`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, assert_never

from pgnotifybus.core.load import Belief
from pgnotifybus.core.pacemaker import REST, Pacemaker, Stage
from pgnotifybus.core.snapshot import Snapshot

NOBODY: Final = -1

# -- states ---------------------------------------------------------------------------------------


class Writer(NamedTuple):
    """A transaction that appends one event; it has its id from the beginning."""

    xid: int
    phase: Literal["begun", "quiet", "loud", "committed", "read"] = "begun"

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.phase in ("begun", "quiet", "loud")


class Session(NamedTuple):
    """What a process does as a pacemaker, over a connection of its own."""

    pacemaker: Pacemaker = REST
    done: int = 0
    """How many acts of the stage are done."""
    seen: Snapshot | None = None
    """Of the last look that was told."""
    found: Snapshot | None = None
    """Of a look that has found something, until that is told."""


NO_SESSION: Final = Session()


class Process(NamedTuple):
    """One process that has the log open."""

    life: Literal["to come", "here", "gone"] = "here"
    hears: bool = True
    belief: Belief = "asleep"
    unsure: bool = False
    session: Session = NO_SESSION


class State(NamedTuple):
    """Everything, at one moment."""

    to_write: int
    """How many writers have not begun yet."""
    processes: tuple[Process, ...]
    writers: tuple[Writer, ...] = ()
    """In the order of their ids; those that make no difference any more are left out."""
    office: int = NOBODY
    awake: int = NOBODY
    end: int = 1
    """Behind the newest transaction that has ended: the xmax of a snapshot."""
    next_xid: int = 1
    woken: bool = False
    deaths: int = 0
    """How many connections or processes may still die."""
    outages: int = 0
    """How often the first process may still lose the connection that listens."""
    wishes: int = 0
    """How often there may still be so much load that a pacemaker is wanted."""

    @property
    def quiescent(self) -> bool:
        """Whether nothing needs to happen any more."""
        return (
            not self.woken
            and not any(each.runs for each in self.writers)
            and all(
                each.life != "here"
                or (
                    each.session is NO_SESSION
                    and each.hears
                    and not each.unsure
                    and each.belief == "asleep"
                )
                for each in self.processes
            )
        )

    @property
    def strands(self) -> bool:
        """Whether there is an event of which the follower will not hear if nothing else happens.

        Either all is at rest; or there is a pacemaker, which looks for what is new, for as long as
        it pleases, but takes this one for old.
        """
        if self.woken or self.processes[0].life != "here" or not self.processes[0].hears:
            return False
        unread = [each.xid for each in self.writers if each.phase == "committed"]
        if not unread:
            return False
        if self.quiescent:
            return True
        return any(
            session.pacemaker.stage in (Stage.POLL, Stage.DRAIN)
            and session.found is None
            and session.seen is not None
            and any(session.seen.sees(xid) for xid in unread)
            for session in (each.session for each in self.processes)
        )

    def snapshot(self) -> Snapshot:
        """What a statement sees now."""
        running = [each.xid for each in self.writers if each.runs and each.xid < self.end]
        return Snapshot(self.end, tuple(running))

    def news(self, seen: Snapshot) -> bool:
        """Whether something is visible that was not so then."""
        return any(not (each.runs or seen.sees(each.xid)) for each in self.writers)

    def with_process(self, number: int, process: Process) -> State:
        """The state with one process changed."""
        before, after = self.processes[:number], self.processes[number + 1 :]
        return self._replace(processes=(*before, process, *after))

    def with_session(self, number: int, session: Session) -> State:
        """The state with the session of one process changed."""
        return self.with_process(number, self.processes[number]._replace(session=session))

    def with_writer(self, number: int, *writer: Writer) -> State:
        """The state with one writer changed, or left out."""
        before, after = self.writers[:number], self.writers[number + 1 :]
        return self._replace(writers=(*before, *writer, *after))

    def told(self, belief: Belief | None = None, *, stays: bool = True) -> State:
        """After a notification that wakes all, committed by the pacemaker."""
        heard = self.heard(belief, stays=stays)
        return heard._replace(next_xid=self.next_xid + 1, end=self.next_xid + 1)

    def heard(self, belief: Belief | None = None, *, stays: bool = True) -> State:
        """After a notification that wakes all has reached those who listen.

        Args:
            belief: What it says of the pacemaker.
            stays: Whether those who are unsure stay so.
        """
        state = self
        if belief is not None:
            state = state._replace(
                processes=tuple(
                    each._replace(belief=belief, unsure=each.unsure and stays)
                    if each.life == "here" and each.hears
                    else each
                    for each in self.processes
                )
            )
        follower = state.processes[0]
        if follower.life == "here" and follower.hears:
            state = state._replace(woken=True)
        return state

    def unlocked(self, number: int) -> State:
        """After the locks of a connection are gone with it."""
        return self._replace(
            office=NOBODY if self.office == number else self.office,
            awake=NOBODY if self.awake == number else self.awake,
        )

    def canonical(self) -> State:
        """The same, without what makes no difference.

        Of transaction ids only the order matters. An event matters no more once it was read and
        whoever looks for news has seen it.
        """
        state = self
        snapshots = [
            snapshot
            for process in self.processes
            if process.session is not NO_SESSION
            for snapshot in (process.session.seen, process.session.found)
            if snapshot is not None
        ]
        for each in self.writers:
            if each.phase == "read" and all(snapshot.sees(each.xid) for snapshot in snapshots):
                writers = tuple(other for other in state.writers if other is not each)
                state = state._replace(writers=writers)
        numbers = {state.end, state.next_xid}
        numbers.update(each.xid for each in state.writers)
        for snapshot in snapshots:
            numbers.add(snapshot.end)
            numbers.update(snapshot.running)
        for process in state.processes:
            numbers.update(process.session.pacemaker.waiting)
        if state.next_xid == len(numbers):
            return state
        return state._ranked({number: rank for rank, number in enumerate(sorted(numbers), 1)})

    def _ranked(self, rank: Mapping[int, int]) -> State:
        def ranked(snapshot: Snapshot | None) -> Snapshot | None:
            if snapshot is None:
                return None
            return Snapshot(rank[snapshot.end], tuple(rank[xid] for xid in snapshot.running))

        def renumbered(session: Session) -> Session:
            waiting = frozenset(rank[xid] for xid in session.pacemaker.waiting)
            return session._replace(
                pacemaker=session.pacemaker._replace(waiting=waiting),
                seen=ranked(session.seen),
                found=ranked(session.found),
            )

        return self._replace(
            writers=tuple(each._replace(xid=rank[each.xid]) for each in self.writers),
            processes=tuple(
                each
                if each.session is NO_SESSION
                else each._replace(session=renumbered(each.session))
                for each in self.processes
            ),
            end=rank[self.end],
            next_xid=rank[self.next_xid],
        )


# -- what may be done wrong -----------------------------------------------------------------------

Act = Literal[
    "try office",
    "look",
    "tell awake",
    "lock awake",
    "poll",
    "unlock awake",
    "tell draining",
    "mark",
    "tell asleep",
    "unlock office",
]

ACTS: Final[Mapping[Stage, tuple[Act, ...]]] = {
    Stage.ELECT: ("try office",),
    Stage.LOOK: ("look",),
    Stage.ANNOUNCE: ("tell awake",),
    Stage.ACQUIRE: ("lock awake",),
    Stage.POLL: ("poll",),
    Stage.RELEASE: ("unlock awake", "tell draining"),
    Stage.MARK: ("mark",),
    Stage.DRAIN: ("poll",),
    Stage.RESIGN: ("tell asleep", "unlock office"),
}
"""What `log/pacing.py` does in each stage, statement by statement."""


@dataclass(frozen=True)
class Rules:
    """How the processes behave; by default as the code does."""

    rest: Pacemaker = REST
    """Who stands for office under load."""
    successor: Pacemaker | None = None
    """Who takes over, if it is another."""
    acts: Mapping[Stage, tuple[Act, ...]] = field(default_factory=lambda: ACTS)
    ambitious: frozenset[int] = frozenset({1})
    """The processes that may be pacemakers under load; all others only take over."""
    takes_over: bool = True
    """Whether a silent pacemaker is replaced."""
    newcomer_drains: bool = True
    """Whether a process that may have missed something drains."""
    stays_unsure: bool = True
    """Whether it stays unsure until a run of its own has come through, or it hears better."""


# -- steps ----------------------------------------------------------------------------------------

Step = tuple[str, State]


def steps(state: State, rules: Rules) -> Iterator[Step]:
    """All that may happen next."""
    if state.to_write:
        writers = (*state.writers, Writer(state.next_xid))
        yield (
            f"writer {len(state.writers)} begins",
            state._replace(
                to_write=state.to_write - 1, writers=writers, next_xid=state.next_xid + 1
            ),
        )
    for number in range(len(state.writers)):
        yield from _writer_steps(state, number)
    for number, process in enumerate(state.processes):
        match process.life:
            case "to come":
                yield f"process {number} comes", _come(state, number, process)
            case "here":
                yield from _process_steps(state, number, process, rules)
            case "gone":
                pass
            case never:
                assert_never(never)
    if state.woken:
        writers = tuple(
            each if each.runs else each._replace(phase="read") for each in state.writers
        )
        yield "the follower reads", state._replace(woken=False, writers=writers)


def _writer_steps(state: State, number: int) -> Iterator[Step]:
    writer = state.writers[number]
    name = f"writer {number}"
    match writer.phase:
        case "begun":
            phase: Literal["quiet", "loud"] = "loud" if state.awake == NOBODY else "quiet"
            yield f"{name} is {phase}", state.with_writer(number, writer._replace(phase=phase))
        case "quiet" | "loud":
            ended = state._replace(end=max(state.end, writer.xid + 1))
            yield f"{name} rolls back", ended.with_writer(number)
            committed = ended.with_writer(number, writer._replace(phase="committed"))
            if writer.phase == "loud":
                committed = committed.heard()
            yield f"{name} commits, {writer.phase}", committed
        case "committed" | "read":
            pass
        case never:
            assert_never(never)


def _come(state: State, number: int, process: Process) -> State:
    """A process listens, and believes what it does without having heard anything."""
    come = state.with_process(number, process._replace(life="here", hears=True, unsure=True))
    return come._replace(woken=state.woken or number == 0)


def _process_steps(state: State, number: int, process: Process, rules: Rules) -> Iterator[Step]:
    if process.session is NO_SESSION:
        yield from _candidates(state, number, process, rules)
    else:
        yield from _acts(state, number, process.session, rules)
    if not process.hears:
        yield f"process {number} listens again", _come(state, number, process)
    elif number == 0 and state.outages:
        deaf = state.with_process(number, process._replace(hears=False))
        yield f"process {number} is deaf", deaf._replace(outages=state.outages - 1)
    if state.deaths:
        dying = state.unlocked(number)._replace(deaths=state.deaths - 1)
        if process.session is not NO_SESSION:
            lost = dying.with_session(number, NO_SESSION)
            yield f"process {number} loses its connection as a pacemaker", lost
        if number:
            gone = Process("gone", hears=False)
            yield f"process {number} dies", dying.with_process(number, gone)


def _candidates(state: State, number: int, process: Process, rules: Rules) -> Iterator[Step]:
    """Why a process stands for office, see `Pacing._wanted`."""

    def standing(pacemaker: Pacemaker, *, drain_only: bool) -> State:
        session = Session(pacemaker.elect(drain_only=drain_only))
        unsure = process.unsure and rules.stays_unsure
        return state.with_process(number, process._replace(session=session, unsure=unsure))

    if process.unsure:
        if rules.newcomer_drains:
            candidate = standing(rules.rest, drain_only=True)
            yield f"process {number} stands, unsure", candidate
        else:
            sure = state.with_process(number, process._replace(unsure=False))
            yield f"process {number} does not care", sure
        return
    if process.belief != "asleep" and rules.takes_over:
        candidate = standing(rules.successor or rules.rest, drain_only=False)
        yield f"process {number} stands, as it hears nothing", candidate
    if state.wishes and process.belief != "awake" and number in rules.ambitious:
        candidate = standing(rules.rest, drain_only=False)
        yield f"process {number} stands, under load", candidate._replace(wishes=state.wishes - 1)


def _acts(state: State, number: int, session: Session, rules: Rules) -> Iterator[Step]:
    """What the pacemaker does next, see `Pacing._cycle`."""
    pacemaker = session.pacemaker
    acts = rules.acts[pacemaker.stage]
    act = acts[session.done]
    name = f"process {number}: {act}"
    if pacemaker.stage is Stage.RESIGN and act == "tell asleep" and not pacemaker.announced:
        state_after, session_after = state, session
    elif act == "poll":
        yield from _poll(state, number, session, rules)
        return
    else:
        if pacemaker.stage not in (Stage.ELECT, Stage.RESIGN):
            assert state.office == number, "two are in office"
        match act:
            case "try office":
                got = state.office == NOBODY
                elected = session._replace(pacemaker=pacemaker.elected(got))
                after = state._replace(office=number) if got else state
                after = after.with_session(number, elected if got else NO_SESSION)
                yield name + ("" if got else ", in vain"), after
                return
            case "look":
                state_after, session_after = state, session._replace(seen=state.snapshot())
            case "tell awake":
                state_after, session_after = (
                    state.told("awake", stays=not rules.stays_unsure),
                    session,
                )
            case "lock awake":
                if state.awake != NOBODY:
                    assert state.awake != number, "it takes its own lock once more"
                    return
                state_after, session_after = state._replace(awake=number), session
            case "unlock awake":
                released = state._replace(awake=NOBODY) if state.awake == number else state
                state_after, session_after = released, session
            case "tell draining":
                state_after, session_after = (
                    state.told("draining", stays=not rules.stays_unsure),
                    session,
                )
            case "mark":
                state_after, session_after = _mark(state, session)
            case "tell asleep":
                state_after, session_after = (
                    state.told("asleep", stays=not rules.stays_unsure),
                    session,
                )
            case "unlock office":
                state_after, session_after = state._replace(office=NOBODY), session
            case never:
                assert_never(never)
    session_after = session_after._replace(done=session.done + 1)
    if session_after.done == len(acts):
        session_after = session_after._replace(
            pacemaker=_finished(session_after.pacemaker, state), done=0
        )
    if session_after.pacemaker.stage is Stage.REST:
        session_after = NO_SESSION
    process = state_after.processes[number]
    if session_after is NO_SESSION or pacemaker.stage is Stage.ACQUIRE:
        process = process._replace(unsure=False)
    yield name, state_after.with_process(number, process._replace(session=session_after))


def _finished(pacemaker: Pacemaker, state: State) -> Pacemaker:
    match pacemaker.stage:
        case Stage.LOOK:
            return pacemaker.looked()
        case Stage.ANNOUNCE:
            return pacemaker.announcing()
        case Stage.ACQUIRE:
            return pacemaker.acquired()
        case Stage.RELEASE:
            return pacemaker.released()
        case Stage.MARK:
            return pacemaker.marked(state.snapshot().running)
        case Stage.RESIGN:
            return pacemaker.resigned()
        case Stage.REST | Stage.ELECT | Stage.POLL | Stage.DRAIN:
            raise AssertionError(pacemaker.stage)
        case never:
            assert_never(never)


def _mark(state: State, session: Session) -> tuple[State, Session]:
    if session.seen is None:
        return state, session._replace(seen=state.snapshot())
    return state, session


def _poll(state: State, number: int, session: Session, rules: Rules) -> Iterator[Step]:
    """Look, and then tell what was found; two acts only if there is something to tell."""
    assert state.office == number, "two are in office"
    assert session.seen is not None
    if session.found is None and state.news(session.seen):
        found = session._replace(found=state.snapshot())
        yield f"process {number}: poll, and finds something", state.with_session(number, found)
        return
    if session.found is None:
        now, name = state.snapshot(), f"process {number}: poll"
    else:
        now, name = session.found, f"process {number}: tell what it found"
        belief: Belief = "awake" if session.pacemaker.stage is Stage.POLL else "draining"
        state = state.told(belief, stays=not rules.stays_unsure)
    pacemaker = session.pacemaker
    # (what it becomes, whether that takes a wish)
    becomes: list[tuple[str, Pacemaker, int]]
    if pacemaker.stage is Stage.POLL:
        becomes = [
            ("", pacemaker.polled(sleepy=False), 0),
            (", sleepy", pacemaker.polled(sleepy=True), 0),
        ]
    else:
        becomes = [("", pacemaker.drained(now, wanted=False), 0)]
        if state.wishes:
            becomes.append((", wanted again", pacemaker.drained(now, wanted=True), 1))
    for how, after, wishes in becomes:
        polled = session._replace(pacemaker=after, seen=now, found=None)
        yield name + how, state.with_session(number, polled)._replace(wishes=state.wishes - wishes)


# -- exploring ------------------------------------------------------------------------------------


class Explored(NamedTuple):
    """What came out."""

    states: int
    quiescent: int
    stranded: list[str] | None
    """What happened until an event was stranded, in as few steps as possible."""
    stuck: list[str] | None
    """What happened until there was no way to come to rest."""
    quiet: int
    """In how many states a writer has kept quiet and not ended."""

    def __str__(self) -> str:
        text = f"{self.states} states, {self.quiescent} of them quiescent"
        for name, trace in (("stranded", self.stranded), ("stuck", self.stuck)):
            if trace is not None:
                text += f"; {name}:\n  " + "\n  ".join(trace)
        return text


def explore(start: State, rules: Rules | None = None, *, to_the_end: bool = True) -> Explored:
    """Go through all that may happen, breadth first.

    Args:
        start: Where to begin.
        rules: How the processes behave; as the code does, if None.
        to_the_end: Whether to go on once an event is stranded, and to look for dead ends.
    """
    rules = rules or Rules()
    ids: dict[State, int] = {start: 0}
    came_from: list[tuple[int, str]] = [(NOBODY, "")]
    before: list[list[int]] = [[]]
    queue = deque([start])
    quiescent: list[int] = []
    stranded: list[str] | None = None
    quiet = 0

    def trace(number: int) -> list[str]:
        names: list[str] = []
        while number:
            number, name = came_from[number]
            names.append(name)
        return names[::-1]

    while queue:
        state = queue.popleft()
        here = ids[state]
        quiet += any(each.phase == "quiet" for each in state.writers)
        if state.quiescent:
            quiescent.append(here)
        if stranded is None and state.strands:
            stranded = trace(here)
            if not to_the_end:
                break
        for name, successor in steps(state, rules):
            after = successor.canonical()
            number = ids.get(after)
            if number is None:
                number = ids[after] = len(came_from)
                came_from.append((here, name))
                before.append([])
                queue.append(after)
            before[number].append(here)

    stuck: list[str] | None = None
    if stranded is None or to_the_end:
        comes_to_rest = bytearray(len(came_from))
        waiting = list(quiescent)
        for number in waiting:
            comes_to_rest[number] = 1
        while waiting:
            for number in before[waiting.pop()]:
                if not comes_to_rest[number]:
                    comes_to_rest[number] = 1
                    waiting.append(number)
        first = comes_to_rest.find(0)
        stuck = trace(first) if first >= 0 else None
    return Explored(len(came_from), len(quiescent), stranded, stuck, quiet)
