"""A disk in memory whose cfgstring says how it misbehaves.

`open=hang|raise|exit|nospace`, `read=hang|raise|exit|leak|hog`, `close=hang|raise`; with `once=/file` in reads until
that file is there, which the first one makes.
"""

import errno
import mmap
import os
import time

from tcmu_core import ConfigError, hookimpl


def taken(size):
    """Return memory that is really there; the kernel fills it faster than this emulated processor would."""
    return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)


class Handler:
    config_desc = "open=… or read=…"

    @hookimpl
    def check_config(self, cfgstring):
        if cfgstring.startswith("bad"):
            raise ConfigError(f"moody does not like {cfgstring!r}")

    @hookimpl
    def open(self, device):
        self.mood = dict(part.split("=") for part in device.cfgstring.split("+") if "=" in part)
        match self.mood.get("open"):
            case "hang":
                time.sleep(3600)
            case "raise":
                raise RuntimeError("moody today")
            case "exit":
                os._exit(3)
            case "nospace":
                raise OSError(errno.ENOSPC, "no space for a mood")
        self.data = bytearray(device.size)
        self.leaked = []

    @hookimpl
    def close(self):
        match self.mood.get("close"):
            case "hang":
                time.sleep(3600)
            case "raise":
                raise RuntimeError("moody today")

    def is_moody(self):
        once = self.mood.get("once")
        if once is None:
            return True
        try:
            os.close(os.open(once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    @hookimpl
    def read(self, device, offset, buffers):
        # The first blocks are left alone, so that the kernel can look at the disk.
        if offset >= 1 << 20 and self.is_moody():
            match self.mood.get("read"):
                case "hang":
                    time.sleep(3600)
                case "raise":
                    raise RuntimeError("moody today")
                case "exit":
                    os._exit(3)
                case "leak":
                    self.leaked.append(taken(16 << 20))
                case "hog":
                    while True:
                        self.leaked.append(taken(64 << 20))
        for buffer in buffers:
            buffer[:] = self.data[offset : offset + len(buffer)]
            offset += len(buffer)

    @hookimpl
    def write(self, offset, buffers):
        for buffer in buffers:
            self.data[offset : offset + len(buffer)] = buffer
            offset += len(buffer)

    @hookimpl
    def flush(self):
        pass
