"""Find a Debian kernel with its modules and unpack it, so that QEMU can enter it directly."""

from __future__ import annotations

import lzma
import re
import struct
from dataclasses import dataclass
from pathlib import Path

# The x86 boot protocol (Documentation/x86/boot.rst): offsets into a bzImage.
SETUP_SECTS = 0x1F1
PAYLOAD_OFFSET = 0x248  # two 32-bit words: offset from the end of the setup sectors, and length
SECTOR = 512
XZ_MAGIC = b"\xfd7zXZ\x00"


class KernelNotFound(Exception):
    """No kernel on this machine can be booted by the harness."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel image and the directory of its modules."""

    image: Path
    release: str
    modules: Path

    @classmethod
    def at(cls, image: Path) -> Kernel:
        """The kernel `…/boot/vmlinuz-RELEASE`, whose modules are in `…/lib/modules/RELEASE`.

        So an unpacked package serves as well as an installed one, once `depmod -b DIR RELEASE` has run.
        """
        release = image.name.removeprefix("vmlinuz-")
        modules = image.parent.parent / "lib/modules" / release
        if not (modules / "modules.dep").is_file():
            raise KernelNotFound(f"{image} has no {modules}/modules.dep")
        return cls(image, release, modules)

    @classmethod
    def newest(cls, root: Path = Path("/")) -> Kernel:
        """The newest stock kernel installed below `root`. The -cloud flavour is passed over: it has no 9p."""
        images = [
            image
            for image in (root / "boot").glob("vmlinuz-*-amd64")
            if "-cloud-" not in image.name
            and (root / "lib/modules" / image.name.removeprefix("vmlinuz-") / "modules.dep").is_file()
        ]
        if not images:
            raise KernelNotFound("no /boot/vmlinuz-*-amd64 with modules; run: apt-get install linux-image-amd64 kmod")
        return cls.at(max(images, key=_version))

    def module_files(self, names: tuple[str, ...]) -> list[Path]:
        """The files of these modules and of all that they need, in loading order. Built-in ones have none."""
        files: dict[str, str] = {}
        needs: dict[str, list[str]] = {}
        for line in (self.modules / "modules.dep").read_text().splitlines():
            file, _, rest = line.partition(":")
            files[_module_name(file)] = file
            needs[file] = rest.split()
        builtin = {_module_name(line) for line in (self.modules / "modules.builtin").read_text().split()}

        order: dict[str, None] = {}
        for name in names:
            if name in builtin:
                continue
            if name not in files:
                raise KernelNotFound(f"kernel {self.release} has no module {name}")
            # modules.dep lists the transitive needs of a module, the ones to load first at the end.
            order.update(dict.fromkeys([*reversed(needs[files[name]]), files[name]]))
        return [self.modules / file for file in order]

    def unpack(self, directory: Path) -> Path:
        """The file to give to `qemu -kernel`.

        An ELF image with a PVH note is entered directly, which spares the guest the BIOS and the decompressor:
        together they are two thirds of an emulated boot. What is not an xz image is booted as it is.
        """
        image = self.image.read_bytes()
        offset, length = struct.unpack_from("<II", image, PAYLOAD_OFFSET)
        start = (image[SETUP_SECTS] + 1) * SECTOR + offset
        payload = image[start : start + length]
        if not payload.startswith(XZ_MAGIC):
            return self.image
        # The four bytes that follow the stream (its unpacked size) are left unread.
        unpacked = directory / "vmlinux"
        unpacked.write_bytes(lzma.LZMADecompressor().decompress(payload))
        return unpacked


def _version(image: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", image.name)]


def _module_name(file: str) -> str:
    return file.rpartition("/")[2].partition(".ko")[0].replace("-", "_")
