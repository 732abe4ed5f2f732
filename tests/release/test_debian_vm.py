"""The Debian packages on a host with systemd and a kernel of its own: installed, restored at boot, upgraded, purged."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import tcmu_core
from tests.release.interpreters import ROOT
from tests.release.lines import commands
from tests.release.system import System, make_later, make_system
from tests.release.test_debian import documented
from tests.vm import Machine

pytestmark = [pytest.mark.vm, pytest.mark.soak]

RUNNER = "tcmu-runner.service"
RESTORE = "rtslib-fb-targetctl.service"  # LIO's, which makes again the devices and targets that were saved
MOUNT = "srv-files.mount"
LATER = f"{tcmu_core.__version__}.1"

# What programs beside the packages write while all this goes on.
OTHERS = re.compile(
    r"/(dev|proc|sys|run|tmp|var/(tmp|cache|log/(apt|journal|dpkg\.log)|lib/(apt|dpkg|systemd))|etc/rtslib-fb-target"
    r"|root/\.targetcli)"
)


# Files of 256 KiB, each written past the page cache, flushed, read and compared; the number of those that were right.
WORK = """
trap 'touch /run/ended' EXIT
cd /srv/files
n=0
while [ ! -e /run/enough ]; do
    n=$((n + 1))
    head -c 262144 < <(yes $n) > /run/pattern
    dd if=/run/pattern of=part$((n % 8)) bs=64k oflag=direct conv=fsync,notrunc status=none
    dd if=part$((n % 8)) bs=64k iflag=direct status=none | cmp - /run/pattern
    echo $n > /run/rounds.new
    mv /run/rounds.new /run/rounds
done
"""


@pytest.fixture(scope="module")
def disk(shelf: Path, debs: Path) -> Path:
    """A host's disk; nothing of ours is installed."""
    (shelf / "later").mkdir()
    packages = sorted(debs.glob("tcmu-runner_*.deb"))
    packages += [path for name in ("core", "file", "ram", "qcow", "fbo") for path in debs.glob(f"*-tcmu-{name}_*.deb")]
    later = [make_later(path, shelf / "later", tcmu_core.__version__, LATER) for path in packages]
    make_system(shelf / "system.img", packages, later)
    return shelf / "system.img"


@pytest.fixture(scope="module")
def host(disk: Path) -> Iterator[System]:
    with Machine(system=disk) as machine:
        yield System(machine)


@pytest.fixture(scope="module")
def before(host: System) -> set[str]:
    """The files of the host that had none of the packages, and its users."""
    return state(host)


@pytest.fixture(scope="module")
def installed(host: System, before: set[str]) -> System:
    host.sh(documented("apt install")[1])
    return host


@pytest.fixture(scope="module")
def used(installed: System) -> System:
    """The host with the guide's disk in use, by a file system that is mounted at boot as the guide has it."""
    for command in documented("targetcli", "With the kernel"):
        installed.sh(command)
    (look,) = documented("lsblk", "With the kernel")
    assert "TCMU" in installed.sh(look)
    (line,) = documented(r"/dev/disk\S*", "Restarting and stopping")
    pattern, _, options = line.split(maxsplit=2)
    path = pattern.replace("…", "*")
    installed.wait_for(f"test -b {path}")
    installed.sh(
        f"mkfs.ext4 -q {path}; mkdir /srv/files; echo $(echo {path}) /srv/files {options} >> /etc/fstab;"
        "targetcli saveconfig; systemctl daemon-reload; mount /srv/files; seq 100000 > /srv/files/numbers"
    )
    return installed


@pytest.fixture(scope="module")
def rebooted(used: System, disk: Path) -> Iterator[System]:
    used.reboot()
    with Machine(system=disk) as machine:
        yield System(machine)


def state(system: System) -> set[str]:
    """Return all files of a host that somebody answers for, its users and its groups."""
    files = {path for path in system.files() if not OTHERS.match(path)}
    return files | set(system.sh("getent passwd; getent group").splitlines())


def test_it_is_enabled_and_runs_once_it_is_installed(installed: System) -> None:
    assert installed.show(RUNNER, "UnitFileState") == "enabled"
    assert installed.show(RUNNER, "ActiveState") == "active"
    assert installed.show(RUNNER, "NRestarts") == "0"
    log = installed.sh(f"journalctl --unit {RUNNER} --output cat")
    assert "Reloaded tcmu-runner.service" in log  # handlers have come
    assert "ailed" not in log
    assert "org.kernel.TCMUService1" in installed.sh("busctl list --acquired --no-legend")


