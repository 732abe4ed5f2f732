"""The command lines that the documents have for people, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.release.interpreters import ROOT

DOCUMENTS = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(ROOT.glob("docs/man/*.[1-8]")),
    *sorted(
        [*ROOT.glob("plugins/*/README.md"), *ROOT.glob("examples/*/README.md"), *ROOT.glob("packages/*/README.md")]
    ),
)

PROGRAMS = (
    r"(PYTHONFAULTHANDLER=1 )?tcmu(-runner)? |make |(/opt/tcmu/bin/)?pip |python3? |pytest |apt(-get)? "
    r"|podman(-compose)? |targetcli |systemctl |lsblk |ps |kill |sg_\w+ |multipath |iscsi-\w+ |iscsiadm |qemu-[\w-]+ "
    r"|mkfs\.ext4 |u?mount |install |echo |\(umask |rbd "
)

# What else is set apart: files, and what is printed.
OTHERS = (
    r"\[|[;@#]|Opcode\(|direction=|device\.progress\(|\"nbd\": |alice = |\w+ ?= |shout/disk1 = |/dev/disk/by-id/"
    r"|DeviceAllow=|disk {6}init|scratch {3}iqn|bottleneck: |ghost: |seed 110 |write 0|drop 0|#\d |initiator a is "
    r"|again: |/etc/tcmu/tcmu.conf:\d|2025-|12:00:|check_\w+[: ]|epoch \d|record \d|entry \d|\d images"
    r"|/srv/disk.img (does|is|can't)|/dev/sdb has|server1 has|vol0@server1/disk.img does|'server1:24007'|libgfapi is "
    r"|overrides \{|no_path_retry |\}|rbd/disk (does|is|has) |there is no Python module"
)


def set_apart(document: Path) -> list[str]:
    """Return the lines that stand in a paragraph of their own, joined at a backslash; no code in another language."""
    text = document.read_text()
    if document.suffix != ".md":
        blocks = re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed$", text, re.MULTILINE | re.DOTALL)
        found = "".join(blocks).replace("\\e\n", "\\\n")
    else:
        shell = re.findall(r"^ *```sh\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
        plain = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
        found = "\n".join([*shell, *re.findall(r"^ {4,}\S.*$", plain, re.MULTILINE)])
    return [line.strip() for line in re.sub(r"\\\n\s*", "", found).splitlines() if line.strip()]


def commands(document: Path) -> list[str]:
    """Return the command lines of a document, in their order."""
    return [line for line in set_apart(document) if re.match(PROGRAMS, f"{line} ")]


def unknown(document: Path) -> list[str]:
    """Return the lines of a document that may be commands: nobody has said what they are."""
    return [line for line in set_apart(document) if not re.match(f"{PROGRAMS}|{OTHERS}", f"{line} ")]
