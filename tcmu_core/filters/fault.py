"""The filter `fault`: a disk that fails as rules say, the same way each time."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tcmu_core import files
from tcmu_core.disk.device import Device
from tcmu_core.disk.layers import CHANGES, Operations
from tcmu_core.errors import AbortedCommand, ConfigError, MediumNotPresent
from tcmu_core.filters.base import Filter, after
from tcmu_core.filters.clock import CLOCK, Clock, Waiting
from tcmu_core.filters.faults import Action, error_of, parse_action
from tcmu_core.filters.rules import (
    DATA,
    HOOKS,
    MAX_FILE,
    Event,
    Rule,
    parse_conditions,
    parse_rule,
    parse_rules,
)
from tcmu_core.options import Option, Options, path
from tcmu_core.scsi.command import Command, slice_buffers
from tcmu_core.scsi.opcodes import Op

RETURNED = (0x28, 0x00)  # SPC-4 annex F: NOT READY TO READY CHANGE, MEDIUM MAY HAVE CHANGED
# What a drive answers without a medium (SPC-4 5.6, SBC-4 4.4)
_WITHOUT_MEDIUM = frozenset({Op.INQUIRY, Op.REPORT_LUNS, Op.REQUEST_SENSE, Op.MODE_SENSE_6, Op.MODE_SENSE_10,
                             Op.LOG_SENSE, Op.MAINTENANCE_IN, Op.PERSISTENT_RESERVE_IN})  # fmt: skip
LINK_PATIENCE = 1.0  # seconds that a command waits for its connection to be broken

Fired = tuple[Action, random.Random]


class Fault(Filter):
    """Let operations fail, hang, come late, or do the wrong thing, by rules that can be changed while it runs."""

    options = Options(
        Option("rule", help="a rule, or several in lines: CONDITIONS -> ACTIONS"),
        Option("file", path, "a file of rules, one a line"),
        Option("seed", help="what all that is random follows from", default="0"),
    )

    def __init__(self, clock: Clock = CLOCK) -> None:
        super().__init__()
        self.rules: list[Rule] = []
        self._waiting = Waiting(clock)
        self._armed: list[Fired] = []  # by a command's rule, for the hook that the command calls next
        self._added = 0
        self._gone = False
        self._seed = "0"

    def open(self, device: Device, below: Operations, options: Mapping[str, Any]) -> None:
        """Read the rules."""
        self._device = device
        self._seed = options.get("seed", "0")
        if "file" in options:
            path = Path(options["file"])
            text, _mode = files.text(path, MAX_FILE, "file of rules")
            try:
                self._extend(parse_rules(text, self._seed))
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from None
        self._extend(parse_rules(options.get("rule", ""), self._seed, self._added))

    def close(self) -> None:
        """End what hangs."""
        self._waiting.close()

    # -- rules --------------------------------------------------------------------------------------------------------

    def add(self, text: str, call: Callable[[Event], Any] | None = None) -> Rule:
        """Add a rule; with `call`, `text` is its conditions and that function is asked what is to happen.

        The function gets an `Event`; it raises what is to be answered, or returns None or an action's text. A disk
        that is in use must be resolved anew afterwards (`Disk.tell` does).
        """
        seed = f"{self._seed}/{self._added}"
        rule = parse_rule(text, seed) if call is None else parse_conditions(text, seed)
        rule.call = call
        self._extend([rule])
        return rule

    def _extend(self, rules: list[Rule]) -> None:
        self.rules += rules
        self._added += len(rules)
        self._settle()

    def _settle(self) -> None:
        """Be in the way of what a rule may touch, and of nothing else."""
        hooks: set[str] = set()
        for rule in self.rules:
            hooks |= {*HOOKS, "handle_cmd"} if rule.of_commands else rule.hooks
        if self._gone or any(action.name == "gone" for rule in self.rules for action in rule.actions):
            hooks |= {*HOOKS, "handle_cmd"}
        self.passes = frozenset({*HOOKS, "handle_cmd", CHANGES} - hooks)

    def clear(self) -> None:
        """Forget all rules; what hangs goes on hanging."""
        self.rules.clear()
        self._armed.clear()
        self._settle()

    def release(self) -> int:
        """Let what hangs go on, and put the medium back; return how many commands that were."""
        if self._gone:
            self._gone = False
            self._device.notify(*RETURNED)
            self._settle()
        return self._waiting.release()

    def control(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `add` (with `rules`, lines), `list`, `clear` and `release`."""
        match message.get("action"):
            case "add":
                rules = parse_rules(str(message.get("rules", "")), self._seed, self._added)
                if not rules:
                    raise ConfigError("no rule was given")
                self._extend(rules)
            case "list":
                pass
            case "clear":
                self.clear()
            case "release":
                return {"released": self.release(), **self._state()}
            case other:
                raise ConfigError(f"{other!r} is nothing that can be asked of `fault`: add, list, clear or release")
        return self._state()

    def _state(self) -> dict[str, Any]:
        return {"rules": [rule.as_dict() for rule in self.rules], "waiting": len(self._waiting), "gone": self._gone}

    # -- what they do -------------------------------------------------------------------------------------------------

    def _fired(self, event: Event) -> list[Fired]:
        """Return what is to happen, of every rule that fires, in their order; with the random numbers of the rule."""
        if self._gone and event.opcode not in _WITHOUT_MEDIUM:
            raise MediumNotPresent
        found: list[tuple[Action | None, random.Random]] = []
        for rule in self.rules:
            if rule.matches(event, self._device.block_size):
                actions = rule.actions
                if rule.call is not None:
                    answer = rule.call(event)
                    actions = (parse_action(str(answer)),) if answer is not None else ()
                found += [(_asked(action, event), rule.chance) for action in actions]
        return [(action, chance) for action, chance in found if action is not None]

    def _of_hook(self, event: Event) -> list[Fired]:
        """Return what is to happen to one call of a hook: what its command's rules said, then its own."""
        armed, self._armed = self._armed, []
        return armed + self._fired(event)

    def _perform(self, fired: list[Fired], event: Event, go_on: Callable[[], Any], *, tell: bool = False) -> Any:
        """Do the first action around the others, which are around `go_on`, the operation itself.

        `tell`: an error comes after the operation, because something was to go wrong with it first.
        """
        if not fired:
            return go_on()
        (action, chance), rest = fired[0], fired[1:]
        error = error_of(action)
        if error is not None:
            return after(go_on() if tell else None, functools.partial(_raise, error))
        match action.name:
            case "wait":
                return self._waiting.delayed(self._perform(rest, event, go_on, tell=tell), action.value(chance))
            case "hang":
                return self._waiting.hold(lambda: self._perform(rest, event, go_on, tell=tell))
            case "attention":
                self._device.notify(*action.value)
            case "gone":
                self._gone = True
                self._settle()
                raise MediumNotPresent
            case "drop":  # the command's own answer is nobody's, once the connection is gone
                self._device.drop_link(event.initiator)
                return self._waiting.failing(LINK_PATIENCE, AbortedCommand("its connection was to break"))
        return self._perform(rest, event, go_on, tell=tell or action.name in DATA)

    def handle_cmd(self, below: Callable[..., Any], command: Command) -> Any:
        """Look at a command; what its rules say about data waits for the hook that it calls."""
        block, initiator = self._device.block_size, command.nexus.initiator.name
        event = Event("command", command.lba * block, command.count * block, command.cdb[0], initiator)
        fired = self._fired(event)
        self._armed = [each for each in fired if each[0].name in DATA]
        return self._perform([each for each in fired if each[0].name not in DATA], event, lambda: below(command))

    # -- the hooks ----------------------------------------------------------------------------------------------------

    def read(self, below: Callable[..., Any], offset: int, buffers: list[memoryview]) -> Any:
        """Read, or not."""
        length = sum(map(len, buffers))
        event = Event("read", offset, length)
        fired = self._of_hook(event)
        flips = [_bit(action, chance, length) for action, chance in fired if action.name == "flip"]

        def go_on() -> Any:
            pending = below(offset, buffers)
            return after(pending, lambda: _flip(buffers, flips)) if flips else pending

        return self._perform(fired, event, go_on)

    def write(self, below: Callable[..., Any], offset: int, buffers: list[memoryview]) -> Any:
        """Write, or not, or something else somewhere else."""
        length = sum(map(len, buffers))
        event = Event("write", offset, length)
        fired = self._of_hook(event)
        block = self._device.block_size
        given = buffers
        for action, chance in fired:
            match action.name:
                case "torn":
                    given = slice_buffers(given, 0, action.value * block) if action.value else []
                case "misdirect":
                    last = (self._device.size or 0) - length
                    offset = min(max(0, offset + action.value * block), last)
                case "flip":
                    given = [memoryview(bytearray(b"".join(given)))]  # the initiator's own data stays as it is
                    _flip(given, [_bit(action, chance, len(given[0]))])
                case "lose":
                    given = []
        return self._perform(fired, event, lambda: below(offset, given) if given else None)

    def flush(self, below: Callable[..., Any]) -> Any:
        """Flush, or say so."""
        return self._whole("flush", below)

    def discard(self, below: Callable[..., Any], offset: int, length: int) -> Any:
        """Discard, or not."""
        return self._whole("discard", below, offset, length)

    def write_zeroes(self, below: Callable[..., Any], offset: int, length: int) -> Any:
        """Write zeros, or not."""
        return self._whole("write_zeroes", below, offset, length)

    def extents(self, below: Callable[..., Any], offset: int, length: int) -> Any:
        """Tell the extents, or not."""
        return self._whole("extents", below, offset, length)

    def _whole(self, hook: str, below: Callable[..., Any], *span: int) -> Any:
        """Do an operation without data, or pretend."""
        offset, length = span or (0, 0)
        event = Event(hook, offset, length)
        fired = self._of_hook(event)
        lost = hook != "extents" and any(action.name == "lose" for action, _chance in fired)
        return self._perform(fired, event, lambda: None if lost else below(*span))


def _asked(action: Action, event: Event) -> Action | None:
    """Return the action itself, or what the function that it names answers."""
    if action.name != "call":
        return action
    answer = action.value(event)
    return parse_action(str(answer)) if answer is not None else None


def _raise(error: BaseException) -> None:
    raise error


def _bit(action: Action, chance: random.Random, length: int) -> int:
    """Return the number of the bit to flip in data of `length` bytes."""
    bits = max(1, length * 8)
    return chance.randrange(bits) if action.value is None else int(action.value) % bits


def _flip(buffers: list[memoryview], bits: list[int]) -> None:
    for bit in bits:
        at = bit >> 3
        for buffer in buffers:
            if at < len(buffer):
                buffer.cast("B")[at] ^= 1 << (bit & 7)
                break
            at -= len(buffer)