def test_what_the_guide_has_for_the_daemon_works(used: System) -> None:
    (enable,) = documented("systemctl", "With the kernel")
    used.sh(enable)
    (edit,) = (line for line in commands(ROOT / "docs" / "man" / "tcmu-runner.8") if line.startswith("systemctl edit"))
    editor = used.machine.share / "editor"
    editor.write_text("#!/bin/sh\nprintf '[Service]\\nDeviceAllow=/dev/mydevice rw\\n' > $1\n")
    editor.chmod(0o755)
    used.sh(f"SYSTEMD_EDITOR={editor} script --quiet --return --command '{edit}' /dev/null")
    assert "/dev/mydevice rw" in used.show(RUNNER, "DeviceAllow")
    used.sh("systemctl revert tcmu-runner")


def test_what_the_handlers_have_for_targetcli_works(used: System) -> None:
    image = used.machine.share / "vm.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "40G"], check=True)
    used.sh(f"cp {image} /srv; truncate --size 1G /srv/installer.iso")
    lines = [
        line for name in ("file", "qcow", "fbo") for line in commands(ROOT / "plugins" / f"tcmu-{name}" / "README.md")
    ]
    typed = [line.removeprefix("targetcli ") for line in lines if line.startswith("targetcli ")]
    undone = [re.sub(r"create name=(\w+) .*", r"delete \1", line) for line in typed]
    said = used.sh("targetcli << END\n" + "\n".join([*typed, *undone, "exit"]) + "\nEND")
    used.sh("rm /srv/{vm.qcow2,installer.iso,disk.img}")
    for word in ("Created user-backed storage object", "Deleted storage object"):
        assert said.count(word) == len(typed) == 3, said


def test_what_was_saved_is_there_again_at_boot_between_the_runner_and_what_is_mounted(rebooted: System) -> None:
    rebooted.wait_for(f"systemctl is-active --quiet {MOUNT}")
    assert rebooted.sh("md5sum < /srv/files/numbers") == rebooted.sh("seq 100000 | md5sum")
    began, ready = "InactiveExitTimestampMonotonic", "ActiveEnterTimestampMonotonic"
    times = [
        int(rebooted.show(*asked)) for asked in ((RUNNER, ready), (RESTORE, began), (RESTORE, ready), (MOUNT, began))
    ]
    assert times == sorted(times), times
    assert times[0] > 0
    assert rebooted.show(RUNNER, "NRestarts") == "0"


def test_an_upgrade_under_io_shows_no_error(rebooted: System) -> None:
    process = rebooted.show(RUNNER, "MainPID")
    work = rebooted.machine.spawn(["bash", "-euo", "pipefail", "-c", WORK], cwd="/")

    def goes_on() -> None:
        """Wait until another two files have been found right; the work has not ended."""
        rounds = int(rebooted.sh("cat /run/rounds"))
        rebooted.wait_for(f"test $(cat /run/rounds) -gt {rounds + 1} || test -e /run/ended")
        assert work.poll() is None, work.result()

    rebooted.wait_for("test -e /run/rounds || test -e /run/ended")
    goes_on()
    rebooted.sh(documented("apt install")[1].replace("/mnt/debs/", "/mnt/later/"))
    goes_on()
    rebooted.sh("touch /run/enough")
    assert work.wait(rebooted.PATIENCE).check().stderr == ""
    assert rebooted.sh("tcmu-runner -V") == f"tcmu-runner {LATER}\n"
    assert rebooted.show(RUNNER, "ActiveState") == "active"
    assert rebooted.show(RUNNER, "MainPID") != process
    assert "error" not in rebooted.sh("journalctl --boot --dmesg --no-pager").lower()


def test_a_purge_leaves_nothing(rebooted: System, before: set[str]) -> None:
    rebooted.sh(
        "umount /srv/files; rmdir /srv/files; sed -i '/_netdev/d' /etc/fstab; systemctl daemon-reload;"
        "printf 'clearconfig confirm=True\\nsaveconfig\\nexit\\n' | targetcli; rm /srv/disk1.img"
    )
    for command in documented("apt purge"):
        rebooted.sh(command)
    changed = sorted(state(rebooted) ^ before)
    assert not changed, "\n".join(changed)
    assert rebooted.show(RUNNER, "LoadState") == "not-found"
    assert "TCMU" not in rebooted.sh("busctl list --no-legend; lsblk -S; systemctl list-unit-files")
    assert not rebooted.sh(
        "grep -l tcmu /proc/[0-9]*/comm || true; ls -d /sys/kernel/config/target/core/user_* /run/tcmu* || true"
    )
    assert rebooted.sh("systemctl is-system-running") == "running\n"
