"""Bounce buffers suit direct I/O, are one operation's at a time, and no more of them are kept than there may be."""

from __future__ import annotations

import mmap

import pytest

from tcmu_core.posix.bounce import KEPT, Bounces
from tcmu_core.posix.syscalls import address


@pytest.mark.parametrize("length", [0, 1, 512, 4096, 4097, 262144, 1 << 20, (1 << 20) + 512])
def test_it_begins_at_a_page_and_is_as_long_as_was_asked_for(length: int) -> None:
    bounce = Bounces().take(length)
    assert len(bounce.view) == length
    assert bounce.address % mmap.PAGESIZE == 0
    assert not length or bounce.address == address(bounce.view)


def test_two_that_are_in_use_share_nothing() -> None:
    bounces = Bounces()
    some = [bounces.take(length) for length in (512, 4096, 512, 8192, 4096)]
    for number, bounce in enumerate(some):
        bounce.fill([memoryview(bytes([number]) * len(bounce.view))])
    for number, bounce in enumerate(some):
        data = bytearray(len(bounce.view))
        bounce.empty([memoryview(data)])
        assert data == bytes([number]) * len(data)


def test_one_that_was_given_back_is_used_again_in_another_length() -> None:
    bounces = Bounces()
    first = bounces.take(4096)
    bounces.give(first)
    again = bounces.take(1024)
    assert again is first
    assert len(again.view) == 1024
    bounces.give(again)
    assert len(bounces.take(4096).view) == 4096


def test_what_is_free_is_bounded() -> None:
    bounces = Bounces()
    size = KEPT // 4
    some = [bounces.take(size) for _ in range(8)]
    for bounce in some:
        bounces.give(bounce)
    again = [bounces.take(size) for _ in range(8)]
    assert sum(bounce in some for bounce in again) == 4
