"""Clients that we did not write: libiscsi's tools and test suite, QEMU's block driver."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcmu_core.iscsi.settings import Access, ChapUser, PortalSettings
from tests.iscsi.initiator import TARGET
from tests.iscsi.served import SECOND, SIZE, Served, run, served

LOOPBACK = ("127.0.0.1:0",)
JOE = ChapUser("joe", b"secret of joe")
US = ChapUser("us", b"secret of us!")


@pytest.fixture(params=[0, 2], ids=["at once", "pool"])
def portal(request: pytest.FixtureRequest) -> Iterator[Served]:
    """A portal; each promise is kept whether or not the handler answers at once."""
    with served(threads=request.param) as running:
        yield running


def test_iscsi_ls_finds_targets_and_luns(portal: Served) -> None:
    listing = run("iscsi-ls", "-s", f"iscsi://{portal.address}").stdout
    assert f"Target:{TARGET} Portal:{portal.address},1" in listing
    assert f"Target:{SECOND} Portal:{portal.address},1" in listing
    assert listing.count("DIRECT_ACCESS") == 3


def test_iscsi_inq_identifies_each_lun(portal: Served) -> None:
    for lun in (0, 1):
        assert "DIRECT_ACCESS" in run("iscsi-inq", portal.uri(lun)).stdout


def test_ipv6_works_alike() -> None:
    with served(PortalSettings(addresses=("[::1]:0",))) as running:
        assert f"Portal:{running.address},1" in run("iscsi-ls", f"iscsi://{running.address}").stdout
        assert "DIRECT_ACCESS" in run("iscsi-inq", running.uri()).stdout


def test_an_image_comes_back_as_it_went(portal: Served, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(n * 31 % 253 for n in range(65536)) * (SIZE // 65536))
    for command in ("convert", "-n"), ("compare",):
        formats = ("-f", "raw", "-O", "raw") if command[0] == "convert" else ("-f", "raw", "-F", "raw")
        done = run("qemu-img", *command, *formats, str(image), portal.uri())
        assert done.returncode == 0, done.stderr
    assert portal.disks[0].data == image.read_bytes()


def test_qemu_io_reads_the_pattern_that_it_wrote_and_discarded(portal: Served) -> None:
    commands = [
        "write -P 0xab 1M 9M",
        "read -P 0xab 1M 9M",
        "discard 2M 1M",
        "read -P 0 2M 1M",
        "write -P 7 511k 1k",
        "flush",
    ]
    done = run("qemu-io", "-f", "raw", *[word for command in commands for word in ("-c", command)], portal.uri())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Pattern verification failed" not in done.stdout
    assert portal.disks[0].data[511 * 1024 : 512 * 1024] == b"\7" * 1024


@pytest.mark.parametrize(
    ("login", "options", "works"),
    [
        ("joe%secret of joe@", "", True),
        ("joe%wrong@", "", False),
        ("jim%secret of joe@", "", False),
        ("", "", False),
        ("joe%secret of joe@", "?target_user=us&target_password=secret of us!", True),
        ("joe%secret of joe@", "?target_user=us&target_password=wrong", False),
    ],
)
def test_chap_lets_in_who_proves_itself(login: str, options: str, works: bool) -> None:
    settings = PortalSettings(addresses=LOOPBACK, access=Access(users=(JOE,), outgoing=US))
    with served(settings) as running:
        done = run("iscsi-inq", running.uri(login=login, options=options))
        assert ("DIRECT_ACCESS" in done.stdout) == works, done.stderr


def test_an_initiator_list_lets_in_who_is_on_it() -> None:
    settings = PortalSettings(addresses=LOOPBACK, access=Access(initiators=("iqn.2026-01.test:me",)))
    with served(settings) as running:
        assert "DIRECT_ACCESS" in run("iscsi-inq", "-i", "iqn.2026-01.test:me", running.uri()).stdout
        assert "DIRECT_ACCESS" not in run("iscsi-inq", "-i", "iqn.2026-01.test:you", running.uri()).stdout


def test_a_portal_that_wants_header_digests_gets_them() -> None:
    with served(PortalSettings(addresses=LOOPBACK, header_digests=("CRC32C",))) as running:
        done = run("iscsi-inq", running.uri())  # it offers None,CRC32C
        assert "DIRECT_ACCESS" in done.stdout, done.stderr


@pytest.mark.parametrize("family", ["iSCSIcmdsn", "iSCSIdatasn", "iSCSIResiduals", "iSCSITMF"])
def test_libiscsis_own_suite_passes(portal: Served, family: str) -> None:
    done = run("iscsi-test-cu", "--dataloss", "-V", f"--test=ALL.{family}", portal.uri())
    assert done.returncode == 0, done.stdout
    assert "[SKIPPED]" not in done.stdout
    tests = re.search(r"tests +(\d+) +(\d+) +(\d+) +0", done.stdout)
    assert tests is not None, done.stdout
    assert int(tests[1]) == int(tests[2]) == int(tests[3]) > 0
