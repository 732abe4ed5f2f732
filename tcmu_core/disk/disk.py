"""Disk: a spec that was opened, with the handler at its bottom; bounded, changed and closed in one place."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

import pluggy

from tcmu_core.disk.device import Change, Device
from tcmu_core.disk.layers import Operations, chain_change, changes_nothing, plugin_manager, resolve, stack
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.disk.threads import wrong_result
from tcmu_core.errors import ConfigError, HandlerError, TcmuError, repr_of, text_of
from tcmu_core.identity import fresh_serial, serial_of
from tcmu_core.options import Options, declared
from tcmu_core.scsi.opcodes import Opcode

LARGEST_BLOCK = 65536
LARGEST_SIZE = (1 << 63) - 1  # bytes: off_t
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
    "buffer_alignment",
    "device_type",
)
_LIMITS = ("max_transfer_length", "max_discard_length")
_YES_OR_NO = ("read_only", "write_cache", "solid_state", "thin", "removable", "ephemeral")
MAX_DEVICE_TYPE = 0x1F
LARGEST_PHYSICAL = 1 << 15  # blocks: what the exponent of READ CAPACITY (16) has room for (SBC-4 5.16.2)
MAX_GRANULARITY = (1 << 32) - 1  # blocks: OPTIMAL UNMAP GRANULARITY has four bytes (SBC-4 6.6.4)
_CHECKED = ("size", "opcodes", "serial", *_TEXTS, *_NUMBERS, *_YES_OR_NO)
MAX_SERIAL = 252  # bytes: what the designator of VPD page 83h has room for, beside the vendor (SPC-4 7.8.6)


class Layer(Protocol):
    """What the disk needs of a filter; `tcmu_core.filters.base.Filter` is the whole of it, for authors."""

    name: str
    given: Mapping[str, Any]  # its options, as they were given for this disk
    live: ClassVar[bool]
    settable: ClassVar[frozenset[str]]
    options: ClassVar[Options]

    def open(self, device: Device, below: Operations, options: Mapping[str, Any]) -> None:
        """Get ready, upon what is open."""

    def close(self) -> None:
        """Let go."""

    def control(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a message."""


