"""The states of a session: every move that there is, and that there is no other."""

from __future__ import annotations

import pytest

from tcmu_core.iscsi.session import MOVES, Event, State
from tests.iscsi.wire import logged_in

# What each event makes of WAITING, STALLED, PUMPING, LEAVING, ENDED and CLOSED; None: it can't happen there
TABLE = {
    Event.PUMP: (State.PUMPING, State.PUMPING, None, None, None, None),
    Event.REST: (None, None, State.WAITING, State.ENDED, None, State.CLOSED),
    Event.STALL: (State.STALLED, State.STALLED, State.STALLED, State.ENDED, None, State.CLOSED),
    Event.END: (State.ENDED, State.ENDED, State.LEAVING, State.LEAVING, State.ENDED, State.CLOSED),
    Event.CLOSE: (State.CLOSED,) * 6,
}


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", State)
def test_an_event_leads_where_the_table_says_or_is_an_error(event: Event, state: State) -> None:
    session = logged_in().session
    session.state = state
    to = TABLE[event][state]
    if to is None:
        with pytest.raises(KeyError):
            session.move(event)
    else:
        session.move(event)
        assert session.state is to


def test_nothing_leaves_closed() -> None:
    assert {moves.get(State.CLOSED, State.CLOSED) for moves in MOVES.values()} == {State.CLOSED}


def test_a_session_that_ends_in_the_pump_takes_nothing_more() -> None:
    wire = logged_in()
    wire.session.state = State.PUMPING
    wire.session.end("enough")
    assert wire.session.state is State.LEAVING
    wire.session.move(Event.REST)
    assert wire.session.state is State.ENDED
    assert wire.send(wire.initiator.read_10(0, 1)) == []


def test_the_first_reason_is_the_one_that_is_told() -> None:
    session = logged_in().session
    session.end("first")
    session.end("second")
    assert session.ended == "first"
