"""What persistent reservations may be: a model of SPC-4 5.12 that keeps every state which what was answered allows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, REGISTER_AND_IGNORE = range(7)  # SPC-4 table 215
ACTIONS = ("register", "reserve", "release", "clear", "preempt", "preempt and abort", "register and ignore")
KINDS = (5, 1, 3, 6, 7, 8)  # SPC-4 table 63
RESERVE_6, RELEASE_6 = 16, 17  # commands of their own (SPC-2 7.21, 7.18)
EXCLUSIVE, REGISTRANTS, EVERYONE = (3, 6, 8), (5, 6), (7, 8)
UNTOUCHING = ("none", "keys", "spared")  # what a command does to the medium that a persistent reservation lets pass
GOOD, CHECK, BUSY, CONFLICT = 0x00, 0x02, 0x08, 0x18


@dataclass(frozen=True, slots=True)
class State:
    """Registrations (initiator and key), the reservation's type and holder, and whether they outlive the process.

    `legacy` is the number of the nexus that holds RESERVE(6).
    """

    keys: frozenset[tuple[int, int]] = frozenset()
    kind: int | None = None
    holder: int | None = None
    lasting: bool = False
    legacy: int | None = None

    def key(self, who: int) -> int | None:
        """Return the key that an initiator is registered with."""
        return next((key for other, key in self.keys if other == who), None)

    def holds(self, who: int) -> bool:
        """Return whether an initiator holds the reservation."""
        if self.kind is None:
            return False
        return self.key(who) is not None if self.kind in EVERYONE else self.holder == who

    def allows(self, who: int, medium: str, nexus: int = 0) -> bool:
        """Return whether an initiator may read or write (SPC-4 table 66, SPC-2 table 12)."""
        if self.legacy is not None and medium != "spared" and (self.legacy != nexus or medium == "keys"):
            return False
        if self.kind is None or medium in UNTOUCHING or (medium == "read" and self.kind not in EXCLUSIVE):
            return True
        return self.holds(who) if self.kind in {1, 3} else self.key(who) is not None

    def with_key(self, who: int, key: int | None) -> State:
        """Return the state with another registration of `who`."""
        keys = {pair for pair in self.keys if pair[0] != who}
        return replace(self, keys=frozenset(keys | ({(who, key)} if key else set())))

    def order(self) -> tuple[list[tuple[int, int]], int, int, bool, int]:
        """Return what states are sorted by."""
        holder = -1 if self.holder is None else self.holder
        return sorted(self.keys), self.kind or 0, holder, self.lasting, self.legacy or 0

    def unreserved(self) -> State:
        """Return the state without a reservation."""
        return replace(self, kind=None, holder=None)


@dataclass(frozen=True, slots=True)
class Request:
    """A PERSISTENT RESERVE OUT, RESERVE(6) or RELEASE(6)."""

    number: int
    who: int
    action: int
    key: int
    new: int  # SERVICE ACTION RESERVATION KEY
    kind: int
    lasting: bool
    nexus: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """What a request came to: its status, and whose registrations a preemption took."""

    status: int
    victims: frozenset[int] = frozenset()


def carry_out(state: State, request: Request) -> tuple[State, Result]:
    """Return the state after a request, and its result."""
    who, action = request.who, request.action
    if action in {RESERVE_6, RELEASE_6}:
        return _legacy(state, request)
    if state.legacy is not None:  # whoever holds it (SPC-2 5.5.1)
        return state, Result(CONFLICT)
    known = state.key(who)
    if action in {REGISTER, REGISTER_AND_IGNORE}:
        if action == REGISTER and request.key != (known or 0):
            return state, Result(CONFLICT)
        held = state.holds(who)
        after = replace(state.with_key(who, request.new), lasting=request.lasting)
        if known is not None and not request.new and held and (state.kind not in EVERYONE or not after.keys):
            after = after.unreserved()
        return after, Result(GOOD)
    if known is None or request.key != known:
        return state, Result(CONFLICT)
    if action == RESERVE:
        if state.kind is not None:
            return state, Result(GOOD if state.holds(who) and state.kind == request.kind else CONFLICT)
        holder = None if request.kind in EVERYONE else who
        return replace(state, kind=request.kind, holder=holder), Result(GOOD)
    if action == RELEASE:
        if state.kind is None or not state.holds(who):
            return state, Result(GOOD)
        if state.kind != request.kind:
            return state, Result(CHECK)
        return state.unreserved(), Result(GOOD)
    if action == CLEAR:
        return replace(state.unreserved(), keys=frozenset()), Result(GOOD)
    return _preempt(state, request)


def _legacy(state: State, request: Request) -> tuple[State, Result]:
    """RESERVE(6) and RELEASE(6): a conflict while anybody is registered (SPC-2 5.5.1)."""
    reserving = request.action == RESERVE_6
    if state.keys or (reserving and state.legacy not in {None, request.nexus}):
        return state, Result(CONFLICT)
    if reserving:
        return replace(state, legacy=request.nexus), Result(GOOD)
    return replace(state, legacy=None) if state.legacy == request.nexus else state, Result(GOOD)


def _preempt(state: State, request: Request) -> tuple[State, Result]:
    """PREEMPT and PREEMPT AND ABORT (SPC-4 5.12.11.2.4, 5.12.11.2.5)."""
    who = request.who
    everyone = state.kind in EVERYONE
    if not request.new and not everyone:
        return state, Result(CHECK)
    gone = {other for other, key in state.keys if (other != who if not request.new else key == request.new)}
    if request.new and not gone:
        return state, Result(CONFLICT)
    takes = state.kind is not None and (not request.new if everyone else state.holder in gone)
    after = replace(state, keys=frozenset(pair for pair in state.keys if pair[0] not in gone - {who}))
    if takes:
        after = replace(after, kind=request.kind, holder=None if request.kind in EVERYONE else who)
    elif who in gone:
        after = after.with_key(who, None)
    if everyone and not after.keys:
        after = after.unreserved()
    return after, Result(GOOD, frozenset(gone - {who}))


Results = frozenset[tuple[int, Result]]


class Possible:
    """The states that a unit may be in, each with the results that requests still unanswered would have."""

    def __init__(self, states: Iterable[State] = (State(),)) -> None:
        self.pending: dict[int, Request] = {}
        self.full = False  # what is to be kept may not find room
        self.doomed: set[int] = set()  # nexuses that may be gone at any time
        self.resets = 0  # ... and of the unit: sent, and may be done at any time
        self.gone: set[int] = set()  # ... and those that are
        self.entries: set[tuple[State, Results]] = {(state, frozenset()) for state in states}

    @property
    def states(self) -> set[State]:
        """Return the states alone."""
        return {state for state, _ in self.entries}

    def likely(self) -> State:
        """Return one of the states, the same in every process: a set's order differs from one to another."""
        return min(self.states, key=State.order)

    def begin(self, request: Request) -> None:
        """A request was sent: from now on it may have been carried out."""
        self.pending[request.number] = request
        self.unfold()

    def unfold(self) -> None:
        """Add what every order of the unanswered requests can lead to."""
        todo = list(self.entries)
        while todo:
            state, results = todo.pop()
            if state.legacy is not None and (self.resets or state.legacy in self.doomed):
                self._add((replace(state, legacy=None), results), todo)
            done = {number for number, _ in results}
            for number, request in self.pending.items():
                if number in done:
                    continue
                outcomes = [carry_out(state, request)] if request.nexus not in self.gone else [(state, Result(GOOD))]
                if self.full:
                    outcomes.append((state, Result(CHECK)))
                for after, result in outcomes:
                    self._add((after, results | {(number, result)}), todo)

    def _add(self, entry: tuple[State, Results], todo: list[tuple[State, Results]]) -> None:
        if entry not in self.entries:
            self.entries.add(entry)
            todo.append(entry)

    def doom(self, nexus: int) -> None:
        """A nexus may lose what it holds, now or later."""
        self.doomed.add(nexus)
        self.unfold()

    def lost(self, nexus: int) -> None:
        """A nexus is gone, and RESERVE(6) with it."""
        self.gone.add(nexus)
        self._release({nexus})

    def reset_comes(self) -> None:
        """The unit will be reset, whoever holds it by then, now or later."""
        self.resets += 1
        self.unfold()

    def reset(self) -> None:
        """The unit was reset: nobody holds RESERVE(6) (SPC-2 5.5.1)."""
        self._release({state.legacy for state in self.states})

    def _release(self, whose: set[int | None]) -> None:
        self.entries = {
            (replace(state, legacy=None) if state.legacy in whose else state, results)
            for state, results in self.entries
        }
        self.unfold()

    def answered(self, number: int, status: int) -> frozenset[int] | None:
        """A request was answered: return whom it certainly preempted, or None if nothing explains the answer."""
        kept: set[tuple[State, Results]] = set()
        victims: frozenset[int] | None = None
        for state, results in self.entries:
            result = dict(results).get(number)
            # What kept the request from being carried out: a unit attention, or no room for its data.
            if (result is None and status in {CHECK, BUSY}) or (result is not None and result.status == status):
                kept.add((state, frozenset(pair for pair in results if pair[0] != number)))
                if result is not None:
                    victims = result.victims if victims is None else victims & result.victims
        if not kept:
            return None
        self.entries = kept
        del self.pending[number]
        return victims or frozenset()

    def might_take(self, number: int) -> frozenset[int]:
        """Return whose registrations a request that was not answered may have taken."""
        told = (result for _, results in self.entries for one, result in results if one == number)
        return frozenset().union(*(result.victims for result in told))

    def forget(self, number: int) -> None:
        """A request will not be answered: it was carried out, or it was not."""
        if self.pending.pop(number, None) is not None:
            self.entries = {
                (state, frozenset(pair for pair in results if pair[0] != number)) for state, results in self.entries
            }

    def restart(self) -> None:
        """The process died: what was kept is restored."""
        self.pending.clear()
        self.entries = {
            (replace(state, legacy=None) if state.lasting else State(), frozenset()) for state, _ in self.entries
        }
