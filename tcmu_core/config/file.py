"""tcmu.conf: parsing and validation; every problem is reported with its line and what was probably meant."""

from __future__ import annotations

import dataclasses
import difflib
import errno
import re
import shlex
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from configobj import ConfigObj, ConfigObjError, flatten_errors, get_extra_values
from configobj.validate import ValidateError, Validator, VdtTypeError

from tcmu_core import cfgstring, files
from tcmu_core.config import groups
from tcmu_core.config.configuration import Config, ForeignDevices, LunConfig, TargetConfig
from tcmu_core.config.lines import Place, places, plain
from tcmu_core.disk.spec import disk_name
from tcmu_core.errors import ConfigError
from tcmu_core.iscsi.settings import (
    DIGESTS,
    MIN_SECRET,
    Access,
    ChapUser,
    Limits,
    PortalSettings,
    check_pattern,
    parse_address,
    parse_advertised,
)
from tcmu_core.log import Level
from tcmu_core.scsi.alua import AccessState, Arrangement
from tcmu_core.scsi.opcodes import Tpgs

MAX_SIZE = 2 << 20  # bytes; as the C runner
MAX_LINE, MAX_SECTION = 16384, 512  # characters; a name has 223
MIN_MEMORY = 64 << 20  # bytes; an idle worker takes 20 MiB or so, and would be replaced for ever
MAX_LUN = 16383  # SAM-5 4.7.4: flat space addressing
# RFC 7143 4.2.7.2: lower case after the preparation of 4.2.7.1, so upper case is refused rather than folded
_NAME = re.compile(
    r"iqn\.\d{4}-\d{2}\.[a-z0-9][a-z0-9.-]*(:[a-z0-9.:_-]+)?|eui\.[0-9A-F]{16}|naa\.[0-9A-F]{16}([0-9A-F]{16})?"
)
MAX_NAME = 223  # bytes; RFC 7143 4.2.7.1
_LUN = re.compile(r"(?:lun[ _-]?)?(\d+)", re.IGNORECASE)


def load(path: str | Path, *, must_exist: bool = False) -> Config:
    """Return what the file says; one that is missing says nothing.

    Raises:
        ConfigError: with every problem that the file has, one a line.
    """
    path = Path(path)
    try:
        text, mode = files.text(path, MAX_SIZE, "configuration file")
    except OSError as error:
        if error.errno == errno.ENOENT and not must_exist:
            return Config()
        raise ConfigError(f"{path}: {error.strerror}") from error
    return parse(text, str(path), mode)


def parse(text: str, name: str = "tcmu.conf", mode: int = 0o600) -> Config:
    """Return what `text` says; `name` and `mode` (permission bits) are those of the file that it came from.

    Raises:
        ConfigError: with every problem, one a line.
    """
    return _Reader(text.splitlines(), name, mode).config()


