"""TCM-user's generic netlink family: the kernel's requests about devices, and our answers.

A message is `struct nlmsghdr`, `struct genlmsghdr` and attributes (linux/netlink.h, linux/genetlink.h), all of the
machine's own byte order, each attribute padded to a multiple of four bytes.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tcmu_core.disk.device import Change
from tcmu_core.errors import TcmuError
from tcmu_core.kernel import abi
from tcmu_core.kernel.abi import Attribute, Netlink
from tcmu_core.kernel.uio import UioName

NETLINK_GENERIC = 16  # linux/netlink.h
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
NLMSG_ERROR = 2
NLM_F_REQUEST = 1
NLM_F_ACK = 4
NLMSGHDR = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
GENLMSGHDR = struct.Struct("=BBH")  # command, version, reserved
NLATTR = struct.Struct("=HH")  # length with this header, type
NLA_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

GENL_ID_CTRL = 16  # linux/genetlink.h: the family that knows the families
CTRL_CMD_GETFAMILY = 3
CTRL_ATTR_FAMILY_ID = 1
CTRL_ATTR_FAMILY_NAME = 2
CTRL_ATTR_VERSION = 3
CTRL_ATTR_MCAST_GROUPS = 7
CTRL_ATTR_MCAST_GRP_NAME = 1
CTRL_ATTR_MCAST_GRP_ID = 2

RECEIVE_BUFFER = 1 << 20
LARGEST = 65536
TIMEOUT = 10.0  # seconds for an answer of the kernel

_DONE = {
    Netlink.ADDED_DEVICE: Netlink.ADDED_DEVICE_DONE,
    Netlink.REMOVED_DEVICE: Netlink.REMOVED_DEVICE_DONE,
    Netlink.RECONFIG_DEVICE: Netlink.RECONFIG_DEVICE_DONE,
}


class NetlinkError(TcmuError):
    """The kernel's netlink family is missing or refuses us."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the kernel asks: a device was added, removed, or is to take `change`."""

    kind: Netlink
    minor: int
    device_id: int
    name: UioName
    change: Change | None = None
    wants_reply: bool = True


def parse(data: bytes) -> Iterator[Request]:
    """Yield the requests in a datagram; raises `NetlinkError` for the kernel's refusal of something we sent."""
    for kind, body in _messages(data):
        if kind == NLMSG_ERROR:
            code = _error_code(body)
            if code:
                raise NetlinkError(f"the kernel refused a reply: {os.strerror(code)}")
            continue
        request = _request(body) if len(body) >= GENLMSGHDR.size else None
        if request is not None:
            yield request


def _request(body: bytes) -> Request | None:
    command, version, _ = GENLMSGHDR.unpack_from(body)
    if command not in _DONE:
        return None
    found = attributes(body[GENLMSGHDR.size :])
    name = UioName.parse(_text(found.get(Attribute.DEVICE, b"")))
    if name is None or Attribute.MINOR not in found:
        return None
    change = None
    if command == Netlink.RECONFIG_DEVICE:
        size, config, cache = (
            found.get(kind) for kind in (Attribute.DEV_SIZE, Attribute.DEV_CFG, Attribute.WRITECACHE)
        )
        change = Change(
            size=None if size is None else _number(size),
            cfgstring=None if config is None else _text(config).rstrip("\n"),
            write_cache=None if cache is None else bool(_number(cache)),
        )
    return Request(
        kind=Netlink(command),
        minor=_number(found[Attribute.MINOR]),
        device_id=_number(found.get(Attribute.DEVICE_ID, b"")),
        name=name,
        change=change,
        wants_reply=version > 1,
    )


def reply(request: Request, status: int, family: int) -> bytes:
    """Return the answer to `request`: `status` is 0 or a negative errno."""
    return _message(
        family,
        _DONE[request.kind],
        abi.FAMILY_VERSION,
        NLM_F_REQUEST,
        (Attribute.CMD_STATUS, struct.pack("=i", status)),
        (Attribute.DEVICE_ID, struct.pack("=I", request.device_id)),
    )


