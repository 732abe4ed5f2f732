"""Lists of buffers: every way to cut them agrees with cutting the bytes that they hold."""

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcmu_core.posix import ZEROS, Cursor, fill_zero, gather, scatter, skip, split, total, window

SIZES = st.lists(st.integers(0, 5), max_size=6)


def cut(sizes):
    """Buffers of these sizes that hold 0, 1, 2, ... from one to the next."""
    whole = memoryview(bytearray(range(sum(sizes))))
    return [whole[start:end] for start, end in pairwise([0, *accumulate(sizes)])]


def joined(buffers):
    return b"".join(buffers)


@given(SIZES, st.integers(0, 40))
def test_skip_leaves_what_comes_behind(sizes, count):
    buffers = cut(sizes)
    assert joined(skip(buffers, count)) == joined(buffers)[count:]


@given(SIZES, st.integers(0, 40))
def test_split_gives_both_parts(sizes, count):
    buffers = cut(sizes)
    first, rest = split(buffers, count)
    assert (joined(first), joined(rest)) == (joined(buffers)[:count], joined(buffers)[count:])


@given(SIZES, st.integers(0, 40), st.integers(0, 40))
def test_a_window_is_a_slice(sizes, start, count):
    buffers = cut(sizes)
    assert joined(window(buffers, start, count)) == joined(buffers)[start : start + count]


@given(SIZES, st.lists(st.integers(0, 7), max_size=8))
def test_a_cursor_hands_out_piece_after_piece(sizes, lengths):
    buffers, at = cut(sizes), 0
    cursor = Cursor(buffers)
    for length in lengths:
        if at + length > sum(sizes):
            with pytest.raises(IndexError):
                cursor.take(length)
            return
        assert joined(cursor.take(length)) == joined(buffers)[at : at + length]
        at += length


@given(SIZES)
def test_gather_and_scatter_are_inverse(sizes):
    buffers = cut(sizes)
    room = memoryview(bytearray(total(buffers) if buffers else 0))
    gather(buffers, room)
    assert room == joined(buffers)
    again = cut(sizes)
    fill_zero(again)
    scatter(room, again)
    assert joined(again) == joined(buffers)


def test_pieces_are_views_and_nothing_is_copied():
    buffers = cut([4, 4])
    for pieces in (skip(buffers, 3), split(buffers, 3)[1], window(buffers, 3, 5), Cursor(skip(buffers, 3)).take(5)):
        assert all(piece.obj is buffers[0].obj for piece in pieces)


def test_buffers_larger_than_the_stock_of_zeros_are_zeroed():
    buffer = bytearray(b"x" * (len(ZEROS) + 3))
    fill_zero([buffer])
    assert not any(buffer)