class _Reader:
    """One pass over a file: the parsed values, the places of keys, and the problems found so far."""

    def __init__(self, lines: list[str], name: str, mode: int) -> None:
        self.name = name
        self.mode = mode
        self.problems: list[tuple[int, str]] = []
        self.warnings: list[str] = []
        for number, line in enumerate(lines, 1):  # expressions that look at a line take the square of its length
            if len(line) > (MAX_SECTION if line.lstrip().startswith("[") else MAX_LINE):
                self._problem(number, f"a line of {len(line)} characters: this is no configuration file")
            if "\0" in line:
                self._problem(number, "a NUL character: this is no configuration file")
        self._raise()
        self.places = places(plain(lines))
        spec = resources.files("tcmu_core.config").joinpath("tcmu.spec").read_text("utf-8").splitlines()
        try:
            self.values = ConfigObj(
                plain(lines),
                configspec=ConfigObj(spec, list_values=False, interpolation=False, _inspec=True),
                interpolation=False,
            )
        except ConfigObjError as error:
            for one in getattr(error, "errors", None) or [error]:
                self._problem(getattr(one, "line_number", None) or 0, _syntax(one))
            self._raise()

    def config(self) -> Config:
        self._validate()
        self._raise()
        values = self.values
        if not values["log_dir"]:  # which Path takes for where the daemon was started
            self._problem(self._at(("log_dir",)), "log_dir: no directory: write one")
        handlers = {
            name: {key: self._default(name, key, value) for key, value in own.items()}
            for name, own in values["handlers"].items()
        }
        limits = {name: own.pop("memory_limit") for name, own in handlers.items()}  # ours, not the handler's
        config = Config(
            log_level=self._level(),
            log_dir=Path(values["log_dir"]),
            syslog=values["syslog"],
            log_levels=MappingProxyType({name: _clamped(level) for name, level in values["log_levels"].items()}),
            foreign_devices=ForeignDevices(values["foreign_devices"]),
            handlers=MappingProxyType({name: MappingProxyType(own) for name, own in handlers.items()}),
            memory_limits=MappingProxyType({name: limit for name, limit in limits.items() if limit is not None}),
            portal=self._portal(values["portal"], values["targets"]),
            targets=tuple(self._target(name, own) for name, own in values["targets"].items()),
            given=frozenset(key for key in values.scalars if key not in values.defaults),
        )
        self._raise()
        self._same_names(config)
        return dataclasses.replace(config, warnings=tuple(self.warnings))

    def _same_names(self, config: Config) -> None:
        """Warn of disks that are called alike: commands find a disk by its name."""
        first: dict[str, str] = {}
        for target in config.targets:
            for lun in target.luns:
                other = first.setdefault(lun.name, f"LUN {lun.lun} of {target.name}")
                if other != f"LUN {lun.lun} of {target.name}":
                    self.warnings.append(
                        f"{lun.place}: {lun.name!r} is {other}, too: `tcmu resize` and others that find a disk by its "
                        "name find neither; give each a name of its own"
                    )

    def _default(self, handler: str, key: str, value: Any) -> Any:
        """Return the value of a handler's option, which can tell where it is from."""
        place = f"{self.name}:{self._at(('handlers', handler, key))}"
        return cfgstring.Default(value, place) if isinstance(value, str) else value

    # -- problems ---------------------------------------------------------------------------------------------------

    def _at(self, place: Place) -> int:
        """Return the line of `place`, or of the nearest section around it."""
        while place:
            if place in self.places:
                return self.places[place]
            place = place[:-1]
        return 0

    def _problem(self, line: int, text: str) -> None:
        self.problems.append((line, text))

    def _raise(self) -> None:
        if self.problems:
            said = [
                f"{self.name}:{line}: {text}" if line else f"{self.name}: {text}"
                for line, text in sorted(self.problems)
            ]
            raise ConfigError("\n".join(said))

    # -- the schema -------------------------------------------------------------------------------------------------

    def _shapes(self, section: Any, spec: Any, place: Place) -> None:
        """Find sections that must be keys: configobj's validation trips over them."""
        for key in section.sections:
            below = spec.get(key, spec.get("__many__"))
            if isinstance(below, str) and (key in spec or "__many__" in spec.scalars):
                self._problem(self._at((*place, key)), f"{key}: must be a key, not a section")
            elif isinstance(below, dict):
                self._shapes(section[key], below, (*place, key))

    def _validate(self) -> None:
        self._shapes(self.values, self.values.configspec, ())
        self._raise()
        result = self.values.validate(Validator(_CHECKS), preserve_errors=True)
        for sections, key, error in flatten_errors(self.values, result):
            if key is None:
                place = tuple(sections)
                self._problem(self._at(place), f"[{sections[-1]}] must be a section, not a key")
            elif error is False:
                self._problem(self._at((*sections, key)), f"[{sections[-1]}] needs {key!r}")
            else:
                self._problem(self._at((*sections, key)), f"{key}: {_meaning(error, key, self._value(sections, key))}")
        for sections, key in get_extra_values(self.values):
            self._unknown(tuple(sections), key)

    def _value(self, sections: list[str], key: str) -> Any:
        owner: Any = self.values
        for section in sections:
            owner = owner[section]
        return owner[key]

    def _unknown(self, sections: Place, key: str) -> None:
        owner: Any = self.values
        for section in sections:
            owner = owner[section]
        spec = owner.configspec or {}
        is_section = isinstance(owner[key], dict)
        known = [name for name in spec if name != "__many__" and isinstance(spec[name], dict) == is_section]
        close = difflib.get_close_matches(key, known, 1)
        what = "section" if is_section else "key"
        where = f" in [{sections[-1]}]" if sections else ""
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known) or 'none'}"
        elsewhere = [name for name, part in self.values.configspec.items() if isinstance(part, dict) and key in part]
        if not close and elsewhere and not sections:
            hint = f"it belongs into [{elsewhere[0]}]"
        self._problem(self._at((*sections, key)), f"unknown {what} {key!r}{where}: {hint}")

    # -- what the schema can't say ----------------------------------------------------------------------------------

    def _level(self) -> Level:
        number: int = self.values["log_level"]
        level = _clamped(number)
        if level != number:
            self.warnings.append(f"{self.name}:{self._at(('log_level',))}: log_level {number}: {level.value} is taken")
        return level

    def _portal(self, values: Mapping[str, Any], targets: Mapping[str, Any]) -> PortalSettings:
        """Return the portal's settings, with what `targets` say of who may log in to each."""
        outgoing = None
        if values["mutual_user"] or values["mutual_password"]:
            outgoing = ChapUser(values["mutual_user"], values["mutual_password"].encode())
        if (outgoing or any(part["chap"] for part in (values, *targets.values()))) and self.mode & 0o077:
            cure = f"chmod 600 {shlex.quote(self.name)}"
            self.warnings.append(f"{self.name}: holds passwords and others may read it: {cure}")
        try:
            general = self._access(("portal",), values, outgoing)
            return PortalSettings(
                addresses=tuple(values["listen"]),
                access=general,
                targets=MappingProxyType(
                    {
                        name: self._access(("targets", name), own, outgoing if own["chap"] else None, general)
                        for name, own in targets.items()
                        if own["chap"] or own["acl"]
                    }
                ),
                header_digests=tuple(values["header_digest"]),
                data_digests=tuple(values["data_digest"]),
                limits=Limits(
                    connections=values["max_connections"],
                    queue_depth=values["queue_depth"],
                    login_timeout=values["login_timeout"],
                    nop_interval=values["nop_interval"],
                    nop_timeout=values["nop_timeout"],
                ),
                insecure=values["insecure"],
                advertise=tuple(values["advertise"]),
                groups=MappingProxyType(
                    {name: self._tags(name, own, values["listen"]) for name, own in targets.items() if _groups(own)}
                ),
            )
        except ConfigError as error:
            self._problem(self._at(("portal", "listen")), str(error))
            return PortalSettings()

    def _access(
        self, place: Place, values: Mapping[str, Any], outgoing: ChapUser | None, general: Access | None = None
    ) -> Access:
        """Return who may log in; what a target doesn't say is as `general` has it."""
        names = values["names"]
        for name in set(names) - set(values["chap"]):
            self._problem(self._at((*place, "names", name)), f"{name}: no such user in [chap]")
        users = tuple(
            ChapUser(name, password.encode(), tuple(names.get(name, ()))) for name, password in values["chap"].items()
        )
        for user in users:
            if 0 < len(user.secret) < MIN_SECRET:
                line = self._at((*place, "chap", user.name))
                self.warnings.append(
                    f"{self.name}:{line}: the password of {user.name} is shorter than {MIN_SECRET} characters: "
                    "it can be guessed"
                )
        acl = tuple(values["acl"])
        for key, own in ((("acl",), acl), *((("names", name), own) for name, own in names.items())):
            try:
                for pattern in own:
                    check_pattern(pattern)
            except ConfigError as error:
                self._problem(self._at((*place, *key)), str(error))
                return Access()
        if general is not None:
            users, acl = users or general.users, acl or general.initiators
            outgoing = outgoing or general.outgoing
        try:
            return Access(users, outgoing, acl)
        except ConfigError as error:
            self._problem(self._at((*place, "chap")), str(error))
            return Access()

    def _tags(self, name: str, values: Mapping[str, Any], listen: list[str]) -> Mapping[str, int]:
        """Return the tag of the group of each portal of a target."""
        place = ("targets", name, "groups")
        found: dict[str, int] = {}
        for section, own in _groups(values).items():
            try:
                groups.add_portals(found, groups.group_id(section), own["portals"])
            except ConfigError as error:
                self._problem(self._at((*place, section, "portals")), str(error))
        if not groups.listened(found, listen):
            self._problem(self._at(place), f"none of these portals is listened on: [portal] has {', '.join(listen)}")
        elif values["groups"]["access"] is not Tpgs.IMPLICIT:
            for portal in found:
                if not groups.listened({portal: 0}, listen):
                    self._problem(
                        self._at((*place, "access")),
                        f"what an initiator moves here, the host of {portal} would not hear of: leave it implicit",
                    )
        return MappingProxyType(found)

    def _arrangement(self, name: str, section: str, values: Mapping[str, Any]) -> Arrangement:
        """Return the target port groups of a logical unit: those of its target, in states of its own."""
        own, place = values["groups"], ("targets", name)
        try:
            made = groups.arrangement(own["access"], own["transition_time"], _groups(values))
        except ConfigError:  # the portals have told
            return Arrangement()
        try:
            return groups.with_states(made, values[section]["groups"])
        except ConfigError as error:
            self._problem(self._at((*place, section, "groups")), str(error))
            return made

    def _target(self, name: str, values: Mapping[str, Any]) -> TargetConfig:
        place = ("targets", name)
        try:
            iscsi_name(name)
        except ConfigError as error:
            self._problem(self._at(place), str(error))
        luns: dict[int, LunConfig] = {}
        arrangements: dict[int, Arrangement] = {}
        for section, own in values.items():
            if not isinstance(own, dict) or section in {"chap", "names", "groups"}:
                continue
            line = self._at((*place, section))
            match = _LUN.fullmatch(section)
            if match is None or int(match[1]) > MAX_LUN:
                self._problem(line, f"[[[{section}]]] is no logical unit: write [[[lun 0]]], up to {MAX_LUN}")
                continue
            lun = int(match[1])
            if lun in luns:
                self._problem(line, f"logical unit {lun} is there twice")
            if not own["handler"]:
                self._problem(line, "handler: the name is empty")
            try:
                disk_name(own["name"])
            except ConfigError as error:
                self._problem(self._at((*place, section, "name")), f"name: {error}")
            if own["size"] is not None and (not own["size"] or own["size"] % own["block_size"]):
                self._problem(
                    self._at((*place, section, "size")),
                    f"size: {own['size']} bytes are not whole blocks of {own['block_size']}",
                )
            if _groups(values):
                arrangements[lun] = self._arrangement(name, section, values)
            elif own["groups"]:
                self._problem(self._at((*place, section, "groups")), "groups: the target has no section [[[groups]]]")
            luns[lun] = LunConfig(
                lun=lun,
                handler=own["handler"],
                cfgstring=own["cfgstring"],
                name=own["name"] or f"{name.rpartition(':')[2]}-{lun}",
                size=own["size"],
                block_size=own["block_size"],
                read_only=own["read_only"],
                filters=tuple(own["filters"]),
                place=f"{self.name}:{self._at((*place, section, 'handler'))}",
            )
        if not luns:
            self._problem(self._at(place), f"target {name!r} has no logical unit: add a section [[[lun 0]]]")
        return TargetConfig(name, tuple(luns[lun] for lun in sorted(luns)), MappingProxyType(arrangements))


