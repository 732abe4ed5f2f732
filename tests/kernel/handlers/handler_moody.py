"""A disk in memory whose cfgstring says how it misbehaves: `open=hang|raise|exit|slow`, `read=hang|raise|exit|leak`."""

import errno
import os
import time

from tcmu_core import ConfigError, hookimpl


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
        if self.mood.get("close") == "hang":
            time.sleep(3600)

    @hookimpl
    def read(self, device, offset, buffers):
        # The first blocks are left alone, so that the kernel can look at the disk.
        if offset >= 1 << 20:
            match self.mood.get("read"):
                case "hang":
                    time.sleep(3600)
                case "raise":
                    raise RuntimeError("moody today")
                case "exit":
                    os._exit(3)
                case "leak":
                    while True:
                        self.leaked.append(bytearray(os.urandom(1 << 20)))
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
