"""How clients reach a served disk: its URL and command lines that can be pasted."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from tcmu_core.iscsi.settings import format_address


@dataclass(frozen=True, slots=True)
class Reach:
    """A logical unit as a client sees it; `secret_file` holds the password where it was not on the command line."""

    host: str
    port: int
    target: str
    lun: int = 0
    user: str = ""
    password: str = field(default="", repr=False)
    secret_file: Path | None = None

    @property
    def portal(self) -> str:
        """Return `host:port`, an IPv6 address in brackets."""
        return format_address(self.host, self.port)

    @property
    def uri(self) -> str:
        """Return the URL that libiscsi and QEMU take; it holds no password."""
        return f"iscsi://{self.portal}/{self.target}/{self.lun}"

    def environment(self) -> dict[str, str]:
        """Return what a command started by `--run` finds in its environment; libiscsi reads the CHAP names."""
        found = {"uri": self.uri, "portal": self.portal, "iqn": self.target, "lun": str(self.lun)}
        if self.user:
            found |= {"LIBISCSI_CHAP_USERNAME": self.user, "LIBISCSI_CHAP_PASSWORD": self.password}
        return found

    def _secret(self) -> str:
        """Return the password as a word for the shell."""
        if self.secret_file is None:
            return shlex.quote(self.password)
        file = shlex.quote(str(self.secret_file.resolve()))
        first = f"sed -e '/^#/d' -e '/^[[:space:]]*$/d' {file} | head -n 1"  # as `credentials_file` reads it
        return f'"$({first} | tr -d "\\r" | cut -d: -f2-)"'

    def commands(self) -> list[str]:
        """Return what to type in a second terminal, without being root."""
        lines = []
        if self.user:
            user = shlex.quote(self.user)
            lines.append(f"export LIBISCSI_CHAP_USERNAME={user} LIBISCSI_CHAP_PASSWORD={self._secret()}")
        uri = shlex.quote(self.uri)
        return [
            *lines,
            f"iscsi-ls -s {shlex.quote(f'iscsi://{self.portal}')}",
            f"iscsi-inq {uri}",
            f"qemu-img info {uri}",
        ]

    def root_commands(self) -> list[str]:
        """Return what makes the disk a /dev/sdX with open-iscsi, and what takes it away again."""
        portal, target = shlex.quote(self.portal), shlex.quote(self.target)
        node = f"iscsiadm -m node -T {target} -p {portal}"
        if not self.user:
            return [f"iscsiadm -m discovery -t sendtargets -p {portal}", f"{node} --login", f"{node} --logout"]
        # Discovery asks for the login too, so its record has to be there, with the password, before it is done.
        discovery = f"iscsiadm -m discoverydb -t sendtargets -p {portal}"
        return [
            f"{discovery} -o new",
            *self._login(f"{discovery} -o update -n discovery.sendtargets.auth"),
            f"{discovery} --discover",
            *self._login(f"{node} -o update -n node.session.auth"),
            f"{node} --login",
            f"{node} --logout",
        ]

    def _login(self, auth: str) -> list[str]:
        """Return what writes user and password into a record of open-iscsi."""
        return [
            f"{auth}.authmethod -v CHAP",
            f"{auth}.username -v {shlex.quote(self.user)}",
            f"{auth}.password -v {self._secret()}",
        ]
