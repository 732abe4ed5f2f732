"""A program that serves the subtype argv[2] itself, as libtcmu's users do; its answers go to stdout, line by line."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pydbus
from gi.repository import GLib

NAME = "org.kernel.TCMUService1"
XML = f"""
<node><interface name="{NAME}"><method name="CheckConfig">
  <arg type="s" direction="in"/><arg type="b" direction="out"/><arg type="s" direction="out"/>
</method></interface></node>
"""


class Program:
    """Says of a configuration what it was asked."""

    def CheckConfig(self, config: str) -> tuple[bool, str]:
        """Accept everything but what ends in `bad`."""
        return not config.endswith("bad"), f"external saw {config}"


def main() -> None:
    """Register (own the name unless argv[3] says no), then serve until stdin ends; `release` gives the name up."""
    address, subtype, *options = sys.argv[1:]
    bus = pydbus.connect(address)
    bus.register_object(f"/org/kernel/TCMUService1/HandlerManager1/{subtype}", Program(), XML)
    loop = GLib.MainLoop()
    owned: list[Any] = []

    def own() -> None:
        owned.append(bus.request_name(f"{NAME}.HandlerManager1.{subtype}", allow_replacement=False))

    def serve() -> None:
        if "nameless" not in options and "late" not in options:
            own()
        call = (NAME, f"/{NAME.replace('.', '/')}/HandlerManager1", f"{NAME}.HandlerManager1", "RegisterHandler")
        answered = threading.Event()

        def register() -> None:
            reply = bus.con.call_sync(*call, GLib.Variant("(ss)", (subtype, "its desc")), None, 0, 30000, None)
            print(*reply.unpack(), flush=True)
            answered.set()

        thread = threading.Thread(target=register)
        thread.start()
        if "late" in options:
            own()
        thread.join()
        for line in sys.stdin:
            if line.strip() == "release":
                owned.pop().unown()
                print("released", flush=True)
        loop.quit()

    threading.Thread(target=serve).start()
    loop.run()


if __name__ == "__main__":
    main()