def _message(family: int, command: int, version: int, flags: int, *pairs: tuple[int, bytes]) -> bytes:
    body = GENLMSGHDR.pack(command, version, 0)
    for kind, value in pairs:
        body += NLATTR.pack(NLATTR.size + len(value), kind) + value + bytes(-len(value) & 3)
    return NLMSGHDR.pack(NLMSGHDR.size + len(body), family, flags, 1, 0) + body


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and body of the messages in a datagram."""
    at = 0
    while at + NLMSGHDR.size <= len(data):
        length, kind, *_ = NLMSGHDR.unpack_from(data, at)
        if not NLMSGHDR.size <= length <= len(data) - at:
            return
        yield kind, data[at + NLMSGHDR.size : at + length]
        at += (length + 3) & ~3


def attributes(data: bytes) -> Mapping[int, bytes]:
    """Return the attributes in `data` by type."""
    found = {}
    at = 0
    while at + NLATTR.size <= len(data):
        length, kind = NLATTR.unpack_from(data, at)
        if not NLATTR.size <= length <= len(data) - at:
            break
        found[kind & NLA_TYPE_MASK] = data[at + NLATTR.size : at + length]
        at += (length + 3) & ~3
    return found


def _number(value: bytes) -> int:
    return int.from_bytes(value, abi.BYTE_ORDER)


def _text(value: bytes) -> str:
    return value.split(b"\0", 1)[0].decode(errors="replace")


def _error_code(body: bytes) -> int:
    """Return the errno of an NLMSG_ERROR: the s32 behind the header, negative."""
    return -int.from_bytes(body[:4], abi.BYTE_ORDER, signed=True)


class NetlinkSocket:
    """Hears the kernel's requests (`receive` when `fileno` is readable) and answers them (`reply`).

    Raises:
        NetlinkError: the family is not there, or replying is not allowed.
    """

    def __init__(self) -> None:
        try:
            self.family, group = _find_family()
            self._socket = _open()
        except OSError as error:
            raise NetlinkError(f"netlink: {error.strerror or error}") from error
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._socket.fileno()

    def set_features(self, answers: bool = True) -> bool:
        """Tell the kernel whether anybody answers its requests; False for a kernel that does not know of answers."""
        feature = (Attribute.SUPP_KERN_CMD_REPLY, bytes([answers]))
        _, body = _asked(
            _message(self.family, Netlink.SET_FEATURES, abi.FAMILY_VERSION, NLM_F_REQUEST | NLM_F_ACK, feature)
        )
        code = _error_code(body)
        if code in (errno.EOPNOTSUPP, errno.EINVAL):
            return False
        if code:
            hint = " (it needs CAP_NET_ADMIN)" if code in (errno.EPERM, errno.EACCES) else ""
            raise NetlinkError(f"the kernel refuses SET_FEATURES: {os.strerror(code)}{hint}")
        return True

    def receive(self) -> list[Request]:
        """Return what has arrived.

        Raises:
            NetlinkError: the kernel refused a reply of ours.
            OSError: ENOBUFS when requests were lost.
        """
        requests: list[Request] = []
        while True:
            try:
                data = self._socket.recv(LARGEST)
            except BlockingIOError:
                return requests
            requests += parse(data)

    def reply(self, request: Request, status: int) -> None:
        """Answer `request` with 0 or a negative errno."""
        if request.wants_reply:
            self._socket.send(reply(request, status, self.family))

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()


def _open() -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_GENERIC)
    made.bind((0, 0))
    return made


def _asked(message: bytes) -> tuple[int, bytes]:
    """Send one message to the kernel; return type and body of its answer."""
    with _open() as control:
        control.settimeout(TIMEOUT)
        control.send(message)
        answer = next(_messages(control.recv(LARGEST)), None)
    if answer is None:
        raise NetlinkError("the kernel's answer holds no message")
    return answer


def family_version() -> int:
    """Ask the kernel for the version of the family: from 2 on it takes answers. Anybody may ask; nothing changes.

    Raises:
        NetlinkError, OSError: there is none, or no netlink.
    """
    return _number(attributes(_ask_family()[GENLMSGHDR.size :]).get(CTRL_ATTR_VERSION, b""))


def _find_family() -> tuple[int, int]:
    """Return the family's number and that of its multicast group."""
    return family_of(_ask_family())


def _ask_family() -> bytes:
    """Return the kernel's answer to CTRL_CMD_GETFAMILY."""
    name = (CTRL_ATTR_FAMILY_NAME, abi.FAMILY.encode() + b"\0")
    kind, body = _asked(_message(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, 1, NLM_F_REQUEST, name))
    if kind == NLMSG_ERROR:
        raise NetlinkError(
            f"the kernel has no netlink family {abi.FAMILY}: {os.strerror(_error_code(body))}; "
            "is the module target_core_user loaded?"
        )
    return body


def family_of(body: bytes) -> tuple[int, int]:
    """Return what an answer to CTRL_CMD_GETFAMILY says: the family's number and its multicast group's."""
    found = attributes(body[GENLMSGHDR.size :])
    for entry in attributes(found.get(CTRL_ATTR_MCAST_GROUPS, b"")).values():
        group = attributes(entry)
        if _text(group.get(CTRL_ATTR_MCAST_GRP_NAME, b"")) == abi.MULTICAST_GROUP:
            return _number(found[CTRL_ATTR_FAMILY_ID]), _number(group[CTRL_ATTR_MCAST_GRP_ID])
    raise NetlinkError(f"the netlink family {abi.FAMILY} has no group {abi.MULTICAST_GROUP!r}")
