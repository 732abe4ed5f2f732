"""Devices of the kernel whose storage is elsewhere, made by the lines that the READMEs have for targetcli.

The clusters are this machine's; the virtual one, in which the kernel and the runner are, has them at an address.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.clusters.ceph import Ceph
from tests.clusters.gluster import Gluster
from tests.clusters.processes import run
from tests.kernel.host import Host
from tests.release.interpreters import ROOT
from tests.release.lines import commands
from tests.vm import Machine

pytestmark = [pytest.mark.vm, pytest.mark.soak]

ADDRESS = "169.254.60.1"  # link-local, and this machine's for a while
GIB = 1 << 30
PLACE = 3 * GIB  # bytes: where on the disk is written and read
WRITTEN = b"written by the kernel".ljust(4096, b".")
CLIENT = """\
[global]
{mon_host}
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
"""
# A file of 40 GiB, each block of 512 bytes of which is its number.
WEB = f"""
import ssl, sys
sys.path.insert(0, "{ROOT}/examples/tcmu-http/tests")
from conftest import Web

class Numbers:
    def __len__(self):
        return 40 << 30

    def __getitem__(self, part):
        end = min(part.stop, len(self))
        whole = b"".join(n.to_bytes(512, "big") for n in range(part.start // 512, -(-end // 512)))
        return whole[part.start % 512 :][: end - part.start]

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(*sys.argv[1:])
server = Web(context, 443)
server.data = Numbers()
server.thread.join()
"""


def line(readme: str) -> str:
    """Return the line that a README has for targetcli."""
    (found,) = (line for line in commands(ROOT / readme / "README.md") if line.startswith("targetcli "))
    return found


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    run("ip", "address", "replace", f"{ADDRESS}/32", "dev", "lo")
    yield ADDRESS
    run("ip", "address", "delete", f"{ADDRESS}/32", "dev", "lo")


@pytest.fixture(scope="module")
def host(address: str) -> Iterator[Host]:
    """A host with a runner, for which the documents' hosts are this machine."""
    with Machine(cpus=2, memory="2G", network=True) as machine:
        host = Host(machine)
        host.sh(f"echo '{address} server1' >> /etc/hosts; echo '127.0.0.1 server' >> /etc/hosts")
        host.start()
        yield host
        host.stop()


@pytest.fixture
def disk(host: Host, request: pytest.FixtureRequest) -> Iterator[str]:
    """The device `disk`, by the README that the parameter names, as a local disk of the kernel."""
    said = host.sh(line(request.param), timeout=300)
    assert "Created user-backed storage object disk" in said
    number = host.sh("ls -d /sys/kernel/config/target/core/user_*/disk").strip().split("/")[-2].removeprefix("user_")
    try:
        yield host.plug("disk", hba=int(number))
    finally:
        host.unplug()
        host.remove("disk", hba=int(number)).check()


def read(host: Host, disk: str) -> bytes:
    """Return a block of 4096 bytes, read past the kernel's cache."""
    return bytes.fromhex(
        host.sh(f"dd if={disk} bs=4096 skip={PLACE // 4096} count=1 iflag=direct status=none | xxd -p")
    )


def write(host: Host, disk: str) -> None:
    """Write a block past the kernel's cache, and flush."""
    place = f"of={disk} bs=4096 seek={PLACE // 4096} oflag=direct conv=fsync,notrunc status=none"
    host.run(f"dd {place}", stdin=WRITTEN.decode()).check()
    assert read(host, disk) == WRITTEN


@contextmanager
def running(host: Host, words: Sequence[str | Path], ready: str) -> Iterator[None]:
    """Have a program run in the machine; it is ready when a shell's condition holds."""
    job = host.machine.spawn(words)
    try:
        host.sh(f"until {ready}; do sleep 0.1; done")
        yield
    finally:
        job.kill()
        job.wait(60)


@pytest.fixture
def server(host: Host) -> Iterator[None]:
    """An NBD server with 40 GiB of memory."""
    words = ["nbdkit", "--foreground", "--unix", "/run/disk.sock", "memory", "40G"]
    with running(host, words, "[ -S /run/disk.sock ]"):
        yield


@pytest.mark.parametrize("disk", ["plugins/tcmu-nbd"], indirect=True)
def test_an_nbd_export(server: None, host: Host, disk: str) -> None:
    write(host, disk)
    said = host.sh(f"qemu-io -r -f raw -c 'read -v {PLACE} 512' 'nbd+unix:///?socket=/run/disk.sock'")
    assert "written.by.the.k" in said


@pytest.fixture
def web(host: Host) -> Iterator[None]:
    """A web server that the machine trusts."""
    names = "-subj /CN=server -addext subjectAltName=DNS:server"
    host.sh(
        f"cd {host.share}; openssl req -x509 -newkey rsa:2048 -nodes -days 2 {names} -keyout key.pem -out cert.pem;"
        "cp cert.pem /etc/ssl/certs/$(openssl x509 -noout -hash -in cert.pem).0"
    )
    (host.share / "web.py").write_text(WEB)
    words = [sys.executable, *(host.share / name for name in ("web.py", "cert.pem", "key.pem"))]
    with running(host, words, "grep -q ' 0100007F:01BB 00000000:0000 0A ' /proc/net/tcp"):
        yield


@pytest.mark.parametrize("disk", ["examples/tcmu-http"], indirect=True)
def test_a_file_of_a_web_server(web: None, host: Host, disk: str) -> None:
    assert read(host, disk) == b"".join((PLACE // 512 + n).to_bytes(512, "big") for n in range(8))


@pytest.fixture
def ceph(host: Host, address: str) -> Iterator[Ceph]:
    with tempfile.TemporaryDirectory(prefix="tcmu-ceph-") as directory:
        cluster = Ceph(Path(directory), store="memstore", address=address)
        try:
            cluster.start()
            (where,) = (line for line in cluster.conf.read_text().splitlines() if line.startswith("mon_host"))
            host.run("mkdir -p /etc/ceph; cat > /etc/ceph/ceph.conf", stdin=CLIENT.format(mon_host=where)).check()
            cluster.rbd("create", "--size", "10G", "rbd/disk")
            yield cluster
        finally:
            cluster.stop()


@pytest.mark.parametrize("disk", ["plugins/tcmu-rbd"], indirect=True)
def test_an_image_of_a_ceph_cluster(ceph: Ceph, host: Host, disk: str) -> None:
    write(host, disk)
    ceph.rbd("snap", "create", "rbd/disk@now")
    assert WRITTEN in ceph.rbd("export-diff", "rbd/disk@now", "-")


@pytest.fixture
def gluster(host: Host, address: str) -> Iterator[Gluster]:
    with tempfile.TemporaryDirectory(prefix="tcmu-gluster-") as directory:
        cluster = Gluster(Path(directory), address)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@pytest.mark.parametrize("disk", ["plugins/tcmu-glfs"], indirect=True)
def test_a_file_of_a_gluster_volume(gluster: Gluster, host: Host, disk: str) -> None:
    write(host, disk)
    with (gluster.brick / "disk.img").open("rb") as file:
        file.seek(PLACE)
        assert file.read(len(WRITTEN)) == WRITTEN
