"""A Debian with systemd on a disk, for a virtual machine, and packages of a later version to upgrade it with."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.release.debian import make_root
from tests.vm import Machine
from tests.vm.kernel import Kernel
from tests.waiting import wait_for

SIZE = "3G"  # of the disk; it takes a sixth of that

# What a host has that LIO's targets are on: systemd restores them with LIO's own service.
PACKAGES = "systemd-sysv,udev,dbus,kmod,e2fsprogs,targetcli-fb"

# udev loads what there is: with these alone an emulated machine is up in half the time.
MODULES = (
    "configfs", "target_core_user", "target_core_file", "target_core_iblock", "target_core_pscsi", "tcm_loop",
    "iscsi_target_mod", "sd_mod", "sg", "ext4", "crc32c_generic", "loop", "autofs4", "fuse", "efi_pstore", "dm_mod",
    "binfmt_misc",
)  # fmt: skip

# What they depend on is installed here, by this machine's own processors. The packages themselves wait for the boot.
NEEDED = """
cd /mnt/debs
names=$(apt-get --simulate --install-recommends install ./*.deb | sed -n 's/^Inst \\([^ ]*\\) .*/\\1/p' | grep -v tcmu)
apt-get install $names
apt-get clean
rm -r /var/lib/apt/lists
"""


def make_system(image: Path, packages: Sequence[Path], later: Sequence[Path]) -> None:
    """Make a disk with all that `packages` need, themselves in /mnt/debs, and what upgrades them in /mnt/later."""
    with tempfile.TemporaryDirectory(prefix="tcmu-system-") as name:
        root = Path(name) / "root"
        copies = [
            f'mkdir "$1/mnt/{name}"; cp {shlex.join(map(str, files))} "$1/mnt/{name}"'
            for name, files in (("debs", packages), ("later", later))
        ]
        hooks = [*copies, f'chroot "$1" sh -euc {shlex.quote(NEEDED)}']
        make_root(
            root, f"--include={PACKAGES}", "--dpkgopt=force-unsafe-io", *(f"--customize-hook={hook}" for hook in hooks)
        )
        _add_modules(root, Kernel.newest())
        (root / "etc" / "fstab").write_text("/dev/vda / ext4 defaults 0 1\n")
        (root / "etc" / "hostname").write_text("vm\n")
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", root, image, SIZE], check=True)


def _add_modules(root: Path, kernel: Kernel) -> None:
    goal = root / "lib" / "modules" / kernel.release
    for file in kernel.module_files(MODULES):
        copy = goal / file.relative_to(kernel.modules)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        shutil.copyfile(kernel.modules / name, goal / name)
    subprocess.run(["depmod", "--basedir", root, kernel.release], check=True)


def make_later(package: Path, goal: Path, old: str, new: str) -> Path:
    """Make a package of the next version from that of this one: it says so, and so does the program."""
    with tempfile.TemporaryDirectory(prefix="tcmu-later-") as name:
        place = Path(name) / "package"
        subprocess.run(["dpkg-deb", "--raw-extract", package, place], check=True)
        for file in (place / "DEBIAN" / "control", *place.rglob("_version.py"), *place.rglob("*-info/METADATA")):
            file.write_text(file.read_text().replace(old, new))
        for directory in list(place.rglob(f"*-{old}.*-info")):
            directory.rename(directory.with_name(directory.name.replace(old, new)))
        (place / "DEBIAN" / "md5sums").unlink()
        later = goal / package.name.replace(old, new)
        subprocess.run(["dpkg-deb", "--build", "--root-owner-group", "-Znone", place, later], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
    return later


class System:
    """Root's shell on a machine that has booted from such a disk."""

    PATIENCE = 600.0  # seconds: nothing takes a tenth of it, on an idle host

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        state = self.sh("systemctl is-system-running --wait || systemctl list-units --failed --no-legend")
        assert state == "running\n", state + self.sh("journalctl --boot --no-pager --priority warning")

    def sh(self, script: str) -> str:
        """Run a script of bash to its end, and return what it prints; it must not fail."""
        done = self.machine.run(
            ["bash", "-ec", script], timeout=self.PATIENCE, cwd="/root", env={"DEBIAN_FRONTEND": "noninteractive"}
        )
        assert done.returncode == 0, f"{done}\n{self.machine.console()[-4000:]}"
        return done.stdout

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.sh(f"systemctl show --value --property {name} {unit}").strip()

    def files(self) -> set[str]:
        """Return all files on the disk."""
        return set(self.sh("find / -xdev").splitlines())

    def wait_for(self, script: str) -> None:
        """Wait until a script succeeds."""
        wait_for(lambda: self.machine.run(script, cwd="/").returncode == 0, self.PATIENCE, every=0.5)

    def reboot(self) -> None:
        """Tell systemd to reboot, which ends the machine."""
        self.machine.spawn("systemctl reboot", cwd="/")
        self.machine.wait(self.PATIENCE)
