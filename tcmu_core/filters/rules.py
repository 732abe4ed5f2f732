"""The rules of a fault disk: `CONDITION … -> ACTION …`, read from a line and matched against operations and commands.

Conditions: the hooks (`read write flush discard write_zeroes extents`, or `any`) or `op=WRITE_10,…` with
`initiator=PATTERN`; `lba=FIRST-LAST`; `nth=N`, `every=N`, `after=N`, `times=N`; `probability=P`; `while=FILE`.
"""

from __future__ import annotations

import fnmatch
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tcmu_core.errors import ConfigError
from tcmu_core.filters.faults import ACTIONS, Action, parse_action
from tcmu_core.scsi.opcodes import Op

HOOKS = ("read", "write", "flush", "discard", "write_zeroes", "extents")
ARROW = "->"
MAX_FILE = 1 << 20  # bytes of a file of rules
_COUNTS = ("nth", "every", "after", "times")
# Actions that change what a hook does with data, and the hooks that have such data.
DATA = {
    "torn": frozenset({"write"}),
    "misdirect": frozenset({"write"}),
    "flip": frozenset({"read", "write"}),
    "lose": frozenset({"write", "flush", "discard", "write_zeroes"}),
}


@dataclass(frozen=True, slots=True)
class Event:
    """What a rule looks at: a hook's call, or (`hook` is "command") a CDB on its way to the engine. Sizes in bytes."""

    hook: str
    offset: int = 0
    length: int = 0
    opcode: int = -1
    initiator: str = ""


@dataclass(slots=True)
class Rule:
    """One rule and what it has counted. Without hooks it is one of commands."""

    text: str
    actions: tuple[Action, ...] = ()
    hooks: frozenset[str] = frozenset()
    opcodes: frozenset[int] = frozenset()
    initiator: str = ""
    lba: tuple[int, int] | None = None
    nth: int = 0
    every: int = 0
    after: int = 0
    times: int = 0
    probability: float = 1.0
    while_exists: str = ""
    call: Callable[[Event], Any] | None = None  # a program's own; given by it, not by a text
    chance: random.Random = field(default_factory=random.Random)
    seen: int = 0
    fired: int = 0

    @property
    def of_commands(self) -> bool:
        """Whether it looks at commands rather than at hooks."""
        return bool(self.opcodes or self.initiator)

    def matches(self, event: Event, block_size: int) -> bool:
        """Say whether the rule fires for this event, and count it."""
        if (event.hook == "command") is not self.of_commands:
            return False
        if self.of_commands:
            if self.opcodes and event.opcode not in self.opcodes:
                return False
            if self.initiator and not fnmatch.fnmatchcase(event.initiator, self.initiator):
                return False
        elif event.hook not in self.hooks:
            return False
        if self.lba is not None:
            first, last = self.lba
            if event.offset >= (last + 1) * block_size or event.offset + event.length <= first * block_size:
                return False
        if self.while_exists and not os.path.exists(self.while_exists):
            return False
        self.seen += 1
        if (self.nth and self.seen != self.nth) or self.seen <= self.after or (self.every and self.seen % self.every):
            return False
        if self.times and self.fired >= self.times:
            return False
        # Drawn last, and only for what could fire: the same commands give the same faults.
        if self.probability < 1 and self.chance.random() >= self.probability:
            return False
        self.fired += 1
        return True

    def as_dict(self) -> dict[str, Any]:
        """Return it for a person."""
        return {"rule": self.text, "seen": self.seen, "fired": self.fired}


def parse_rule(text: str, seed: str = "") -> Rule:
    """Return the rule that a line describes; what is random in it follows from `seed`.

    Raises:
        ConfigError: it is none; the message says which word.
    """
    conditions, arrow, action = text.partition(ARROW)
    if not arrow:
        raise ConfigError(f"{text!r} is no rule: write CONDITIONS -> ACTIONS, such as 'write lba=0-7 -> write-error'")
    actions = tuple(parse_action(word) for word in action.split())
    if not actions:
        raise ConfigError(f"{text!r}: no action: there are {', '.join(ACTIONS)}")
    rule = parse_conditions(conditions, seed)
    rule.text, rule.actions = " ".join(text.split()), actions
    if not rule.of_commands:
        for name, fitting in DATA.items():
            if any(action.name == name for action in actions) and not rule.hooks & fitting:
                raise ConfigError(f"{rule.text!r}: {name!r} is for {' and '.join(sorted(fitting))} only")
    return rule


def parse_conditions(text: str, seed: str = "") -> Rule:
    """Return a rule that does nothing yet; raises as `parse_rule`."""
    rule = Rule(" ".join(text.split()), (), chance=random.Random(seed))
    hooks: set[str] = set()
    for word in text.split():
        name, sep, value = word.partition("=")
        if not sep and name in (*HOOKS, "any"):
            hooks |= set(HOOKS) if name == "any" else {name}
        elif not sep or not _condition(rule, name, value):
            raise ConfigError(
                f"{word!r} is no condition: there are {' '.join(HOOKS)} any op= initiator= lba= nth= every= after= "
                "times= probability= while="
            )
    if rule.of_commands and hooks:
        raise ConfigError(f"{text!r}: a rule is of hooks or of commands (op=, initiator=), not of both")
    if not rule.of_commands:
        rule.hooks = frozenset(hooks or HOOKS)
    return rule


def parse_rules(text: str, seed: str = "", first: int = 0) -> list[Rule]:
    """Return the rules of a file: one a line; blank lines and lines that begin with `#` are comments."""
    rules: list[Rule] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                rules.append(parse_rule(line, f"{seed}/{first + len(rules)}"))
            except ConfigError as error:
                raise ConfigError(f"line {number}: {error}") from None
    return rules


def _condition(rule: Rule, name: str, value: str) -> bool:
    """Take one `name=value` into the rule; False when there is no such condition."""
    if name == "op":
        rule.opcodes |= frozenset(_opcodes(value))
    elif name == "initiator":
        rule.initiator = value
    elif name == "lba":
        first, dash, last = value.partition("-")
        rule.lba = _number(first, word=value), _number(last if dash else first, word=value)
    elif name in _COUNTS:
        setattr(rule, name, _number(value, word=f"{name}={value}"))
    elif name == "probability":
        try:
            rule.probability = float(value)
        except ValueError:
            rule.probability = -1
        if not 0 <= rule.probability <= 1:
            raise ConfigError(f"probability={value}: write a number from 0 to 1")
    elif name == "while":
        rule.while_exists = value
    else:
        return False
    return True


def _opcodes(value: str) -> Iterator[int]:
    for word in value.split(","):
        try:
            yield int(word, 16) if word.lower().startswith("0x") else Op[word.upper()]
        except (KeyError, ValueError):
            raise ConfigError(f"{word!r} is no operation code: write its name, such as WRITE_10, or 0x2a") from None


def _number(text: str, *, word: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{word!r}: {text!r} is no whole number")
    return int(text)
