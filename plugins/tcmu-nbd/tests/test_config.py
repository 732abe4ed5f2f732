from __future__ import annotations

import pytest

from tcmu_core import ConfigError
from tcmu_nbd import NbdHandler
from tcmu_nbd.config import Config, parse
from tcmu_nbd.handshake import Tls

FOREVER = float("inf")
RIGHT = [
    ("/run/a.sock", Config(path="/run/a.sock")),
    ("/run/a.sock;export=disk", Config(path="/run/a.sock", export="disk")),
    (";host=server", Config(host="server")),
    (";host=::1;port=10810;export=a b", Config(host="::1", port=10810, export="a b")),
    (";host=h;connections=4;timeout=2.5;reconnect=0", Config(host="h", connections=4, timeout=2.5, reconnect=FOREVER)),
    (
        ";host=h;ro=1;sync=1;replay=1M;block_size=4K",
        Config(host="h", ro=True, sync=True, replay=1 << 20, block_size=4096),
    ),
    (";host=h;tls=on", Config(host="h", tls=Tls.ON)),
    (
        ";host=h;tls=require;ca=/ca;cert=/c;key=/k;tls_hostname=n",
        Config(host="h", tls=Tls.REQUIRE, ca="/ca", cert="/c", key="/k", tls_hostname="n"),
    ),
    ("nbd://server", Config(host="server")),
    ("nbd://server/", Config(host="server")),
    ("nbd://server:10810/a%20disk;ro=1", Config(host="server", port=10810, export="a disk", ro=True)),
    ("nbd://[::1]:1/x", Config(host="::1", port=1, export="x")),
    ("nbds://server/x", Config(host="server", export="x", tls=Tls.REQUIRE)),
    ("nbd+unix:///x?socket=/run/a.sock", Config(path="/run/a.sock", export="x")),
    ("nbds+unix:///?socket=/run/a.sock", Config(path="/run/a.sock", tls=Tls.REQUIRE)),
]
WRONG = [
    ("", "no server"),
    ("server", "write ;host=server"),
    ("/a.sock;host=x", "not both"),
    (";host=h;port=0", "1 to 65535"),
    (";host=h;port=x", "not valid"),
    (";host=h;connections=0", "1 to 16"),
    (";host=h;timeout=-1", "seconds"),
    (";host=h;timeout=nan", "seconds"),
    (";host=h;tls=maybe", "off, on"),
    (";host=h;ca=/x", "needs tls"),
    (";host=h;tls=on;key=/x", "needs cert"),
    (";host=h;block_size=1000", "power of two"),
    (";host=h;hots=1", "did you mean 'host'"),
    (f";host=h;export={'x' * 4097}", "4096 bytes"),
    ("http://server/x", "no NBD URI"),
    ("nbd:///x", "names no host"),
    ("nbd://a..b/x", "is no host"),
    (f";host={'x' * 64}.org", "is no host"),
    (";host=\0", "is no host"),
    (";host=\ud800", "is no host"),
    ("nbd://h:99999/x", "1 to 65535"),
    ("nbd://[::1/x", "Invalid IPv6"),
    ("nbd+unix:///x", "socket="),
    ("nbd://h/x?tls-psk-file=y", "'tls-psk-file' is not known"),
    ("nbd://h/x;export=y", "given twice"),
]


@pytest.mark.parametrize(("text", "config"), RIGHT)
def test_a_cfgstring_means(text: str, config: Config) -> None:
    assert parse(text) == config


@pytest.mark.parametrize(("text", "reason"), WRONG)
def test_what_is_wrong_is_said(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        NbdHandler().check_config(text)


def test_tcmu_conf_gives_defaults_and_the_cfgstring_comes_first() -> None:
    defaults = {"host": "common", "timeout": "5", "tls": "on"}
    assert parse(";timeout=7", defaults) == Config(host="common", timeout=7, tls=Tls.ON)
    assert parse("/run/a.sock;tls=off", defaults) == Config(path="/run/a.sock", timeout=5)


def test_tls_files_that_are_no_such_are_named() -> None:
    with pytest.raises(ConfigError, match="/nonexistent"):
        parse(";host=h;tls=on;ca=/nonexistent").context()
