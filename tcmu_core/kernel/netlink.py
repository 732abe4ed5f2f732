"""TCM-user's generic netlink family: the kernel's requests about devices, and our answers.

Messages are packed and unpacked by pyroute2; the sockets are our own, because the supervisor waits on its own loop.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR, genlmsg
from pyroute2.netlink.generic import CTRL_CMD_GETFAMILY, GENL_ID_CTRL, ctrlmsg

from tcmu_core.disk.device import Change
from tcmu_core.errors import TcmuError
from tcmu_core.kernel import abi
from tcmu_core.kernel.abi import Netlink
from tcmu_core.kernel.uio import UioName

NETLINK_GENERIC = 16  # linux/netlink.h
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
HEADER = 16  # struct nlmsghdr
RECEIVE_BUFFER = 1 << 20
TIMEOUT = 10.0  # seconds for an answer of the kernel

_DONE = {
    Netlink.ADDED_DEVICE: Netlink.ADDED_DEVICE_DONE,
    Netlink.REMOVED_DEVICE: Netlink.REMOVED_DEVICE_DONE,
    Netlink.RECONFIG_DEVICE: Netlink.RECONFIG_DEVICE_DONE,
}


class NetlinkError(TcmuError):
    """The kernel's netlink family is missing or refuses us."""


class tcmu_message(genlmsg):  # type: ignore[misc]  # pyroute2 has no types, and names its classes so
    """A message of the family, as pyroute2 describes one."""

    nla_map = abi.ATTRIBUTES


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
    for raw in _split(data):
        if _type(raw) == NLMSG_ERROR:
            code = _error_code(raw)
            if code:
                raise NetlinkError(f"the kernel refused a reply: {os.strerror(code)}")
            continue
        request = _request(_unpack(raw, tcmu_message))
        if request is not None:
            yield request


def _request(message: Any) -> Request | None:
    if message["cmd"] not in _DONE:
        return None
    name = UioName.parse(message.get_attr("TCMU_ATTR_DEVICE") or "")
    if name is None:
        return None
    change = None
    if message["cmd"] == Netlink.RECONFIG_DEVICE:
        cache = message.get_attr("TCMU_ATTR_WRITECACHE")
        config = message.get_attr("TCMU_ATTR_DEV_CFG")
        change = Change(
            size=message.get_attr("TCMU_ATTR_DEV_SIZE"),
            cfgstring=None if config is None else config.rstrip("\n"),
            write_cache=None if cache is None else bool(cache),
        )
    return Request(
        kind=Netlink(message["cmd"]),
        minor=message.get_attr("TCMU_ATTR_MINOR"),
        device_id=message.get_attr("TCMU_ATTR_DEVICE_ID") or 0,
        name=name,
        change=change,
        wants_reply=message["version"] > 1,
    )


def reply(request: Request, status: int, family: int) -> bytes:
    """Return the answer to `request`: `status` is 0 or a negative errno."""
    return _pack(
        family,
        _DONE[request.kind],
        NLM_F_REQUEST,
        ("TCMU_ATTR_CMD_STATUS", status),
        ("TCMU_ATTR_DEVICE_ID", request.device_id),
    )


def _pack(family: int, command: int, flags: int, *attributes: tuple[str, object]) -> bytes:
    message = tcmu_message()
    message["cmd"] = command
    message["version"] = abi.FAMILY_VERSION
    message["attrs"] = [list(pair) for pair in attributes]
    message["header"]["type"] = family
    message["header"]["flags"] = flags
    message["header"]["sequence_number"] = 1
    message["header"]["pid"] = 0
    message.encode()
    return bytes(message.data)


def _split(data: bytes) -> Iterator[bytes]:
    """Yield the messages of a datagram (struct nlmsghdr: length, type, flags, sequence number, port)."""
    at = 0
    while at + HEADER <= len(data):
        length = int.from_bytes(data[at : at + 4], sys.byteorder)
        if length < HEADER:
            return
        yield data[at : at + length]
        at += (length + 3) & ~3


def _type(message: bytes) -> int:
    return int.from_bytes(message[4:6], sys.byteorder)


def _error_code(message: bytes) -> int:
    """Return the errno of an NLMSG_ERROR: the s32 behind the header."""
    return -int.from_bytes(message[HEADER : HEADER + 4], sys.byteorder, signed=True)


def _unpack(message: bytes, kind: type[Any]) -> Any:
    unpacked = kind(message)
    unpacked.decode()
    return unpacked


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
        feature = ("TCMU_ATTR_SUPP_KERN_CMD_REPLY", int(answers))
        data = _pack(self.family, Netlink.SET_FEATURES, NLM_F_REQUEST | NLM_F_ACK, feature)
        with _open() as control:
            control.settimeout(TIMEOUT)
            control.send(data)
            code = _error_code(control.recv(65536))
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
                data = self._socket.recv(65536)
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


def _find_family() -> tuple[int, int]:
    """Return the family's number and that of its multicast group."""
    message = ctrlmsg()
    message["cmd"] = CTRL_CMD_GETFAMILY
    message["version"] = 1
    message["attrs"] = [["CTRL_ATTR_FAMILY_NAME", abi.FAMILY]]
    message["header"]["type"] = GENL_ID_CTRL
    message["header"]["flags"] = NLM_F_REQUEST
    message["header"]["sequence_number"] = 1
    message["header"]["pid"] = 0
    message.encode()
    with _open() as control:
        control.settimeout(TIMEOUT)
        control.send(message.data)
        data = control.recv(65536)
    if _type(data) == NLMSG_ERROR:
        raise NetlinkError(
            f"the kernel has no netlink family {abi.FAMILY}: {os.strerror(_error_code(data))}; "
            "is the module target_core_user loaded?"
        )
    answer = _unpack(data, ctrlmsg)
    for group in answer.get_attr("CTRL_ATTR_MCAST_GROUPS") or []:
        if group.get_attr("CTRL_ATTR_MCAST_GRP_NAME") == abi.MULTICAST_GROUP:
            return answer.get_attr("CTRL_ATTR_FAMILY_ID"), group.get_attr("CTRL_ATTR_MCAST_GRP_ID")
    raise NetlinkError(f"the netlink family {abi.FAMILY} has no group {abi.MULTICAST_GROUP!r}")
