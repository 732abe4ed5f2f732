"""Netlink messages, byte by byte as the kernel makes them (genetlink: nlmsghdr, genlmsghdr, attributes)."""

from __future__ import annotations

import errno
import struct

import pytest

from tcmu_core.disk.device import Change
from tcmu_core.kernel.abi import Netlink
from tcmu_core.kernel.netlink import NetlinkError, Request, attributes, family_of, parse, reply
from tcmu_core.kernel.uio import UioName

FAMILY = 30
DEVICE, MINOR, PAD, DEV_CFG, DEV_SIZE, WRITECACHE, CMD_STATUS, DEVICE_ID = 1, 2, 3, 4, 5, 6, 7, 8


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def event(command: int, *extra: bytes, version: int = 2, name: bytes = b"tcm-user/1/test/file//tmp/x") -> bytes:
    body = struct.pack("=BBH", command, version, 0)
    body += attribute(DEVICE, name + b"\0") + attribute(MINOR, struct.pack("=I", 3))
    body += attribute(DEVICE_ID, struct.pack("=I", 7)) + b"".join(extra)
    return struct.pack("=IHHII", 16 + len(body), FAMILY, 0, 0, 0) + body


def test_an_added_device() -> None:
    (request,) = parse(event(1))
    assert request == Request(Netlink.ADDED_DEVICE, 3, 7, UioName(1, "test", "file//tmp/x"))
    assert (request.name.subtype, request.name.cfgstring) == ("file", "/tmp/x")


def test_a_removed_device() -> None:
    (request,) = parse(event(2))
    assert request.kind is Netlink.REMOVED_DEVICE


@pytest.mark.parametrize(
    ("extra", "change"),
    [
        (attribute(DEV_SIZE, struct.pack("=Q", 1 << 40)), Change(size=1 << 40)),
        (attribute(PAD, b"") + attribute(DEV_SIZE, struct.pack("=Q", 0)), Change(size=0)),
        (attribute(DEV_CFG, b"file//tmp/y\n\0"), Change(cfgstring="file//tmp/y")),
        (attribute(WRITECACHE, b"\x00"), Change(write_cache=False)),
        (attribute(WRITECACHE, b"\x01"), Change(write_cache=True)),
    ],
)
def test_a_reconfiguration_says_what_is_to_change(extra: bytes, change: Change) -> None:
    (request,) = parse(event(3, extra))
    assert request.change == change


def test_several_messages_in_one_datagram() -> None:
    assert [request.kind for request in parse(event(1) + event(2))] == [1, 2]


def test_an_old_kernel_wants_no_reply() -> None:
    (request,) = parse(event(1, version=1))
    assert not request.wants_reply


def test_what_is_not_ours_is_passed_over() -> None:
    assert list(parse(event(1, name=b"some other driver"))) == []
    assert list(parse(event(99))) == []


@pytest.mark.parametrize(("kind", "done"), [(1, 4), (2, 5), (3, 6)])
def test_a_reply_carries_the_status_and_the_device(kind: int, done: int) -> None:
    (request,) = parse(event(kind, attribute(WRITECACHE, b"\x01")))
    data = reply(request, -errno.ENOSPC, FAMILY)
    length, family, flags, _, _, command, version = struct.unpack_from("=IHHIIBB", data)
    assert (length, family, flags, command, version) == (len(data), FAMILY, 1, done, 2)
    assert data[20:] == attribute(CMD_STATUS, struct.pack("=i", -errno.ENOSPC)) + attribute(
        DEVICE_ID, struct.pack("=I", 7)
    )


def test_the_kernels_refusal_of_a_reply_is_an_error() -> None:
    refused = struct.pack("=IHHIIi", 36, 2, 0, 1, 0, -errno.EPERM) + event(4)[:16]
    with pytest.raises(NetlinkError, match="not permitted"):
        list(parse(refused))


def family(*groups: bytes) -> bytes:
    """Return an answer to CTRL_CMD_GETFAMILY."""
    body = struct.pack("=BBH", 1, 2, 0) + attribute(2, b"TCM-USER\0") + attribute(1, struct.pack("=H", FAMILY))
    nested = b"".join(attribute(0x8000 | number, group) for number, group in enumerate(groups, 1))  # NLA_F_NESTED
    return body + attribute(0x8007, nested)


def test_the_family_and_its_group_are_found_by_name() -> None:
    other = attribute(2, struct.pack("=I", 7)) + attribute(1, b"other\0")
    config = attribute(2, struct.pack("=I", 9)) + attribute(1, b"config\0")
    assert family_of(family(other, config)) == (FAMILY, 9)
    with pytest.raises(NetlinkError, match="has no group 'config'"):
        family_of(family(other))


def test_what_was_cut_off_is_no_message_and_no_attribute() -> None:
    whole = event(1)
    for length in range(len(whole)):
        assert list(parse(whole[:length])) == []
    assert attributes(attribute(1, b"abcd") + b"\x09") == {1: b"abcd"}
    assert attributes(struct.pack("=HH", 3, 1)) == {}
    assert attributes(struct.pack("=HH", 9, 1) + b"abcd") == {}
