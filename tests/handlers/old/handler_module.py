"""A module whose state is the device's: the first shape that a handler had."""

from tcmu_core import hookimpl

config_desc = "nothing"


@hookimpl
def check_config(cfgstring):
    pass


@hookimpl
def open(device):
    device.size = device.size or 1 << 20
    device.state = bytearray(device.size)


@hookimpl
def close(device):
    device.state = None


@hookimpl
def read(device, offset, buffers):
    for buffer in buffers:
        buffer[:] = device.state[offset : offset + len(buffer)]
        offset += len(buffer)


@hookimpl
def write(device, offset, buffers):
    for buffer in buffers:
        device.state[offset : offset + len(buffer)] = buffer
        offset += len(buffer)


@hookimpl
def flush(device):
    pass