class Disk:
    """One disk from `open` to `close`. `device` is what its handler sees; `operations` what the engine calls."""

    operations: Operations

    def __init__(self, spec: DiskSpec, plugin: object, filters: Iterable[Layer] = ()) -> None:
        self.spec = spec
        self.device = Device(
            spec.name,
            spec.handler,
            spec.cfgstring,
            spec.size,
            block_size=spec.block_size,
            read_only=spec.read_only,
            max_transfer_length=spec.max_transfer,
            options=_defaults(spec),
            serial=spec.serial,
        )
        self.filters: list[Layer] = list(filters)
        self.own_serial = False  # whether the handler has set one, which goes before what the runner gave
        self._manager = plugin_manager(plugin, spec.handler)
        self._declared = declared(plugin)
        self._pid = os.getpid()
        self._opened = False
        self._sound: dict[str, Any] = {}  # the device's attributes, as they were when they were looked at last
        self._open_filters = 0  # how many of them, from the lowest on

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
        """Open the storage and resolve its hooks, waiting for the Future that the handler may answer with.

        Raises:
            ConfigError, OSError, CommandError: what the handler says.
            HandlerError: it broke, or left the device as no disk can be.
        """
        for pending in self.opening():
            wait((pending,))

    def opening(self) -> Iterator[Future[Any]]:
        """Open in steps: yields what has to have ended before the next one; raises as `open` does."""
        device, hooks = self.device, self._manager.hook
        _parse(self._declared, self.spec.handler, device.cfgstring, device.options)
        _ask(self._manager, self.spec.handler, device.cfgstring)
        if device.size:
            self._check_size(device.size)  # before the handler makes a file of a size that no disk has
        try:
            try:
                result = hooks.open(device=device)
                self._opened = True  # who gives it up while it opens has it closed
                if isinstance(result, Future):
                    yield result
                    self._opened = not result.cancelled() and result.exception() is None
                self._finish("open", result)
            except OSError as error:
                if error.errno and error.filename is None and error.strerror == os.strerror(error.errno):
                    error.filename = device.cfgstring or None  # a number alone tells nobody what it is about
                raise
            except TcmuError:
                raise
            except BaseException as error:
                raise self._broken(error) from error
            if device.reactor is not None:
                device.reactor.watch_elsewhere(device.in_flight)
            self._check()
            size, block = device.size or 0, device.block_size
            if size % block:
                device.log.warning(
                    "%d bytes are no whole blocks of %d: the last %d are left out", size, block, size % block
                )
            self._bound()
            self._open_all()
        except BaseException:
            self.close_quietly()
            raise
        finally:
            self._nothing_more()
        self.own_serial = bool(device.serial) and device.serial != self.spec.serial
        device.serial = device.serial or self._identity()
        self.settle()

    def _nothing_more(self) -> None:
        """What a hook told the progress of is over with it."""
        if self.device.doing is not None:
            self.device.progress(0, 0)

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
            result = result.result()
        if result is not None:
            raise HandlerError(f"handler {self.spec.handler!r}, {hook}: {wrong_result(result)}")

    def _broken(self, error: BaseException) -> TcmuError:
        # Arithmetic with None, a bytearray of None: it counted on a size that nobody gave.
        if self.device.size is None and isinstance(error, TypeError):
            return ConfigError(
                f"no size: give one (tcmu serve --size 1G); without it the handler {self.spec.handler!r} "
                f"failed to open: {text_of(error)}"
            )
        return HandlerError(f"handler {self.spec.handler!r} broke while it opened the device: {text_of(error)}")

    def _bound(self) -> None:
        """Hold the handler to the limit of a transfer that the way in has: the smallest of all counts."""
        device, most = self.device, self.spec.max_transfer
        if most:
            device.max_transfer_length = min(device.max_transfer_length or most, most)

    def _check(self) -> None:
        """Look at what `open` has left: what is wrong now would be wrong in every command."""
        device = self.device
        who = f"handler {device.handler!r}, device {device.name!r}"
        for name in _NUMBERS:
            value: Any = getattr(device, name)
            if not _is_whole(value) or value < 0:
                raise HandlerError(f"{who}: {name} is {repr_of(value)}: it must be a whole number, not negative")
        for name in _YES_OR_NO:
            value = getattr(device, name)
            if not isinstance(value, bool):
                raise HandlerError(f"{who}: {name} is {repr_of(value)}: it must be True or False")
        if device.device_type > MAX_DEVICE_TYPE:
            raise HandlerError(f"{who}: device_type is {device.device_type:#x}: it has five bits (SPC-4 6.6.2)")
        opcodes: Any = device.opcodes
        if not isinstance(opcodes, tuple | list) or not all(isinstance(one, Opcode) for one in opcodes):
            raise HandlerError(f"{who}: opcodes must be a tuple of tcmu_core.Opcode")
        for row in opcodes:
            problem = row.problem
            if problem:
                raise HandlerError(f"{who}: opcodes: {repr_of(row.name)}: {problem}")
        size: Any = device.size
        if size is None:
            raise ConfigError(f"{who}: no size: give one (tcmu serve --size 1G), the handler could not find it out")
        if not _is_whole(size):
            raise HandlerError(f"{who}: size is {repr_of(size)}: it must be a whole number of bytes")
        block = device.block_size
        if not 512 <= block <= LARGEST_BLOCK or block & (block - 1):
            raise HandlerError(f"{who}: block_size {block} is no power of two from 512 to {LARGEST_BLOCK}")
        self._check_size(size)
        physical = device.physical_block_size
        if physical and (physical < block or physical % block):
            raise HandlerError(f"{who}: physical_block_size {physical} is no multiple of {block}")
        if physical & (physical - 1) or physical > LARGEST_PHYSICAL * block:
            raise HandlerError(
                f"{who}: physical_block_size {physical} is no power of two from {block} to {LARGEST_PHYSICAL * block}"
            )
        alignment = device.buffer_alignment
        if not 1 <= alignment <= LARGEST_BLOCK or alignment & (alignment - 1):
            raise HandlerError(
                f"{who}: buffer_alignment is {alignment}: it must be a power of two, {LARGEST_BLOCK} bytes at most"
            )
        for name in _LIMITS:
            limit = getattr(device, name)
            if 0 < limit < block:
                raise HandlerError(f"{who}: {name} is {limit}, less than one block of {block} bytes: 0 is no limit")
        if device.discard_granularity > MAX_GRANULARITY * block:
            raise HandlerError(
                f"{who}: discard_granularity is {device.discard_granularity}: at most {MAX_GRANULARITY * block} bytes"
            )
        for name, most in _TEXTS.items():
            self._check_text(who, name, most)
        self._check_text(who, "serial", MAX_SERIAL)

    def settle(self) -> HandlerError | ConfigError | None:
        """Look at what the handler has changed since it was opened; what no disk can be goes back to what it was.

        Returns what was wrong.
        """
        try:
            self._check()
        except (HandlerError, ConfigError) as error:
            self._put_back(self._sound)
            return error
        self._sound = {name: getattr(self.device, name) for name in _CHECKED}
        return None

    def _put_back(self, attributes: Mapping[str, Any]) -> None:
        for name, value in attributes.items():
            setattr(self.device, name, value)

    def _check_size(self, size: int) -> None:
        device = self.device
        who = f"handler {device.handler!r}, device {device.name!r}"
        if size < 0 or (size < device.block_size and not device.removable):
            raise ConfigError(f"{who}: size {size} is less than one block of {device.block_size} bytes")
        if size > LARGEST_SIZE:
            raise ConfigError(f"{who}: size {size} is more than a file can have: {LARGEST_SIZE} bytes")
        if size == self.spec.size and size % device.block_size:  # the rest would be there the next time, or not at all
            raise ConfigError(f"{who}: {size} bytes are not whole blocks of {device.block_size}")

    def _check_text(self, who: str, name: str, most: int) -> None:
        text: Any = getattr(self.device, name)
        if not isinstance(text, str) or len(text) > most or not (text.isascii() and (text.isprintable() or not text)):
            raise HandlerError(f"{who}: {name} is {repr_of(text)}: at most {most} printable ASCII characters")

    def resolve(self) -> None:
        """Turn hooks into callables; again after the handler changed `device.threads`, or a filter what it does."""
        operations = resolve(self._manager, self.device, read_only=self.spec.read_only)
        for layer in self.filters[: self._open_filters]:
            operations = stack(layer, operations)
        self.operations = operations
        if operations.write is None:
            self.device.read_only = True
        if operations.flush is None:
            self.device.write_cache = False

    # -- filters ------------------------------------------------------------------------------------------------------

    def _open_all(self) -> None:
        """Open the filters from the lowest on, each upon those that are open."""
        self.resolve()
        for layer in self.filters:
            self._open_filter(layer)

    def _open_filter(self, layer: Layer) -> None:
        with _filters_own(layer, "opened"):
            layer.open(self.device, self.operations, layer.given)
            self._open_filters += 1
            self.resolve()
        self._check()

    def push(self, layer: Layer) -> None:
        """Put one more filter on top of a disk that is in use.

        Raises:
            ConfigError: it changes what is read, so it can't come later; or what its `open` raises.
        """
        if not layer.live:
            raise ConfigError(f"the filter {layer.name!r} can't be put on a disk that is in use: open the disk with it")
        device = self.device
        before = {name: getattr(device, name) for name in _CHECKED}
        self.filters.append(layer)
        try:
            self._open_filter(layer)
            for name in ("size", "block_size", "read_only", "write_cache"):
                if getattr(device, name) != before[name]:
                    raise HandlerError(
                        f"the filter {layer.name!r} has changed the {name} of a disk that is in use: one that does so "
                        "has to say live = False"
                    )
        except BaseException:
            self._put_back(before)
            self._take_off(layer)
            raise

    def pop(self, name: str) -> None:
        """Take the uppermost filter of that name off a disk that is in use; what is in it ends.

        Raises:
            ConfigError: there is none, or it can't be taken off.
        """
        layer = self.filter(name)
        if not layer.live:
            raise ConfigError(f"the filter {name!r} can't be taken off a disk that is in use")
        self._take_off(layer)

    def _take_off(self, layer: Layer) -> None:
        was_open = self.filters.index(layer) < self._open_filters
        self.filters.remove(layer)
        self._open_filters -= was_open
        self.resolve()
        if was_open:
            with _filters_own(layer, "closed"):
                layer.close()

    def filter(self, name: str) -> Layer:
        """Return the uppermost filter of that name; raises `ConfigError`."""
        for layer in reversed(self.filters):
            if layer.name == name:
                return layer
        known = ", ".join(layer.name for layer in self.filters)
        raise ConfigError(f"the disk {self.spec.name!r} has no filter {name!r}: it has {known or 'none'}")

    @property
    def filter_texts(self) -> tuple[str, ...]:
        """Return the filters, the lowest first, with their options as far as the disk was opened with them."""
        given = list(self.spec.filters)
        found = []
        for layer in self.filters:
            text = next((text for text in given if text.partition(";")[0].strip() == layer.name), layer.name)
            if text in given:
                given.remove(text)
            found.append(text)
        return tuple(found)

    def tell(self, name: str, message: Mapping[str, Any]) -> dict[str, Any]:
        """Have the uppermost filter of that name answer a message; what it does to commands may change by it."""
        answer = ask(self.filter(name), message)
        self.resolve()
        return answer

    def change(self, change: Change) -> None:
        """Have the handler take a change (bytes).

        Raises:
            NotImplementedError: the handler has no `reconfigure` hook.
            ConfigError: the size is not whole blocks, nothing can be flushed; or what the handler raises.
            HandlerError: it broke, or has left the device as no disk can be.
        """
        device = self.device
        if change.size is not None and (change.size <= 0 or change.size % device.block_size):
            raise ConfigError(f"{change.size} bytes are not whole blocks of {device.block_size}")
        if change.size is not None:
            self._check_size(change.size)
        if change.write_cache and self.operations.flush is None:
            raise ConfigError("there is no write cache to be switched on: nothing here can be flushed")
        if change.cfgstring is not None:
            _parse(self._declared, self.spec.handler, change.cfgstring, device.options)
        busy = device.doing
        before = {name: getattr(device, name) for name in (*_CHECKED, "cfgstring")}
        done = False
        try:
            chain_change(self.filters[: self._open_filters], device, self._change_handler)(change)
            done = True
        except (TcmuError, OSError, NotImplementedError):
            raise
        except BaseException as error:
            raise HandlerError(f"handler {device.handler!r} broke while it took a change: {text_of(error)}") from error
        finally:
            if not done:  # a change that was refused is none, whatever was set on the way
                self._put_back(before)
            if busy is None:  # else it is no matter of this hook: a sanitize operation goes on
                self._nothing_more()
        if change.size is not None:
            device.size = change.size
        elif change.cfgstring is not None:
            device.cfgstring = change.cfgstring
        elif change.write_cache is not None:
            device.write_cache = change.write_cache
        wrong = self.settle()
        if wrong is not None:
            raise wrong

    def _change_handler(self, change: Change) -> None:
        if not self.has("reconfigure"):
            if change.write_cache is not None and changes_nothing(self.device, change):
                return  # an initiator has chosen another mode, which needs no handler
            raise NotImplementedError(f"handler {self.device.handler!r} can't change a device that is open")
        self._finish("reconfigure", self._manager.hook.reconfigure(device=self.device, change=change))

    def end_child(self, error: BaseException) -> None:
        """End a child that a hook has forked, and that leaves the hook by raising, by sys.exit perhaps.

        It has the sockets of its parent, and would be a second server.
        """
        if os.getpid() != self._pid:
            os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)

    def close(self) -> None:
        """Let work on threads end, then close filters and storage, in this order; nothing for one that is not open.

        Raises:
            OSError, TcmuError: what the handler says; HandlerError for anything else.
        """
        problem = self._close_filters()
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
        finally:
            self.device.shutdown(wait=False)  # another pool, if the hook has offloaded something
            self._nothing_more()
        if problem is not None:
            raise problem

    def _close_filters(self) -> TcmuError | OSError | None:
        """Close the filters from the top down, all of them; return what the first to fail says."""
        problem: TcmuError | OSError | None = None
        while self._open_filters:
            self._open_filters -= 1
            layer = self.filters[self._open_filters]
            try:
                with _filters_own(layer, "closed"):
                    layer.close()
            except (TcmuError, OSError) as error:
                problem = problem or error
        return problem

    def close_quietly(self) -> None:
        """Close it; what goes wrong is in the log alone."""
        try:
            self.close()
        except (TcmuError, OSError) as error:
            self.device.log.error("closing failed: %s", text_of(error))


