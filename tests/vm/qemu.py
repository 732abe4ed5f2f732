"""The QEMU command line: acceleration, devices and kernel parameters."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

KVM_CREATE_VM = 0xAE01  # linux/kvm.h: _IO(KVMIO, 0x01)

# Without KVM: the smallest model with what x86-64-v2 binaries (numpy's wheels) need, and rdrand to seed the
# kernel's generator at once. `max` has features whose emulation costs more than they bring.
TCG_CPU = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand"

KERNEL_PARAMETERS = (
    "console=ttyS0",
    "quiet",  # errors still reach the console, and a panic prints all
    "panic=-1",  # reboot at once; with -no-reboot QEMU ends
    "oops=panic",  # after an oops no result can be trusted
    "mitigations=off",
    "tsc=reliable",
    "nowatchdog",  # an emulated CPU on a busy host is late, not stuck
    "rcupdate.rcu_cpu_stall_suppress=1",
)


def kvm_works() -> bool:
    """Whether KVM can run a stock kernel here.

    The device may be there, and even create a virtual machine, where a hypervisor offers it without
    hardware support (kvm_pvm): a stock kernel then hangs before its first line. So the processor must
    have the extension as well.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not {"vmx", "svm"} & set(flags):
            return False
        os.close(fcntl.ioctl(kvm, KVM_CREATE_VM, 0))
        return True
    except OSError:
        return False
    finally:
        os.close(kvm)


def command(
    *,
    kernel: Path,
    initramfs: Path,
    share: Path,
    console: Path,
    channel: int,
    cpus: int,
    memory: str,
    env: dict[str, str],
    disks: Sequence[str] = (),
    network: bool = False,
) -> list[str]:
    """The arguments of QEMU; `channel` is the descriptor of a connected socket, the agent's port in the guest.

    `env` goes to the guest's first process. setpriv has the kernel kill QEMU when the thread that
    started it ends, however that came about.
    """
    accel, cpu = ("kvm", "host") if kvm_works() else ("tcg,thread=multi", TCG_CPU)
    append = " ".join([*KERNEL_PARAMETERS, *(f"{name}={value}" for name, value in env.items())])
    drives = []
    for number, disk in enumerate(disks):  # flushes of the guest go through, nothing is cached on the way
        drives += ["-drive", f"file={disk},format=raw,if=none,cache=none,id=disk{number}"]
        drives += ["-device", f"virtio-blk-pci,drive=disk{number}"]
    card = []
    if network:  # QEMU connects in the guest's place, from sockets of its own; there is nothing to boot from
        card = ["-netdev", "user,id=net,ipv6=off", "-device", "virtio-net-pci,netdev=net,romfile="]
    # fmt: off
    return [
        "setpriv", "--pdeathsig", "KILL", "--",
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", "pc", "-accel", accel, "-cpu", cpu, "-smp", str(cpus), "-m", memory,
        "-kernel", str(kernel), "-initrd", str(initramfs), "-append", append,
        "-serial", f"file:{console}",
        "-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
        "-device", "virtio-9p-pci,fsdev=root,mount_tag=root",
        "-fsdev", f"local,id=share,path={share},security_model=none,multidevs=remap",
        "-device", "virtio-9p-pci,fsdev=share,mount_tag=share",
        "-chardev", f"socket,id=agent,fd={channel}",
        "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=agent",
        *drives, *card,
    ]
    # fmt: on
