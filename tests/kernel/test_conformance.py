"""libiscsi's test suite over LIO's iSCSI target onto our handler: what fails is the kernel's own doing."""

from __future__ import annotations

import pytest

from tests.conformance.suite import Results, read
from tests.kernel.host import CORE, Host

pytestmark = [pytest.mark.vm, pytest.mark.soak]

MIB = 1 << 20
IQN = "iqn.2026-01.org.example:suite"
TPG = f"/sys/kernel/config/target/iscsi/{IQN}/tpgt_1"
URI = f"iscsi://127.0.0.1/{IQN}/0"

# What fails, and why it is not ours to mend. `docs/conformance.md` tells it to people.
EXPLAINED = {
    # LIO computes no residual overflow for TCM-user: we get as much room, or data, as the initiator has.
    *(f"iSCSIResiduals.{name}Residuals" for name in ("Read10", "Read12", "Read16")),
    *(f"iSCSIResiduals.{name}Residuals" for name in ("Write10", "Write12", "Write16")),
    *(f"iSCSIResiduals.WriteVerify{length}Residuals" for length in (10, 12, 16)),
    "iSCSIResiduals.Read10Invalid",
    # LIO's iSCSI target takes a wrong DataSN, and keeps RESERVE(6) to itself; with its own fileio too.
    "iSCSIdatasn.iSCSIDataSnInvalid",
    "Reserve6.Logout",
    "Reserve6.ITNexusLoss",
    # TCM-user does not say which initiator a command is from, so another's copy result is still there.
    "ReceiveCopyResults.CopyStatus",
}

# The same commands with a longer CDB, which is all the same to LIO; through the portal each is tried.
LONGER = {"Read12", "Read16", "Write12", "Write16", "Verify12", "Verify16", "WriteVerify12", "WriteVerify16"}
LONGER |= {"Prefetch16", "WriteSame16"}
SLOW = {"OrWrite", "Verify10"}  # half a minute each in an emulated machine, and LIO only passes them on


def test_the_suite_fails_only_where_the_kernel_leaves_no_choice(host: Host) -> None:
    assert host.create("suite", 256 * MIB, "ram/").returncode == 0
    host.sh(
        f"set -e; mkdir -p {TPG}/np/127.0.0.1:3260 {TPG}/lun/lun_0; ln -s {CORE}/user_1/suite {TPG}/lun/lun_0/x;"
        f"cd {TPG}/attrib; echo -n 0 > authentication; echo -n 1 > generate_node_acls;"
        "echo -n 0 > demo_mode_write_protect; echo -n 1 > cache_dynamic_acls; echo -n 1 > ../enable"
    )
    tests = host.sh("iscsi-test-cu --list").split()
    families = dict.fromkeys(name.split(".")[1] for name in tests if name.count(".") == 2)
    results = Results()
    for family in (one for one in families if one not in LONGER | SLOW):
        said = host.run(f"timeout 600 iscsi-test-cu --dataloss -V --test=ALL.{family} {URI} {URI}", timeout=700)
        read(said.stdout, results)
    print(f"{len(results.passed)} passed, {len(results.failed)} failed, {len(results.skipped)} skipped")
    for name, why in sorted(results.failed.items()):
        print(f"{name}\n{why}")
    assert results.ran > 150
    assert set(results.failed) <= EXPLAINED
