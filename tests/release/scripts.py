"""What each document takes for granted where its command lines are typed: files, hosts, somebody who uses a disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.release.interpreters import ROOT

# disk1, of a daemon that is at work already; a write takes 25 ms.
CONFIGURATION = """
[portal]
listen = 127.0.0.1:3261
[targets]
[[iqn.2025-01.local.tcmu:disk1]]
[[[lun 0]]]
handler = ram
name = disk1
size = 64M
filters = rate, 'delay;write=25ms'
"""

# Who uses it: a write, a read behind the end, and many reads; again and again, for some hundred commands a login.
USER = """
import time
from tcmu_core.testing import Client
while True:
    try:
        with Client(
            "iscsi://127.0.0.1:3261/iqn.2025-01.local.tcmu:disk1/0", name="iqn.1993-08.org.debian:01:a"
        ) as client:
            print("here", flush=True)
            for _ in range(8):
                client.command(bytes.fromhex("2a000000000000000100"), write=bytes(512))
                client.command(bytes.fromhex("2800ffffff0000000100"), read=512)
                for _ in range(50):
                    client.command(bytes.fromhex("28000000000000000100"), read=512)
    except Exception:
        time.sleep(0.1)
"""

# A web server that does ranges.
WEB = f"""
import ssl, sys
sys.path.insert(0, "{ROOT}/examples/tcmu-http/tests")
from conftest import Web
context = None
if sys.argv[2:]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*sys.argv[2:])
server = Web(context, int(sys.argv[1]))
print("here", flush=True)
try:
    server.thread.join()
except KeyboardInterrupt:
    server.close()
