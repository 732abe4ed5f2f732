"""Disk: a spec that was opened, with the handler at its bottom; bounded, changed and closed in one place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import Any

from tcmu_core.disk.device import Change, Device
from tcmu_core.disk.layers import Operations, plugin_manager, resolve, stack
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.disk.threads import wrong_result
from tcmu_core.errors import ConfigError, HandlerError, TcmuError, text_of
from tcmu_core.identity import fresh_serial, serial_of
from tcmu_core.options import declared
from tcmu_core.scsi.opcodes import Opcode

LARGEST_BLOCK = 65536
_TEXTS = {"vendor": 8, "product": 16, "revision": 4}  # bytes in standard INQUIRY data (SPC-4 6.6.2)
_NUMBERS = (
    "block_size",
    "physical_block_size",
    "threads",
    "max_transfer_length",
    "optimal_transfer_length",
    "max_discard_length",
    "discard_granularity",
    "discard_alignment",
    "device_type",
)
_YES_OR_NO = ("read_only", "write_cache", "solid_state", "thin", "removable", "ephemeral")
MAX_DEVICE_TYPE = 0x1F
MAX_SERIAL = 252  # bytes: what the designator of VPD page 83h has room for, beside the vendor (SPC-4 7.8.6)


class Disk:
    """One disk from `open` to `close`. `device` is what its handler sees; `operations` what the engine calls."""

    operations: Operations

    def __init__(self, spec: DiskSpec, plugin: object, filters: Iterable[object] = ()) -> None:
        self.spec = spec
        self.device = Device(
            spec.name,
            spec.handler,
            spec.cfgstring,
            spec.size,
            block_size=spec.block_size,
            read_only=spec.read_only,
            max_transfer_length=spec.max_transfer,
            options=spec.options,
            serial=spec.serial,
        )
        self.filters = tuple(filters)
        self._manager = plugin_manager(plugin, spec.handler)
        self._declared = declared(plugin)
        self._opened = False

    @property
    def title(self) -> str:
        """Return `subtype/name`, as log lines have it."""
        return self.spec.title

    @property
    def read_only(self) -> bool:
        """Whether it takes no writes: because a person said so, the handler can't, or what is in it may not."""
        return self.spec.read_only or self.device.read_only or self.operations.write is None

    def has(self, hook: str) -> bool:
        """Return whether the handler implements a hook."""
        return bool(getattr(self._manager.hook, hook).get_hookimpls())

    # -- its life -----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the storage and resolve its hooks.

        Raises:
            ConfigError, OSError, CommandError: what the handler says.
            HandlerError: it broke, or left the device as no disk can be.
        """
        device, hooks = self.device, self._manager.hook
        if self._declared is not None:
            self._declared.parse(device.cfgstring, device.options)
        hooks.check_config(cfgstring=device.cfgstring)
        try:
            try:
                result = hooks.open(device=device)
            except (TcmuError, OSError):
                raise
            except BaseException as error:
                raise self._broken(error) from error
            self._opened = True
            if device.reactor is not None:
                device.reactor.watch_elsewhere(device.in_flight)
            self._finish("open", result)
            self._check()
            self.resolve()
        except BaseException:
            self._close_quietly()
            raise
        device.serial = device.serial or self._identity()

    def _identity(self) -> str:
        """Return the serial number of a disk that has none of its own: the same each time for what is the same."""
        spec, device = self.spec, self.device
        if device.ephemeral or not spec.place:
            return fresh_serial()
        storage = "" if device.removable else spec.cfgstring  # a drive stays the same when its disc changes
        return serial_of(spec.handler, storage, *spec.place)

    def _finish(self, hook: str, result: object) -> None:
        """Wait for what a hook returned that is no data hook."""
        if isinstance(result, Future):
            result.result()
        elif result is not None:
            raise HandlerError(f"handler {self.spec.handler!r}, {hook}: {wrong_result(result)}")

    def _broken(self, error: BaseException) -> TcmuError:
        # Arithmetic with None, a bytearray of None: it counted on a size that nobody gave.
        if self.device.size is None and isinstance(error, TypeError):
            return ConfigError(
                f"no size: give one (tcmu serve --size 1G); without it the handler {self.spec.handler!r} "
                f"failed to open: {text_of(error)}"
            )
        return HandlerError(f"handler {self.spec.handler!r} broke while it opened the device: {text_of(error)}")

    def _check(self) -> None:
        """Look at what `open` has left: what is wrong now would be wrong in every command."""
        device = self.device
        who = f"handler {device.handler!r}, device {device.name!r}"
        for name in _NUMBERS:
            value: Any = getattr(device, name)
            if not _is_whole(value) or value < 0:
                raise HandlerError(f"{who}: {name} is {value!r}: it must be a whole number, not negative")
        for name in _YES_OR_NO:
            value = getattr(device, name)
            if not isinstance(value, bool):
                raise HandlerError(f"{who}: {name} is {value!r}: it must be True or False")
        if device.device_type > MAX_DEVICE_TYPE:
            raise HandlerError(f"{who}: device_type is {device.device_type:#x}: it has five bits (SPC-4 6.6.2)")
        opcodes: Any = device.opcodes
        if not isinstance(opcodes, tuple | list) or not all(isinstance(one, Opcode) for one in opcodes):
            raise HandlerError(f"{who}: opcodes must be a tuple of tcmu_core.Opcode")
        size: Any = device.size
        if size is None:
            raise ConfigError(f"{who}: no size: give one (tcmu serve --size 1G), the handler could not find it out")
        if not _is_whole(size):
            raise HandlerError(f"{who}: size is {size!r}: it must be a whole number of bytes")
        block = device.block_size
        if not 512 <= block <= LARGEST_BLOCK or block & (block - 1):
            raise HandlerError(f"{who}: block_size {block} is no power of two from 512 to {LARGEST_BLOCK}")
        if size < 0 or (size < block and not device.removable):
            raise ConfigError(f"{who}: size {size} is less than one block of {block} bytes")
        physical = device.physical_block_size
        if physical and (physical < block or physical % block):
            raise HandlerError(f"{who}: physical_block_size {physical} is no multiple of {block}")
        for name, most in _TEXTS.items():
            self._check_text(who, name, most)
        self._check_text(who, "serial", MAX_SERIAL)

    def _check_text(self, who: str, name: str, most: int) -> None:
        text: Any = getattr(self.device, name)
        if not isinstance(text, str) or len(text) > most or not (text.isascii() and (text.isprintable() or not text)):
            raise HandlerError(f"{who}: {name} is {text!r}: at most {most} printable ASCII characters")

    def resolve(self) -> None:
        """Turn hooks into callables; again after the handler changed `device.threads`."""
        operations = resolve(self._manager, self.device, read_only=self.spec.read_only)
        for layer in self.filters:
            operations = stack(layer, operations)
        self.operations = operations
        if operations.write is None:
            self.device.read_only = True
        if operations.flush is None:
            self.device.write_cache = False

    def change(self, change: Change) -> None:
        """Have the handler take a change (bytes).

        Raises:
            NotImplementedError: the handler has no `reconfigure` hook.
            ConfigError: the size is not whole blocks; or what the handler raises.
        """
        device = self.device
        if change.size is not None and (change.size <= 0 or change.size % device.block_size):
            raise ConfigError(f"{change.size} bytes are not whole blocks of {device.block_size}")
        if not self.has("reconfigure"):
            raise NotImplementedError(f"handler {device.handler!r} can't change a device that is open")
        if change.cfgstring is not None and self._declared is not None:
            self._declared.parse(change.cfgstring, device.options)
        try:
            self._finish("reconfigure", self._manager.hook.reconfigure(device=device, change=change))
        except (TcmuError, OSError, NotImplementedError):
            raise
        except BaseException as error:
            raise HandlerError(f"handler {device.handler!r} broke while it took a change: {text_of(error)}") from error
        if change.size is not None:
            device.size = change.size
        elif change.cfgstring is not None:
            device.cfgstring = change.cfgstring
        elif change.write_cache is not None:
            device.write_cache = change.write_cache

    def close(self) -> None:
        """Let work on threads end, then close the storage; does nothing for one that is not open.

        Raises:
            OSError, TcmuError: what the handler says; HandlerError for anything else.
        """
        self.device.shutdown()
        if not self._opened:
            return
        self._opened = False
        if self.device.reactor is not None:
            self.device.reactor.forget_elsewhere(self.device.in_flight)
        try:
            self._finish("close", self._manager.hook.close(device=self.device))
        except (TcmuError, OSError):
            raise
        except BaseException as error:
            raise HandlerError(f"handler {self.spec.handler!r} broke while it closed: {text_of(error)}") from error

    def _close_quietly(self) -> None:
        try:
            self.close()
        except (TcmuError, OSError) as error:
            self.device.log.error("closing failed: %s", text_of(error))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_config(plugin: object, name: str, cfgstring: str, defaults: Mapping[str, str] | None = None) -> None:
    """Ask a handler, and the options that it declares, whether `cfgstring` can be right; raises `ConfigError`."""
    options = declared(plugin)
    if options is not None:
        options.parse(cfgstring, defaults)
    plugin_manager(plugin, name).hook.check_config(cfgstring=cfgstring)
