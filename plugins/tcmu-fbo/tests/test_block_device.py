"""Block devices as discs: loop devices, which need root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BLOCK = 2048


def block(number: int) -> bytes:
    return number.to_bytes(8, "big") * (BLOCK // 8)


def cdb10(code: int, lba: int, count: int, flags: int = 0) -> bytes:
    return bytes([code, flags]) + lba.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"


@pytest.fixture
def loop_device(image: Callable[..., Path]) -> Iterator[str]:
    """Attach an image to a loop device: of 100 blocks and one sector of 512 bytes."""
    path = image(blocks=100, extra=512)
    attach = ["losetup", "--find", "--show", str(path)]
    device = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
    yield device
    subprocess.run(["losetup", "--detach", device], check=True)


def test_a_block_device_is_a_disc(bench: Callable[..., Any], loop_device: str) -> None:
    drive = bench(f"ro/{loop_device}")
    assert drive.drive.medium.blocks == 101
    assert drive.good(cdb10(0x28, 99, 2), room=2 * BLOCK) == block(99) + block(100)[:512] + bytes(BLOCK - 512)
    drive.close()


def test_a_writable_block_device_has_its_whole_blocks(bench: Callable[..., Any], loop_device: str) -> None:
    drive = bench(loop_device)
    assert drive.drive.medium.blocks == 100
    drive.good(cdb10(0x2A, 99, 1, 0x08), block(7))
    assert drive.good(cdb10(0x28, 99, 1), room=BLOCK) == block(7)
    drive.close()


def test_a_format_of_a_block_device_writes_zeros(bench: Callable[..., Any], loop_device: str) -> None:
    drive = bench(loop_device)
    drive.good("04 11 00 0000 00", bytes.fromhex("00000008 00000064 00 000800"))
    assert drive.good(cdb10(0x28, 0, 100), room=100 * BLOCK) == bytes(100 * BLOCK)
    drive.close()


def test_a_block_device_that_belongs_to_somebody_is_not_taken_for_writing(
    bench: Callable[..., Any], loop_device: str
) -> None:
    owner = os.open(loop_device, os.O_RDWR | os.O_EXCL)
    try:
        with pytest.raises(OSError, match="busy"):
            bench(loop_device)
        bench(f"ro/{loop_device}").close()
    finally:
        os.close(owner)