"""


def file(name: str, text: str) -> str:
    """Return a line that makes a file."""
    return f"cat > {name} <<'END'\n{text}END"


# A log that counts an entry before that is flushed.
LEDGER = """
from ledger import Ledger
from tcmu_core.testing import Client
with Client("iscsi://127.0.0.1/iqn.2025-01.local.tcmu:disk/0") as client:
    def write(at, data):
        place, count = (at // 512).to_bytes(4, "big"), (len(data) // 512).to_bytes(2, "big")
        client.command(bytes([0x2A, 0]) + place + bytes(1) + count + bytes(1), write=data)
    book = Ledger(write, lambda: client.command(bytes([0x35]) + bytes(9)), careful=False)
    for number in range(6):
        book.append(b"entry %d" % number)
"""

DISK1 = (
    file("/etc/tcmu/disk1.conf", CONFIGURATION),
    "tcmu-runner --config /etc/tcmu/disk1.conf",
    "until tcmu status disk1 > /dev/null; do sleep 0.1; done",
    file("user.py", USER),
    "env python3 user.py",
)
SHOUT = ("tcmu new shout", "pip install --quiet -e ./tcmu-shout")
INSTALLER = "mkdir -p tree; seq 100000 > tree/file; genisoimage -quiet -o /srv/installer.iso tree"
EXPORT = "env nbdkit --foreground --verbose --unix /run/disk.sock memory 16M"
CERTIFICATE = (
    "mkdir -p /etc/pki; openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=server"
    " -addext subjectAltName=DNS:server -keyout /etc/pki/server-key.pem -out /etc/pki/server-cert.pem;"
    " for name in ca-cert nbd-ca; do cp /etc/pki/server-cert.pem /etc/pki/$name.pem; done"
)
DEVICES = (  # of our own, over those of this machine
    "mount -t tmpfs tmpfs /mnt; mkdir /mnt/upper /mnt/work;"
    " mount -t overlay -o lowerdir=/dev,upperdir=/mnt/upper,workdir=/mnt/work overlay /dev"
)
NO_RUNNER = "rm -f /etc/dbus-1/system.d/tcmu-runner.conf /etc/logrotate.d/tcmu-runner"  # that of a package in C
WRITTEN = "-c 'write -P 0 40M 64k' -c flush "  # a flush of nothing never leaves QEMU
LOGGED_IN = "until tcmu sessions | grep -q debian:01:a; do sleep 0.1; done"


@dataclass(frozen=True)
class Script:
    """What is typed first, and before a line that begins so; what words stand for; which lines fail, and say what."""

    first: tuple[str, ...] = ()
    before: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    fails: Mapping[str, str] = field(default_factory=dict)


SCRIPTS = {
    "README.md": Script(),
    "CONTRIBUTING.md": Script(
        (f"cd {ROOT}",), words={"tests.simulation   ": "tests.simulation --seconds 1   ", "--seconds 60": "--seconds 1"}
    ),
    "docs/admin.md": Script(
        ("mkdir -p ~/.local/share/bash-completion/completions ~/.zfunc ~/.config/fish/completions", NO_RUNNER, *DISK1),
        words={
            "kill -9 PID": "kill -9 $(pgrep tcmu: | tail -1)",
            "tcmu doctor": "tcmu doctor || test $? = 5",  # there may be warnings
        },
        before={
            "tcmu logout": (LOGGED_IN,),
        },
    ),
    "docs/command.md": Script((f"ln -s {ROOT}/docs docs",)),
    "docs/conformance.md": Script(),
    "docs/debugging.md": Script(
        (*DISK1, *SHOUT),
        before={"tcmu replay": ("^C",)},
        fails={"tcmu check": "unknown option 'sise'"},
        words={"kill -ABRT PID": "kill -ABRT $(cat /run/serve.pid)"},
    ),
    "docs/filters.md": Script(
        before={
            "tcmu filter disk list": ("tcmu serve ram --size 64M --name disk --filter 'rate;iops=500'",),
        }
    ),
    "docs/handlers.md": Script(
        (f"cp {ROOT}/docs/examples/handler_mine.py .",),
        before={"tcmu serve shout ./shout.img --size 64M --run": ("truncate -s 64M other.img",)},
    ),
    "docs/iscsi.md": Script(
        (
            "export LIBISCSI_CHAP_USERNAME=alice LIBISCSI_CHAP_PASSWORD='correct horse battery'",
            "qemu-img create -q -f qcow2 image.qcow2 64M",
        )
    ),
    "docs/network-handler.md": Script(
        (
            f"ln -s {ROOT}/docs docs",
            file("web.py", WEB),
            "env python3 web.py 80",
            f"pip install --quiet -e {ROOT}/examples/tcmu-http",
        )
    ),
    "docs/slow.md": Script(DISK1),
    "docs/testing.md": Script(
        before={
            "tcmu crash /tmp/disk.rec": (
                "mke2fs -q -t ext4 soundly.img 64M",
                "qemu-img convert -n -O raw soundly.img iscsi://127.0.0.1/iqn.2025-01.local.tcmu:disk/0",
                f"qemu-io -f raw {4 * WRITTEN}iscsi://127.0.0.1/iqn.2025-01.local.tcmu:disk/0",
                "^C",
            ),
            "tcmu crash ledger.rec": (
                f"cp {ROOT}/tests/recording/ledger.py .",
                "tcmu serve ram --size 128K --filter 'record;file=ledger.rec'",
                f"python3 <<'END'{LEDGER}END",
                "^C",
            ),
            "tcmu replay /tmp/disk.rec iscsi:": (
                "tcmu serve ram --size 64M --target iqn.2026-01.example:disk --portal 192.0.2.1:3260 --insecure",
            ),
        },
        fails={"tcmu crash ledger.rec": "entry 0 of 1 is not whole"},
    ),
    "docs/man/tcmu.8": Script((NO_RUNNER,)),
    "docs/man/tcmu-runner.8": Script((NO_RUNNER,)),
    "examples/tcmu-crypt/README.md": Script(
        (f"cd {ROOT}",), {"tcmu serve nbd": (EXPORT, "install -m 600 disk.key /etc/tcmu/disk.key")}
    ),
    "examples/tcmu-http/README.md": Script(
        (
            CERTIFICATE,
            "export SSL_CERT_FILE=/etc/pki/ca-cert.pem",
            file("web.py", WEB),
            "env python3 web.py 443 /etc/pki/server-cert.pem /etc/pki/server-key.pem",
            f"cd {ROOT}",
        )
    ),
    "packages/tcmu-runner/README.md": Script(),
    "plugins/tcmu-fbo/README.md": Script(
        (INSTALLER, DEVICES, "ln -s /srv/installer.iso /dev/sr0"),
        before={"qemu-system-x86_64": ("tcmu serve fbo ro//srv/installer.iso --name cd",)},
        words={
            "qemu-system-x86_64 …": "timeout 2 qemu-system-x86_64 -display none",
            "iqn…": "iqn.2025-01.local.tcmu:cd",
            "bootindex=1": "bootindex=1 || test $? = 124",  # it goes on
        },
    ),
    "plugins/tcmu-file/README.md": Script(
        ("truncate -s 10G /srv/disk.img", DEVICES, "mkdir /dev/vg0; ln -s /srv/disk.img /dev/vg0/data")
    ),
    "plugins/tcmu-nbd/README.md": Script(
        (
            EXPORT,
            CERTIFICATE,
            "env nbdkit --foreground --verbose --ipaddr 127.0.0.1 --tls on --tls-certificates /etc/pki memory 16M",
        )
    ),
    "plugins/tcmu-qcow/README.md": Script(
        (
            "qemu-img create -q -f qcow2 vm.qcow2 64M; qemu-img snapshot -c before-upgrade vm.qcow2",
            "qemu-img create -q -f qcow2 golden.qcow2 64M",
        )
    ),
    "plugins/tcmu-ram/README.md": Script(("truncate -s 64M /srv/disk.img /srv/golden.img",)),
}
