"""External handlers: programs that serve a subtype themselves and are visible as long as they own their bus name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from gi.repository import Gio, GLib

from tcmu_core.bus.check import CHECK_SECONDS, Later, Verdict, split_config
from tcmu_core.bus.export import Call, ask_bus, is_root
from tcmu_core.bus.glib import GLibThread
from tcmu_core.bus.interface import BUS_NAME, DBUS, DBUS_PATH, external_name, external_path, path_error
from tcmu_core.errors import ConfigError

log = logging.getLogger("tcmu.bus")

APPEAR_SECONDS = 2.0  # for a program that registers itself while it still asks for its name


@dataclass(slots=True)
class External:
    """One registered program: `owner` is its unique bus name, empty until it owns the well-known one."""

    subtype: str
    desc: str
    bus_name: str
    waiting: Future[Verdict]
    subscription: Any = None
    owner: str = ""


class Externals:
    """Follows external handlers on one connection; `publish` and `retract` show and hide one. On the bus's thread."""

    def __init__(
        self,
        thread: GLibThread,
        bus: Any,
        taken: Callable[[str], str],
        publish: Callable[[External], None],
        retract: Callable[[str], None],
    ) -> None:
        self._thread = thread
        self._bus = bus
        self._taken = taken
        self._publish = publish
        self._retract = retract
        self._known: dict[str, External] = {}

    def subtypes(self) -> frozenset[str]:
        """Return the subtypes whose program is there."""
        return frozenset(external.subtype for external in self._known.values() if external.owner)

    def register(self, call: Call, subtype: str, desc: str) -> Verdict | Later[Verdict]:
        """RegisterHandler: follow the bus name of `subtype`; the answer is due when it has appeared."""
        call.only_root()
        bus_name = external_name(subtype)
        problem = path_error(subtype) or ("" if bus_name else "it can't be part of a bus name")
        if problem:
            return False, f"{subtype!r} is no usable subtype: {problem}"
        owner = self._taken(subtype)
        if owner:
            return False, f"handler {subtype!r} is already there: {owner}"
        self.forget(subtype)
        external = External(subtype, desc, bus_name, Future())
        self._known[subtype] = external
        external.subscription = self._bus.subscribe(
            sender=DBUS,
            iface=DBUS,
            signal="NameOwnerChanged",
            object=DBUS_PATH,
            arg0=bus_name,
            signal_fired=lambda _sender, _path, _iface, _signal, values: self._changed(external, values[2]),
        )
        try:
            self._changed(external, ask_bus(self._bus, "GetNameOwner", bus_name, "s"))
        except GLib.Error:
            log.debug("waiting for %s to appear on the bus", bus_name)
            self._thread.call_later(APPEAR_SECONDS, self._expire, external)
        return Later(external.waiting, 2 * APPEAR_SECONDS, (False, _absent(bus_name)))

    def check(self, external: External, call: Call, config: str) -> Verdict | Later[Verdict]:
        """CheckConfig: ask the program, without waiting for it here."""
        try:
            split_config(external.subtype, config)
        except ConfigError as error:
            return False, str(error)
        if not call.from_root():
            return True, f"the form is valid; handler {external.subtype!r} itself was not asked, only root may do so"
        future: Future[Verdict] = Future()

        def answered(connection: Any, result: Any) -> None:
            try:
                valid, message = connection.call_finish(result).unpack()
                future.set_result((bool(valid), str(message)))
            except GLib.Error as error:
                future.set_result((False, f"{external.bus_name} does not answer: {error.message}"))

        self._bus.con.call(
            external.owner, external_path(external.subtype), BUS_NAME, "CheckConfig", GLib.Variant("(s)", (config,)),
            GLib.VariantType("(bs)"), Gio.DBusCallFlags.NO_AUTO_START, int(CHECK_SECONDS * 1000), None, answered,
        )  # fmt: skip
        late = False, f"{external.bus_name} did not answer within {CHECK_SECONDS:g} s"
        return Later(future, CHECK_SECONDS + 1, late)

    def forget(self, subtype: str) -> None:
        """Stop following a subtype, and hide it."""
        external = self._known.get(subtype)
        if external is not None:
            self._drop(external, f"{subtype!r} was registered anew")

    def close(self) -> None:
        """Forget all of them."""
        for external in list(self._known.values()):
            self._drop(external, "tcmu-runner leaves the bus")

    def _expire(self, external: External) -> None:
        if not external.owner:
            self._drop(external, _absent(external.bus_name))

    def _changed(self, external: External, owner: str) -> None:
        """The bus name of `external` has a new owner, or none."""
        if self._known.get(external.subtype) is not external or owner == external.owner:
            return
        if owner and is_root(self._bus, owner):
            shown = bool(external.owner)
            external.owner = owner
            if not shown:
                self._publish(external)
                log.info("external handler %s registered by %s", external.subtype, external.bus_name)
            if not external.waiting.done():
                external.waiting.set_result((True, "succeeded"))
            return
        reason = f"{external.bus_name} does not belong to root" if owner else f"{external.bus_name} left the bus"
        self._drop(external, reason)

    def _drop(self, external: External, reason: str) -> None:
        if self._known.get(external.subtype) is not external:
            return
        del self._known[external.subtype]
        external.subscription.unsubscribe()
        if external.owner:
            external.owner = ""
            log.info("external handler %s is gone: %s", external.subtype, reason)
            self._retract(external.subtype)
        if not external.waiting.done():
            external.waiting.set_result((False, reason))


def _absent(bus_name: str) -> str:
    return f"Cannot find handler bus name: {bus_name}"
