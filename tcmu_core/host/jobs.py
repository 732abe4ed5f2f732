"""What the processes of the portal are told: the configuration as jobs, and their settings back from them."""

from __future__ import annotations

import dataclasses

from tcmu_core.channel import Message
from tcmu_core.config.configuration import Config, LunConfig, TargetConfig
from tcmu_core.iscsi.chap import Algorithm
from tcmu_core.iscsi.settings import Access, ChapUser, Limits, PortalSettings

DOOR = ""  # the key of its job; the others have their targets' names


def jobs(config: Config) -> dict[str, Message]:
    """Return the jobs of the processes that serve what the configuration asks for: the door and each target."""
    if not config.targets:
        return {}
    names = [target.name for target in config.targets]
    door = {"kind": "door", "title": "tcmu-door", "targets": names, "settings": _pack(config.portal)}
    return {DOOR: door, **{target.name: _target(config, target) for target in config.targets}}


def memory_limits(config: Config) -> dict[str, int]:
    """Return in bytes what the workers of targets may take: what all their LUNs may together, if each has a limit."""
    found = {}
    for target in config.targets:
        limits = [config.memory_limits.get(lun.handler) for lun in target.luns]
        if limits and None not in limits:
            found[target.name] = sum(limit or 0 for limit in limits)
    return found


def _target(config: Config, target: TargetConfig) -> Message:
    """Return a target's job. It holds what concerns this target alone: another one's changes must not end it."""
    name, general = target.name, config.portal
    alias = general.aliases.get(name)
    settings = dataclasses.replace(
        general, addresses=(), access=general.access_to(name), targets={}, aliases={name: alias} if alias else {}
    )
    luns = [_lun(config, lun) for lun in target.luns]
    title = f"tcmu:{name.rpartition(':')[2]}"  # in `ps -o comm` and `top`
    return {"kind": "target", "title": title, "name": name, "luns": luns, "settings": _pack(settings)}


def _lun(config: Config, lun: LunConfig) -> Message:
    return {
        "lun": lun.lun,
        "handler": lun.handler,
        "cfgstring": lun.cfgstring,
        "name": lun.name,
        "size": lun.size,
        "block_size": lun.block_size,
        "read_only": lun.read_only,
        "options": dict(config.handlers.get(lun.handler, {})),
    }


def _pack(settings: PortalSettings) -> Message:
    return {
        "addresses": list(settings.addresses),
        "access": _pack_access(settings.access),
        "targets": {name: _pack_access(access) for name, access in settings.targets.items()},
        "aliases": dict(settings.aliases),
        "header_digests": list(settings.header_digests),
        "data_digests": list(settings.data_digests),
        "portal_group": settings.portal_group,
        "limits": dataclasses.asdict(settings.limits),
        "insecure": settings.insecure,
    }


def _pack_access(access: Access) -> Message:
    return {
        "users": [[user.name, user.secret.decode("latin-1")] for user in access.users],
        "outgoing": [access.outgoing.name, access.outgoing.secret.decode("latin-1")] if access.outgoing else None,
        "initiators": list(access.initiators),
        "algorithms": [algorithm.value for algorithm in access.algorithms],
    }


def settings_of(job: Message) -> PortalSettings:
    """Return the settings that a job of `jobs` holds."""
    told = job["settings"]
    return PortalSettings(
        addresses=tuple(told["addresses"]),
        access=_access(told["access"]),
        targets={name: _access(access) for name, access in told["targets"].items()},
        aliases=told["aliases"],
        header_digests=tuple(told["header_digests"]),
        data_digests=tuple(told["data_digests"]),
        portal_group=told["portal_group"],
        limits=Limits(**told["limits"]),
        insecure=told["insecure"],
    )


def _access(told: Message) -> Access:
    users = [ChapUser(name, secret.encode("latin-1")) for name, secret in told["users"]]
    outgoing = told["outgoing"]
    return Access(
        users=tuple(users),
        outgoing=ChapUser(outgoing[0], outgoing[1].encode("latin-1")) if outgoing else None,
        initiators=tuple(told["initiators"]),
        algorithms=tuple(Algorithm(value) for value in told["algorithms"]),
    )
