"""Secure EPT states and transitions against structures.md §8, and the invariants of the state machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swtdx.arch import sept
from swtdx.arch.leaves import BY_NAME
from tests.arch.vectors import words

#: How the reference shortens names.
_LONG = {
    "P_BLOCKEDW": "PENDING_BLOCKEDW",
    "P_EXP_BLOCKEDW": "PENDING_EXP_BLOCKEDW",
    "P_EXP_DIRTY": "PENDING_EXP_DIRTY",
    "P_EXP_DIRTY_BLOCKEDW": "PENDING_EXP_DIRTY_BLOCKEDW",
}
HPAS = st.integers(0, (1 << 40) - 1).map(lambda page: page << 12)


def test_states() -> None:
    expected = {_LONG.get(row[0], row[0]): row[1:] for row in words("sept_states.txt")}
    assert {state.name for state in sept.STATES} == set(expected)
    flags = (
        sept.TLB_TRACKING, sept.GUEST_READABLE, sept.GUEST_WRITABLE,
        sept.PENDING, sept.BLOCKED, sept.ACCEPTABLE,
    )  # fmt: skip
    for state in sept.STATES:
        code, public, marks = expected[state.name]
        assert (state.code, state.public) == (int(code, 16), int(public))
        assert "".join("Y" if state.flags & flag else "." for flag in flags) == marks, state.name


def test_states_are_told_apart() -> None:
    assert len({state.code for state in sept.STATES}) == len({state.public for state in sept.STATES}) == 16
    assert [state.index for state in sept.STATES] == list(range(16))
    for state in sept.STATES:
        assert sept.state_of(state.bits | 0x1234_5000) is state


#: structures.md §8.2: raw values.
def test_raw_values() -> None:
    assert sept.FREE_ENTRY == 0x80E0000000000000
    assert sept.leaf_entry(sept.MAPPED, 0x1234_5000) == 0x8000_0000_0000_00F7 | 0x1234_5000
    assert sept.leaf_entry(sept.PENDING_STATE, 0x1234_5000) == 0x8000_0000_0000_00F0 | 1 << 56 | 0x1234_5000
    assert sept.non_leaf_entry(0x1234_5000) == 0x8000_0000_1234_5007
    assert sept.block(sept.non_leaf_entry(0x5000), 1) == 1 << 63 | 1 << 55 | 0x5000


def test_what_the_host_sees() -> None:
    assert sept.architectural_view(sept.FREE_ENTRY) == 1 << 63
    leaf = sept.leaf_entry(sept.MAPPED, 0x5000) | 1 << 11 | 1 << 52  # locked, and the host waits
    assert sept.architectural_view(leaf) == sept.leaf_entry(sept.MAPPED, 0x5000)
    assert sept.architectural_view(sept.non_leaf_entry(0x5000)) == 7
    assert sept.info(sept.leaf_entry(sept.MAPPED, 0x5000), 1) == 1 | 4 << 8


@given(HPAS, st.sampled_from([sept.MAPPED, sept.PENDING_STATE]), st.integers(0, 2))
def test_blocking_and_unblocking_is_no_change(hpa: int, state: sept.SeptState, level: int) -> None:
    entry = sept.leaf_entry(state, hpa & -(1 << 21))
    blocked = sept.block(entry, level)
    assert sept.state_of(blocked).blocked
    assert not blocked & 7
    assert sept.unblock(blocked) == entry
    with pytest.raises(sept.SeptEntryError):
        sept.block(blocked, level)


@given(st.integers(0, (1 << 64) - 1))
def test_any_64_bits_are_an_entry_or_refused(raw: int) -> None:
    try:
        state = sept.state_of(raw)
    except sept.SeptEntryError:
        return
    assert raw & sept.STATE_MASK == state.bits
    assert sept.with_state(raw, state) == raw | 1 << 63


def test_transitions_start_where_their_leaf_allows_it() -> None:
    for transition in sept.TRANSITIONS:
        allowed = BY_NAME[transition.leaf].sept_states
        assert allowed is not None
        assert allowed >> transition.source.index & 1, transition


def test_every_state_can_be_left_and_reached() -> None:
    ends, starts = {t.target.name for t in sept.TRANSITIONS}, {t.source.name for t in sept.TRANSITIONS}
    names = {state.name for state in sept.STATES}
    assert starts == names
    assert ends == names


def test_what_the_guest_may_access_needs_tracking_or_is_exported() -> None:
    """No page may go while a TLB can still hold a translation to it."""
    for state in sept.STATES:
        if state.flags & sept.GUEST_WRITABLE:
            assert state.tracked
            assert state.flags & sept.GUEST_READABLE
        assert not (state.blocked and state.flags & (sept.GUEST_READABLE | sept.ACCEPTABLE))
        assert not (state.pending and state.flags & sept.GUEST_READABLE)


def test_pages_are_accepted_before_they_are_used() -> None:
    """AUG never leads to a page that the guest can access; only ACCEPT does, in a TD that runs."""
    for transition in sept.TRANSITIONS:
        if transition.leaf == "TDH.MEM.PAGE.AUG":
            assert not transition.target.flags & (sept.GUEST_READABLE | sept.GUEST_WRITABLE)
        if transition.source.pending and transition.target.flags & sept.GUEST_READABLE:
            assert transition.leaf == "TDG.MEM.PAGE.ACCEPT"
