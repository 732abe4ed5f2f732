"""What is told to authors of handlers is so: listings are in the source and run, no attribute is left out."""

from __future__ import annotations

import builtins
import errno
import re
import runpy
import threading
from dataclasses import fields
from pathlib import Path

import pytest

import tcmu_core
from tcmu_core import Busy, Command, CommandError, Device, Opcode, TaskSetFull
from tcmu_core.errors import from_oserror
from tcmu_core.scsi.sense import SenseKey
from tcmu_core.testing import check_handler, open_device
from tests.scsi.harness import make_rig

ROOT = Path(__file__).parents[1]
DOCS, EXAMPLES, HTTP = ROOT / "docs", ROOT / "docs" / "examples", ROOT / "examples" / "tcmu-http"
PAGES = ("device", "buffers", "errors", "command", "opcode", "debugging")
GUIDE = "network-handler"  # its paths are those of its package
LISTING = re.compile(r"`([\w/.-]+\.(?:py|toml))`[^`\n]*(?:`[^`\n]*`[^`\n]*)*:\n\n```\w+\n(.*?)```\n", re.DOTALL)


def text(page: str) -> str:
    return (DOCS / f"{page}.md").read_text()


LISTINGS = [(page, name, shown) for page in (*PAGES, GUIDE) for name, shown in LISTING.findall(text(page))]


def differing(listing: str, source: str) -> str:
    """Return the first part of a listing that is not in the source, in its place; empty where all are."""
    at = 0
    for part in re.split(r"^ *…\n", listing, flags=re.MULTILINE):
        found = source.find(part, at)
        if found < 0 or (found and source[found - 1] != "\n"):
            return part
        at = found + len(part)
    return ""


@pytest.mark.parametrize(("page", "name", "shown"), LISTINGS, ids=[f"{page}-{name}" for page, name, _ in LISTINGS])
def test_a_listing_is_what_the_file_has(page, name, shown):
    found = [place / name for place in (HTTP, ROOT) if (place / name).is_file()]
    assert not differing(shown, found[0 if page == GUIDE else -1].read_text())


def test_every_listing_says_where_it_is_from():
    for page in (*PAGES, GUIDE):
        assert len([one for one in LISTINGS if one[0] == page]) == text(page).count("```") // 2, page
    assert len(LISTINGS) > 15


@pytest.mark.parametrize(
    ("listing", "what"),
    [("a\n…\nc\n", ""), ("a\nc\n", "a\nc\n"), ("c\n…\na\n", "a\n"), ("b\n", ""), ("  b\n", "  b\n"), ("bb\n", "bb\n")],
)
def test_a_listing_that_is_not_so_is_noticed(listing, what):
    assert differing(listing, "a\nb\nc\nxbb\n") == what


def test_every_attribute_of_a_device_is_told():
    told = text("device")
    device = Device("disk", "test")
    for name in {name for name in dir(device) if not name.startswith("_")} - {"state"}:
        assert re.search(rf"`{name}[`(]", told), name
    assert {field.name for field in fields(Device)} <= set(dir(device))


def test_every_attribute_of_a_command_is_told():
    for name in [name for name in dir(Command) if not name.startswith("_")]:
        assert re.search(rf"`{name}[`(]", text("command")), name


def test_every_field_of_an_opcode_is_told():
    for name in [*(field.name for field in fields(Opcode)), "key"]:
        assert f"`{name}`" in text("opcode"), name
    told = dict(re.findall(r"^\| `(\w+)` \|.*\| (\S+) \|$", text("opcode"), re.MULTILINE))
    plain = Opcode(0xC0, "PLAIN", b"\xff")
    for name in ("ready", "protected", "attention", "timeout"):
        assert told[name] == str(getattr(plain, name)), name
    assert told["access"] == f"`{plain.access.name}`"
    assert told["types"] == "`(0x00,)`"


def meaning(word: str) -> CommandError:
    """Return what an expression of the table of errors means to an initiator."""
    number = re.fullmatch(r"OSError\((\w+)\)", word)
    kind = getattr(tcmu_core, word, None) or getattr(builtins, word.partition("(")[0])
    made = OSError(getattr(errno, number[1]), "") if number else kind()
    return made if isinstance(made, CommandError) else from_oserror(made, writing=False)


def rows() -> list[tuple[str, str]]:
    table = text("errors").partition("| raise |")[2].partition("\n\n")[0]
    return [
        (word, heard)
        for line in table.splitlines()[2:]
        for told, heard in [line.strip("| ").split(" | ")]
        for word in re.findall(r"`([^`]+)`", told)
    ]


@pytest.mark.parametrize(("word", "heard"), rows())
def test_an_error_is_heard_as_the_page_says(word, heard):
    error = meaning(word)
    if heard.startswith(("BUSY", "TASK SET FULL")):
        assert type(error) is (Busy if heard.startswith("BUSY") else TaskSetFull)
    else:
        assert heard.startswith(SenseKey(error.sense_key).name.replace("_", " "))
    for said, kind in (("timeout", "StorageTimeout"), ("communication", "CommunicationFailure")):
        assert (said in heard) == (type(error).__name__ == kind)


def example(name: str) -> dict:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_the_example_of_a_command_answers():
    rig = make_rig(example("handler_counted")["Counted"]())
    tell = "c0 00 00 00 00 00 00 00 {:02x} 00"
    rig.good("28 00 00000000 00 0001 00".replace(" ", ""), room=512)
    assert rig.good(tell.format(8), room=8) == (1).to_bytes(8, "big")
    assert rig.good(tell.format(4), room=8) == bytes(4)
    rig.good("c0 01 00 00 00 00 00 00 00 00")
    assert rig.good(tell.format(8), room=8) == bytes(8)
    refused = rig.send("c0 02 00 00 00 00 00 00 08 00", room=8)
    assert refused.error == (SenseKey.ILLEGAL_REQUEST, 0x24, 0)
    assert refused.field == (1, 1)


def test_the_example_of_a_command_is_reported_to_initiators():
    rig = make_rig(example("handler_counted")["Counted"]())
    one = rig.good("a3 0c 01 c0 00 00 00 00 00 40 00 00", room=64)  # SPC-4 6.35: the operation code alone
    assert one[1] & 7 == 3
    assert one[4:14] == bytes.fromhex("c0 01 00 00 00 00 00 00 ff 00")


def test_the_example_of_a_thread_keeps_the_promises():
    before = threading.active_count()
    check_handler(lambda: open_device(example("handler_queued")["Queued"], size=1 << 18), examples=4, ways=["engine"])
    assert threading.active_count() == before


def test_the_example_without_scsi_runs(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    assert example("try_queued")["found"] == b"a" * 512
