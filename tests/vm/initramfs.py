"""Build the guest's initramfs: busybox, the few modules that reach the host's files, and the first process."""

from __future__ import annotations

import lzma
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from .kernel import Kernel

# What reaches the host, then what udev would load for the SCSI disks that tests make.
MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay", "configfs", "sd_mod", "sr_mod", "sg")
SYSTEM = ("virtio_blk", "crc32c_generic", "ext4")  # and for a system on a disk
GUEST = Path(__file__).parent / "guest"
TRAILER = "TRAILER!!!"


def build(kernel: Kernel, more: tuple[str, ...] = ()) -> bytes:
    """An initramfs for this kernel, with `more` modules.

    It is an uncompressed archive: unpacking costs the guest more than reading.
    """
    busybox = shutil.which("busybox")
    if busybox is None:
        raise FileNotFoundError("no busybox; run: apt-get install busybox-static")
    archive = Archive()
    for directory in ("bin", "dev", "lower", "mod", "proc", "root", "rw", "sys"):
        archive.add(directory, stat.S_IFDIR | 0o755)
    archive.add("bin/busybox", stat.S_IFREG | 0o755, Path(busybox).read_bytes())
    for name in ("init", "agent"):
        archive.add(name, stat.S_IFREG | 0o755, (GUEST / name).read_bytes())
    names = []
    for file in kernel.module_files(MODULES + more):
        names.append(file.name.partition(".ko")[0])
        archive.add(f"mod/{names[-1]}.ko", stat.S_IFREG | 0o644, _module(file))
    archive.add("mod/order", stat.S_IFREG | 0o644, "".join(f"{name}\n" for name in names).encode())
    return archive.finish()


class Archive:
    """A cpio archive in the "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._entries = 0

    def add(self, name: str, mode: int, content: bytes = b"") -> None:
        self._entries += 1
        links = 2 if stat.S_ISDIR(mode) else 1
        path = name.encode() + b"\0"
        # ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        fields = (self._entries, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(path), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._parts.extend(_padded(header + path))
        self._parts.extend(_padded(content))

    def finish(self) -> bytes:
        self.add(TRAILER, 0)
        return b"".join(self._parts)


def _padded(data: bytes) -> Iterator[bytes]:
    yield data
    yield bytes(-len(data) % 4)


def _module(file: Path) -> bytes:
    data = file.read_bytes()
    return lzma.decompress(data) if file.suffix == ".xz" else data
