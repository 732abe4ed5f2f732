"""A disk of a file behind an HTTP server: the promises, the cache, and what goes wrong with servers."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any

import pytest

from tcmu_core import ConfigError, ReadError
from tcmu_core.testing import OpenDevice, check_handler, open_device
from tcmu_http import HttpHandler

BLOCK = 4096
CLAIMS = ["own size"]


def opened(web: Any, options: str = "", **attributes: Any) -> AbstractContextManager[OpenDevice]:
    return open_device(HttpHandler, f"{web.url};block=4K{options}", **attributes)


@pytest.mark.parametrize("options", ["", ";cache=16K"])
def test_it_keeps_the_promises(web, options):
    report = check_handler(lambda: opened(web, options), examples=8, claims=CLAIMS)
    assert {"check_reading", "check_giving_back", "check_leaks", "check_together"} <= set(report.checked)


def test_a_disk_over_tls_keeps_the_promises(encrypted, certificate):
    check_handler(lambda: opened(encrypted, f";ca={certificate}"), claims=CLAIMS, ways=["engine"])


def test_a_certificate_that_nobody_knows_is_refused(encrypted):
    with pytest.raises(OSError, match=r"https://127.0.0.1:\d+/disk.img: .*certificate"), opened(encrypted):
        pass


def test_it_can_be_served_and_copied(web, tmp_path):
    words = [sys.executable, "-m", "tcmu_core.cli.tcmu", "serve", "http", web.url, "--state-dir", str(tmp_path)]
    words += ["--run", f"qemu-img convert -f raw -O raw $uri {tmp_path}/copy.img"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy.img").read_bytes() == web.data


# -- what is asked for ------------------------------------------------------------------------------------------------


def test_a_block_is_fetched_once(web):
    with opened(web) as disk:
        assert disk.read(BLOCK + 512, 512) == web.data[BLOCK + 512 : BLOCK + 1024]
        assert disk.read(BLOCK, BLOCK) == web.data[BLOCK : 2 * BLOCK]
        assert web.fetched() == [(BLOCK, 2 * BLOCK)]


def test_what_is_kept_is_answered_at_once(web):
    with opened(web) as disk:
        disk.read(0, BLOCK)
        assert disk.start("read", 0, [memoryview(bytearray(BLOCK))]) is None


def test_blocks_beside_each_other_are_one_request(web):
    with opened(web) as disk:
        disk.read(3 * BLOCK, BLOCK)
        assert disk.read(0, 8 * BLOCK) == web.data[: 8 * BLOCK]
        assert sorted(web.fetched()[1:]) == [(0, 3 * BLOCK), (4 * BLOCK, 8 * BLOCK)]


def test_the_block_that_was_not_used_for_longest_makes_room(web):
    with opened(web, ";cache=8K") as disk:
        for number in (0, 1, 0, 2, 0, 1):
            disk.read(number * BLOCK, BLOCK)
        assert [first // BLOCK for first, _ in web.fetched()] == [0, 1, 2, 1]


def test_two_that_wait_for_one_block_make_one_request(web):
    come, go = threading.Event(), threading.Event()

    def held(answer):
        come.set()
        assert go.wait(60)
        answer.serve()

    with opened(web) as disk:
        web.faults.append(held)
        rooms = [bytearray(BLOCK), bytearray(512)]
        pending = [disk.start("read", 0, [memoryview(rooms[0])]), disk.start("read", 512, [memoryview(rooms[1])])]
        assert come.wait(60)
        assert not any(isinstance(one, Future) and one.done() for one in pending)
        assert disk.read(BLOCK, BLOCK) == web.data[BLOCK : 2 * BLOCK], "another request goes on meanwhile"
        go.set()
        for one in pending:
            disk.finish(one)
        assert rooms == [web.data[:BLOCK], web.data[512:1024]]
        assert web.fetched() == [(0, BLOCK), (BLOCK, 2 * BLOCK)]


def test_bytes_that_are_no_whole_block_are_left_out_and_logged(web, caplog):
    web.data = web.data[: BLOCK * 2 + 700]
    with opened(web) as disk:
        assert disk.size == BLOCK * 2 + 512
        assert disk.read(BLOCK * 2, 512) == web.data[BLOCK * 2 : BLOCK * 2 + 512]
    assert "the last 188 bytes of the file are no whole block" in caplog.text


def test_a_connection_is_used_again_and_one_that_the_server_closed_is_no_error(web, caplog):
    with opened(web, ";retry=0") as disk:
        disk.read(0, BLOCK)
        web.faults.append(lambda answer: answer.hang_up())
        assert disk.read(BLOCK, BLOCK) == web.data[BLOCK : 2 * BLOCK]
    assert "trying again" not in caplog.text


# -- servers that can't be used ---------------------------------------------------------------------------------------


def no_ranges(web):
    web.ranges = False


def empty(web):
    web.data = b""


def too_small(web):
    web.data = b"x"


def says(status: int, **headers: str) -> Any:
    return lambda web: web.faults.append(lambda answer: answer.say(status, b"x", **headers))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_ranges, "it does no ranges"),
        (empty, "the file is empty"),
        (too_small, "less than one block"),
        (says(404), "the server says 404 Not Found"),
        (says(503), "the server says 503 Service Unavailable"),
        (says(206), "does not say which range of what size"),
        (says(206, Content_Range="bytes 0-0/*"), "does not say which range of what size"),
        (says(206, Content_Range="bytes 5-5/1000000"), "sends the bytes 5 to 5, not 0 to 0"),
        (says(206, Content_Range="bytes 0-0/1000000", Content_Encoding="gzip"), "sends it as gzip"),
        (says(302), "without saying where"),
        (says(302, Location="ftp://elsewhere/x"), "no URL of a web server"),
    ],
)
def test_a_server_that_can_not_be_used_is_refused_with_the_reason(web, spoil, message):
    spoil(web)
    with pytest.raises((OSError, ConfigError), match=message), opened(web):
        pass


def test_another_size_than_the_files_is_refused(web):
    with pytest.raises(ConfigError, match="262144 bytes, not 131072: leave the size out"), opened(web, size=1 << 17):
        pass


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_it_goes_where_it_is_sent_and_stays_there(web, status):
    web.faults.append(lambda answer: answer.say(status, Location="/other?signature=1"))
    with opened(web) as disk:
        assert disk.read(0, BLOCK) == web.data[:BLOCK]
    assert web.paths == ["/disk.img", "/other?signature=1", "/other?signature=1"]


def test_where_it_was_sent_is_asked_for_anew_when_that_has_run_out(web):
    web.faults.append(lambda answer: answer.say(302, Location="/other"))
    with opened(web) as disk:
        web.faults.append(lambda answer: answer.say(403))
        assert disk.read(0, BLOCK) == web.data[:BLOCK]
    assert web.paths == ["/disk.img", "/other", "/other", "/disk.img"]


def test_it_is_not_led_out_of_tls(encrypted, certificate):
    encrypted.faults.append(lambda answer: answer.say(302, Location="http://127.0.0.1/x"))
    with pytest.raises(OSError, match="which is not encrypted"), opened(encrypted, f";ca={certificate}"):
        pass


# -- the file changes -------------------------------------------------------------------------------------------------


def another_etag(web):
    web.etag = '"two"'


def another_date(web):
    web.etag, web.modified = "", "Mon, 05 Jan 2026 10:30:00 GMT"


def shorter(web):
    web.data = web.data[:BLOCK]


def longer(web):
    web.data += b"more"


@pytest.mark.parametrize(
    ("change", "what"),
    [(another_etag, "its etag was"), (another_date, "its etag was"), (shorter, "shorter"), (longer, "its size was")],
)
def test_a_file_that_changed_is_an_error_from_then_on(web, change, what, caplog):
    before = (web.etag, web.modified, web.data)
    with opened(web, ";cache=0") as disk:
        disk.read(0, BLOCK)
        change(web)
        with pytest.raises(ReadError, match=f"has changed: .*{what}"):
            disk.read(8 * BLOCK, BLOCK)
        web.etag, web.modified, web.data = before
        with pytest.raises(ReadError, match="has changed"):
            disk.read(0, BLOCK)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


@pytest.mark.parametrize(
    ("etag", "modified", "condition"),
    [
        ('"one"', "Mon, 05 Jan 2026 10:00:00 GMT", '"one"'),
        ("", "Mon, 05 Jan 2026 10:00:00 GMT", "Mon, 05 Jan 2026 10:00:00 GMT"),
        ('W/"one"', "Mon, 05 Jan 2026 10:00:00 GMT", None),
        ("", "Mon, 05 Jan 2026 11:00:00 GMT", None),  # as old as the answer: it may change again within the second
        ("", "yesterday", None),
        ("", "", None),
    ],
)
def test_a_range_is_asked_for_on_condition_that_the_file_is_the_same(web, etag, modified, condition):
    web.etag, web.modified = etag, modified
    with opened(web) as disk:
        disk.read(0, BLOCK)
    assert web.requests[-1].get("If-Range") == condition


def test_a_change_under_a_weak_validator_is_noticed_too(web):
    web.etag = 'W/"one"'
    with opened(web) as disk:
        web.etag = 'W/"two"'
        with pytest.raises(ReadError, match="has changed"):
            disk.read(0, BLOCK)


def test_a_server_that_tells_no_version_is_mentioned(web, caplog):
    web.etag = web.modified = ""
    with opened(web):
        assert "a change will go unnoticed" in caplog.text


# -- trying again -----------------------------------------------------------------------------------------------------


PASSING = {
    "an error of the server": lambda answer: answer.say(503, Retry_After="0"),
    "no answer": lambda answer: answer.hang_up(),
    "half an answer": lambda answer: answer.serve(cut=100),
    "no HTTP": lambda answer: answer.wfile.write(b"220 mail\r\n"),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_passes_is_tried_again(web, fault):
    with opened(web) as disk:
        web.faults += [fault] * 3
        assert disk.read(0, BLOCK) == web.data[:BLOCK]
        assert not web.faults


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_without_patience_it_is_an_error_and_the_next_read_may_be_well(web, fault):
    web.faults.append(lambda answer: answer.serve(Connection="close"))  # so that none is kept, and none is tried twice
    with opened(web, ";retry=0") as disk:
        web.faults.append(fault)
        with pytest.raises(OSError, match=r"503|without response|100 of 4096|no HTTP"):
            disk.read(0, BLOCK)
        assert disk.read(BLOCK, BLOCK) == web.data[BLOCK : 2 * BLOCK]


def test_what_stays_is_not_tried_again(web):
    with opened(web) as disk:
        web.faults.append(lambda answer: answer.say(404))
        with pytest.raises(OSError, match="404"):
            disk.read(0, BLOCK)
        assert len(web.requests) == 2


def test_a_server_that_is_gone_can_not_be_reached(web):
    with opened(web, ";retry=0") as disk:
        web.faults += [lambda answer: answer.hang_up()] * 2
        with pytest.raises(ConnectionError):
            disk.read(0, BLOCK)


def test_a_server_that_does_not_answer_is_given_up(web):
    go = threading.Event()
    with opened(web, ";retry=0;timeout=1") as disk:
        web.faults.append(lambda answer: go.wait(60) and answer.serve())
        with pytest.raises(TimeoutError, match="timed out"):
            disk.read(0, BLOCK)
        go.set()


# -- the cfgstring ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cfgstring", "message"),
    [
        ("", "no url"),
        ("/srv/disk.img", "no URL of a web server"),
        ("ftp://server/x", "no URL of a web server"),
        ("http:///x", "no URL of a web server"),
        ("http://server:99999/x", "is no URL"),
        ("http://server/a b", "write %20"),
        ("http://me:secret@server/x", "a password does not belong"),
        ("http://server/x;block=5000", "a power of two"),
        ("http://server/x;cash=1M", "did you mean 'cache'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_opened(cfgstring, message):
    with pytest.raises(ConfigError, match=message) as told:
        HttpHandler().check_config(cfgstring)
    assert "secret" not in str(told.value)


def test_a_colon_can_be_written_as_the_kernel_can_keep_it(web):
    with open_device(HttpHandler, web.url.replace(":", "%3A")) as disk:
        assert disk.size == len(web.data)
