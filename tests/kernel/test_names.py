"""What uio and configfs call things, over directories of our own."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from tcmu_core.kernel.configfs import Backstore, ConfigfsError, set_parameter
from tcmu_core.kernel.uio import UioName, devices, holders


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("tcm-user/1/test/file//tmp/x\n", UioName(1, "test", "file//tmp/x")),
        ("tcm-user/12/a b/rbd/pool/image;conf=/etc/c", UioName(12, "a b", "rbd/pool/image;conf=/etc/c")),
        ("tcm-user/0/bare", UioName(0, "bare", "")),
        ("hv_vmbus", None),
        ("tcm-user/x/test/file", None),
    ],
)
def test_uio_names(text: str, name: UioName | None) -> None:
    assert UioName.parse(text) == name


def test_the_subtype_is_matched_whole() -> None:
    assert UioName(1, "x", "f//tmp/x").subtype == "f"
    assert UioName(1, "x", "ram").subtype == "ram"


def test_devices_lists_only_those_of_tcm_user_in_numerical_order(tmp_path: Path) -> None:
    for number, name in ((10, "tcm-user/1/b/ram/"), (2, "tcm-user/1/a/ram/"), (3, "hv_uio")):
        (tmp_path / f"uio{number}").mkdir()
        (tmp_path / f"uio{number}" / "name").write_text(name + "\n")
    assert [(minor, name.device) for minor, name in devices(tmp_path)] == [(2, "a"), (10, "b")]


def backstore(core: Path) -> Backstore:
    made = Backstore(1, "disk", core)
    (made.path / "attrib").mkdir(parents=True)
    (made.path / "wwn").mkdir()
    (made.path / "attrib/hw_block_size").write_text("4096\n")
    (made.path / "attrib/hw_max_sectors").write_text("128\n")
    (made.path / "wwn/vpd_unit_serial").write_text("T10 VPD Unit Serial Number: 0c5b0b8e\n")
    return made


def test_attributes_of_a_backstore(tmp_path: Path) -> None:
    made = backstore(tmp_path)
    assert (made.block_size, made.max_transfer, made.serial) == (4096, 0, "0c5b0b8e")


def test_a_transfer_limit_that_somebody_set_counts(tmp_path: Path) -> None:
    made = backstore(tmp_path)
    (made.path / "attrib/hw_max_sectors").write_text("1024\n")
    assert made.max_transfer == 4 << 20


def test_a_missing_attribute_is_named_with_its_errno(tmp_path: Path) -> None:
    with pytest.raises(ConfigfsError, match=r"attrib/dev_size: No such file .*does not have it") as caught:
        assert backstore(tmp_path).size
    assert caught.value.errno == errno.ENOENT


def test_a_parameter_that_the_kernel_lacks_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "block_netlink").write_text("0\n")
    assert set_parameter("block_netlink", 1, tmp_path)
    assert not set_parameter("reset_netlink", 1, tmp_path)
    assert (tmp_path / "block_netlink").read_text() == "1\n"


def test_who_holds_a_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "held"
    path.touch()
    assert list(holders(path)) == []
    with path.open() as file, subprocess.Popen(["sleep", "60"], stdin=file) as other:
        try:
            assert set(holders(path)) == {os.getpid(), other.pid}
        finally:
            other.kill()