def _groups(target: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Return the sections of a target's groups."""
    return {name: own for name, own in target["groups"].items() if isinstance(own, dict)}


def _clamped(number: int) -> Level:
    """Return the level of this number, or the nearest one: the C runner clamps."""
    return Level(max(Level.CRIT, min(Level.DEBUG_SCSI_CMD, number)))


class _WrongError(ValidateError):  # type: ignore[misc]  # configobj has no types
    """A value is wrong; the message says what to write instead."""


# -- values ---------------------------------------------------------------------------------------------------------


def _as_level(value: Any) -> int:
    """Convert a number, or a level's name."""
    text = _scalar(value).strip()
    name = text.upper().replace(" ", "_")
    if name in Level.__members__:
        return Level[name].value
    try:
        return int(text)
    except ValueError:
        known = ", ".join(f"{level.value} {level.name}" for level in Level)
        raise _WrongError(f"{text!r} is no level; levels are {known}") from None


def _as_boolean(value: Any) -> bool:
    try:
        return value if isinstance(value, bool) else cfgstring.boolean(_scalar(value))
    except ConfigError as error:
        raise _WrongError(str(error)) from None


def _as_size(value: Any) -> int | None:
    if value is None:
        return None
    try:
        return cfgstring.size(_scalar(value))
    except ConfigError as error:
        raise _WrongError(str(error)) from None


def _as_memory(value: Any) -> int | None:
    number = _as_size(value)
    if number is not None and number < MIN_MEMORY:
        raise _WrongError(f"{_scalar(value)!r} is less than a worker needs: {MIN_MEMORY >> 20}M or more")
    return number


def _as_block_size(value: Any) -> int:
    number = _as_size(value) or 0
    if number < 512 or number > 65536 or number & (number - 1):
        raise _WrongError(f"{_scalar(value)!r} is no block size: a power of two from 512 to 65536")
    return number


def _as_addresses(value: Any) -> list[str]:
    addresses = [value] if isinstance(value, str) else value
    try:
        known = {parse_address(text) for text in addresses}
    except ConfigError as error:
        raise _WrongError(str(error)) from None
    if not known:
        raise _WrongError("no address: write one such as 127.0.0.1:3260")
    if len(known) < len(addresses):
        raise _WrongError("an address is there twice")
    return list(addresses)


def _as_advertised(value: Any) -> list[str]:
    addresses = [value] if isinstance(value, str) else value
    try:
        for text in addresses:
            parse_advertised(text)
    except ConfigError as error:
        raise _WrongError(str(error)) from None
    return list(addresses)


def _as_digests(value: Any) -> list[str]:
    known = {name.lower(): name for name in DIGESTS}
    names = [name.lower() for name in ([value] if isinstance(value, str) else value)]
    if not names or not known.keys() >= set(names):
        raise _WrongError(f"write {', '.join(DIGESTS)}, or both")
    return [known[name] for name in names]


def _as_access_state(value: Any) -> AccessState:
    try:
        return value if isinstance(value, AccessState) else groups.access_state(_scalar(value))
    except ConfigError as error:
        raise _WrongError(str(error)) from None


def _as_group_access(value: Any) -> Tpgs:
    try:
        return value if isinstance(value, Tpgs) else groups.access(_scalar(value))
    except ConfigError as error:
        raise _WrongError(str(error)) from None


def iscsi_name(text: str) -> str:
    """Return `text` if it is an iSCSI name (RFC 7143 4.2.7); raises `ConfigError`."""
    if not _NAME.fullmatch(text) or len(text.encode()) > MAX_NAME:
        raise ConfigError(f"{text!r} is no iSCSI name: write one such as iqn.2025-01.local.tcmu:disk")
    return text


def _scalar(value: Any) -> str:
    if isinstance(value, list):
        raise VdtTypeError(value)
    return str(value)


_CHECKS = {
    "level": _as_level,
    "yes_or_no": _as_boolean,
    "size": _as_size,
    "memory": _as_memory,
    "block_size": _as_block_size,
    "addresses": _as_addresses,
    "advertised": _as_advertised,
    "digests": _as_digests,
    "access_state": _as_access_state,
    "group_access": _as_group_access,
}


# -- messages -------------------------------------------------------------------------------------------------------


def _syntax(error: Exception) -> str:
    """Return configobj's syntax error in plain words."""
    text = str(error)
    for part, meaning in _SYNTAX.items():
        if part in text:
            return meaning
    return re.sub(r" at line \d+\.?$", "", text)


_SYNTAX = {
    "Duplicate section name": "this section is there twice",
    "Duplicate keyword name": "this key is there twice in its section",
    "Section too nested": "a section needs the one with one bracket less above it",
    "Cannot compute the section depth": "the section's brackets don't match",
    "Invalid line": "neither 'key = value' nor a [section]",
    "Parse error in value": "the value's quotes don't match",
    "Parse error in multiline value": "the value's triple quotes are never closed",
}


def _meaning(error: ValidateError, key: str, value: Any) -> str:
    """Return what is wrong with a value, in plain words."""
    if isinstance(value, list) and key not in {"listen", "advertise", "portals"} and not isinstance(error, _WrongError):
        return "a value that holds a comma must be quoted"
    text = str(error)
    for part, meaning in _MEANINGS.items():
        if part in text:
            return meaning.format(value=value)
    return text


_MEANINGS = {
    "is too small": "{value} is too small",
    "is too big": "{value} is too large",
    "is unacceptable": "{value!r} is neither reject nor ignore",
    "was provided as a single value": "must be a section, not a key",
    "is of the wrong type": "{value!r} is no number",
}
