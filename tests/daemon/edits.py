"""The table of edits: what each change of tcmu.conf does while every LUN is written and read, and who hears of it.

A row is an edit of the configuration below, or a command. Where it is one LUN that changes, it is LUN 1 of the target
`one`. docs/admin.md shows the table as `table()` writes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.daemon.loads import ENDED

if TYPE_CHECKING:
    from tests.daemon.edited import World

ONE, TWO, THREE = (f"iqn.2026-01.org.example:{name}" for name in ("one", "two", "three"))
FILE = "[[[lun {lun}]]]\nhandler = file\ncfgstring = {directory}/{name}\nname = {name}\nsize = 2M\n"
CONFIGURATION = f"""\
log_level = info
[log_levels]
[handlers]
[[file]]
direct = no
[portal]
listen = {{address}}
nop_interval = 30
queue_depth = 128
data_digest = CRC32C, None
[targets]
[[{ONE}]]
acl = iqn.2026-01.test:*
[[[chap]]]
{FILE.format(lun=0, name="one-0", directory="{directory}")}\
{FILE.format(lun=1, name="one-1", directory="{directory}")}\
[[[lun 2]]]
handler = ram
name = one-2
size = 2M
[[{TWO}]]
{FILE.format(lun=0, name="two-0", directory="{directory}")}\
{FILE.format(lun=1, name="two-1", directory="{directory}")}\
filters = 'rate;iops=100000'
"""

LUNS_CHANGED = "UNIT ATTENTION: REPORTED LUNS DATA HAS CHANGED (3F/0E)"
CAPACITY_CHANGED = "UNIT ATTENTION: CAPACITY DATA HAS CHANGED (2A/09)"
MODE_CHANGED = "UNIT ATTENTION: MODE PARAMETERS CHANGED (2A/01)"
POWER_ON = "UNIT ATTENTION: POWER ON, RESET, OR BUS DEVICE RESET OCCURRED (29/00)"
NO_LUN = "ILLEGAL REQUEST: LOGICAL UNIT NOT SUPPORTED (25/00)"
NOTHING = ()


@dataclass(frozen=True)
class Edit:
    """One row. `change` is a pattern and what stands in its place, `command` are the words of `tcmu` instead.

    `done` tells that it is in force. `own`, `beside` and `elsewhere` are what clients hear: of LUN 1, of the other LUNs
    of its target, of other targets; those of disks that are `spared` hear nothing. Who hears of a power on was told
    BUSY before, maybe: initiators send again what was answered so. `disks` are those of which `tcmu status` says
    anything else afterwards. `complains`: the log has an error.
    """

    what: str
    happens: str
    done: Callable[[World], object]
    change: tuple[str, str] = ("", "")
    command: tuple[str, ...] = ()
    own: tuple[str, ...] = NOTHING
    beside: tuple[str, ...] = NOTHING
    elsewhere: tuple[str, ...] = NOTHING
    spared: frozenset[str] = frozenset()
    disks: frozenset[str] = frozenset()
    complains: bool = False
    undo: bool = True

    def of(self, text: str) -> str:
        """Return the configuration after the edit."""
        changed, count = re.subn(*self.change, text, count=1)
        assert count, self.what
        return changed


def said(*parts: str) -> Callable[[World], object]:
    """It is done when the log says all this."""
    return lambda world: all(part in world.said() for part in parts)


def anew(what: str, *luns: str) -> Callable[[World], object]:
    """It is done when the log says that the disks `luns` were opened anew for another `what`, and are there."""
    return lambda world: (
        world.said().count(f": another {what}") == len(luns) == world.said().count(" is there") and world.all_served()
    )


OF_LUN_1 = r"(name = one-1\nsize = )\w+"
IN_ONE_1 = r"(cfgstring = \S+/one-1)\n"
REOPENED = "LUN 1 is opened anew, as the log says"
KEPT = "The log says what is wrong and where, and the settings stay as they were"

EDITS = (
    Edit(
        "a LUN is added",
        "It is served beside the others",
        lambda world: world.sees("one-7"),
        change=(rf"(?=\[\[{TWO}\]\])", FILE.format(lun=7, name="one-7", directory="{directory}")),
        beside=(LUNS_CHANGED,), own=(LUNS_CHANGED,),
        disks=frozenset({"one-7"}),
    ),
    Edit(
        "a LUN is taken out",
        "What is in flight ends; then there is no such LUN. Its data stays where it is",
        lambda world: not world.sees("one-1"),
        change=(r"\[\[\[lun 1\]\]\]\nhandler = file\ncfgstring = \S+/one-1\nname = one-1\nsize = \w+\n", ""),
        own=(NO_LUN,), beside=(LUNS_CHANGED,),
        disks=frozenset({"one-1"}),
    ),
    Edit(
        "a smaller `size`",
        "The disk keeps its size, and the log says why: `tcmu resize` makes a disk smaller",
        said("LUN 1 keeps its size of 2097152 bytes"),
        change=(OF_LUN_1, r"\g<1>1M"), complains=True,
    ),
    Edit(
        "a larger `size`",
        "The disk grows while it is used",
        lambda world: world.size("one-1") == 4 << 20,
        change=(OF_LUN_1, r"\g<1>4M"),
        own=(CAPACITY_CHANGED,),
        disks=frozenset({"one-1"}),
        undo=False,
    ),
    Edit(
        "another set of `filters`",
        REOPENED,
        anew("filters", "one-1"),
        change=(OF_LUN_1, r"\g<0>\nfilters = log, 'rate;iops=90000'"),
        own=(POWER_ON,),
        disks=frozenset({"one-1"}),
    ),
    Edit(
        "an option of the handler in `cfgstring`, such as `;sync=1`: no write cache",
        REOPENED + ". Its serial number is another one, for it follows the cfgstring",
        anew("cfgstring", "one-1"),
        change=(IN_ONE_1, r"\g<1>;sync=1\n"),
        own=(POWER_ON,), beside=(LUNS_CHANGED,),
        disks=frozenset({"one-1"}),
    ),
    Edit(
        "another `name`",
        REOPENED,
        anew("name", "one-1"),
        change=(r"name = one-1\n", "name = one-one\n"),
        own=(POWER_ON,),
        disks=frozenset({"one-1", "one-one"}),
    ),
    Edit(
        "a filter of a disk in memory",
        "Nothing: to open it anew would empty it, as the log says",
        said("LUN 2 stays as it was, for another filters would empty it"),
        change=(r"(name = one-2\nsize = 2M\n)", r"\g<1>filters = log,\n"), complains=True,
    ),
    Edit(
        "a default of a handler in `[handlers]`",
        "Every LUN of that handler is opened anew",
        anew("options", "one-0", "one-1", "two-0", "two-1"),
        change=(r"direct = no", "sync = yes"),
        own=(POWER_ON,), beside=(POWER_ON,), elsewhere=(POWER_ON,), spared=frozenset({"one-2"}),
        disks=frozenset({"one-0", "one-1", "two-0", "two-1"}),
    ),
    Edit(
        "`acl`",
        "It holds for the next login: who fits it no more is refused then",
        lambda world: world.refused("one"),
        change=(r"acl = iqn.2026-01.test:\*", "acl = iqn.2026-01.other:*"),
    ),
    Edit(
        "a user in `[[[chap]]]`",
        "From the next login on that asks for the password",
        lambda world: world.refused("one") and world.works("one", "alice%a long password"),
        change=(r"(\[\[\[chap\]\]\]\n)", r"\g<1>alice = a long password\n"),
    ),
    Edit(
        "a timer of `[portal]`: `nop_interval`, `nop_timeout`",
        "Sessions that there are follow it at once",
        lambda world: world.pinged(),
        change=(r"nop_interval = 30", "nop_interval = 1"),
    ),
    Edit(
        "`queue_depth`, digests and what else a login agrees on",
        "It holds from the next login on",
        lambda world: world.window("two") == 16,
        change=(r"queue_depth = 128", "queue_depth = 16"),
    ),
    Edit(
        "an address more in `listen`",
        "It is listened on, too",
        lambda world: len(world.addresses()) == 2,
        change=(r"(listen = \S+)", r"\g<1>, 127.0.0.2:0"),
    ),
    Edit(
        "another address in `listen`",
        "New clients come there; who is logged in stays",
        lambda world: [address.startswith("127.0.0.2:") for address in world.addresses()] == [True],
        change=(r"listen = \S+", "listen = 127.0.0.2:0"),
    ),
    Edit(
        "`advertise`",
        "Discovery tells it from now on",
        lambda world: "192.0.2.7:3261" in world.discovery(),
        change=(r"(listen = \S+)", r"\g<1>\nadvertise = 192.0.2.7:3261"),
    ),
    Edit(
        "`log_level`",
        "All processes log at it",
        lambda world: world.tcmu("set", "--runner") == "tcmu-runner: log_level=debug\n",
        change=(r"log_level = info", "log_level = debug"),
    ),
    Edit(
        "a disk's level in `[log_levels]`",
        "The log has what is said of this disk from that level on",
        said(" file/one-1: ", " WRITE(10) "),
        change=(r"(\[log_levels\]\n)", r"\g<1>file/one-1 = debug_scsi_cmd\n"),
    ),
    Edit(
        "a target is added",
        "It is served beside the others",
        lambda world: world.sees("three-0"),
        change=(r"\Z", f"[[{THREE}]]\n" + FILE.format(lun=0, name="three-0", directory="{directory}")),
        disks=frozenset({"three-0"}),
    ),
    Edit(
        "a target is taken out",
        "Its initiators are asked to log out, its sessions end",
        lambda world: not world.sees("two-0"),
        change=(rf"\[\[{TWO}\]\]\n(.*\n)*", ""),
        elsewhere=(ENDED,),
        disks=frozenset({"two-0", "two-1"}),
    ),
    Edit(
        "a value that is none, such as `size = 2Q`",
        KEPT,
        said("size: '2Q' is no size", "the settings stay as they were"),
        change=(OF_LUN_1, r"\g<1>2Q"), complains=True,
    ),
    Edit(
        "a handler that is not installed",
        KEPT,
        said("no handler 'fiel': did you mean 'file'?", "the settings stay as they were"),
        change=(r"handler = file", "handler = fiel"), complains=True,
    ),
    Edit(
        "the file is emptied",
        "Nothing: the log says so, and that SIGHUP would have it mean what it says",
        said("is empty: the settings stay as they were"),
        change=(r"(?s).*", ""), complains=True,
    ),
    Edit(
        "`tcmu set DISK write_cache=off`",
        "Every write is flushed before it is answered",
        lambda world: "write_cache=off" in world.tcmu("set", "one-1"),
        command=("set", "one-1", "write_cache=off"),
        own=(MODE_CHANGED,),
        disks=frozenset({"one-1"}),
    ),
    Edit(
        "`tcmu set DISK rate.iops=N`",
        "The filter `rate` that is on the disk has another limit",
        lambda world: True,
        command=("set", "two-1", "rate.iops=90000"),
    ),
    Edit(
        "`tcmu resize DISK SIZE`",
        "The disk has this size",
        lambda world: world.size("one-1") == 8 << 20,
        command=("resize", "one-1", "8M"),
        own=(CAPACITY_CHANGED,),
        disks=frozenset({"one-1"}),
    ),
)  # fmt: skip


def table() -> str:
    """Return the table as docs/admin.md has it."""
    lines = ["| what is changed | what happens | clients of LUN 1 | of other LUNs of its target | of other targets |"]
    lines.append("|---|---|---|---|---|")
    for edit in EDITS:
        cells = [_words(heard) for heard in (edit.own, edit.beside, edit.elsewhere)]
        lines.append(f"| {edit.what} | {edit.happens} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _words(heard: tuple[str, ...]) -> str:
    if not heard:
        return "nothing"
    words = [re.sub(r"^(UNIT ATTENTION|ILLEGAL REQUEST): (.*) \((\w\w)/(\w\w)\)$", r"\3h/\4h", one) for one in heard]
    return ("BUSY for a moment, then " if POWER_ON in heard else "") + ", ".join(words)