def ask(layer: Layer, message: Mapping[str, Any]) -> dict[str, Any]:
    """Have a filter answer a message.

    Raises:
        ConfigError, OSError: what it says.
        HandlerError: it broke, or has answered what can't be sent to the person.
    """
    with _filters_own(layer, "answered"):
        answer: Any = layer.control(message)
        if not isinstance(answer, dict):
            raise TypeError(f"its control returned {type(answer).__name__!r}: it must be a dict")
        json.dumps(answer)
        return answer


@contextmanager
def _filters_own(layer: Layer, doing: str) -> Iterator[None]:
    """What a filter raises while it is asked for something is its own error, and ends nothing else."""
    try:
        yield
    except (TcmuError, OSError):
        raise
    except BaseException as error:
        raise HandlerError(f"filter {layer.name!r} broke while it {doing}: {text_of(error)}") from error


def _defaults(spec: DiskSpec) -> Mapping[str, str]:
    """Return the handler's defaults for a disk: where it has a size of its own, that of tcmu.conf says nothing."""
    return {name: value for name, value in spec.options.items() if name != "size" or not spec.size}


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_config(plugin: object, name: str, cfgstring: str, defaults: Mapping[str, str] | None = None) -> None:
    """Ask a handler, and the options that it declares, whether `cfgstring` can be right; raises `ConfigError`."""
    _parse(declared(plugin), name, cfgstring, defaults)
    _ask(plugin_manager(plugin, name), name, cfgstring)


def _parse(options: Options | None, name: str, cfgstring: str, defaults: Mapping[str, str] | None) -> None:
    """Hold a cfgstring against the options that a handler declares, if it does.

    Raises:
        ConfigError: it can't be right.
        HandlerError: one of the handler's own converters broke.
    """
    if options is None:
        return
    try:
        options.parse(cfgstring, defaults)
    except ConfigError:
        raise
    except BaseException as error:
        raise HandlerError(f"handler {name!r} broke while it read its options: {text_of(error)}") from error


def _ask(manager: pluggy.PluginManager, name: str, cfgstring: str) -> None:
    """Call the `check_config` hook; raises `ConfigError`, or `HandlerError` when it broke."""
    try:
        result = manager.hook.check_config(cfgstring=cfgstring)
    except (TcmuError, OSError):
        raise
    except BaseException as error:
        raise HandlerError(f"handler {name!r} broke while it looked at its cfgstring: {text_of(error)}") from error
    if result is not None:
        raise HandlerError(f"handler {name!r}, check_config: {wrong_result(result)}")
