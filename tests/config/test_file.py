"""tcmu.conf: what it means, and what a person is told about a mistake."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from tcmu_core.config.configuration import Config, ForeignDevices, LunConfig
from tcmu_core.config.file import load, parse
from tcmu_core.errors import ConfigError
from tcmu_core.log import Level
from tcmu_core.scsi.alua import AccessState as State
from tcmu_core.scsi.alua import Arrangement, PortGroup
from tcmu_core.scsi.opcodes import Tpgs

SHIPPED = Path(__file__).parents[2] / "conf" / "tcmu.conf"

TARGET = """\
[targets]
[[iqn.2025-01.local.tcmu:a]]
"""
LUN = TARGET + "[[[lun 0]]]\nhandler = file\n"

GROUPS = (
    "[portal]\nlisten = 127.0.0.1, 192.0.2.1, FD00::1\nacl = iqn.2025-01.local:*\n"
    + TARGET
    + """\
[[[groups]]]
access = both
transition_time = 9
[[[[1]]]]
portals = 127.0.0.1
preferred = yes
[[[[2]]]]
portals = 192.0.2.1, FD00::1
state = non-optimized
"""
)
GROUP = TARGET + "[[[lun 0]]]\nhandler = file\n[[[groups]]]\n[[[[1]]]]\n"

BAD = [
    ("log_level = 3\nlog_dir = \n", "t.conf:2: log_dir: no directory: write one"),
    (GROUP, "t.conf:6: [1] needs 'portals'"),
    (GROUP + "portals = 127.0.0.1\nstate = lazy", "t.conf:8: state: 'lazy' is no access state: optimized, "),
    (GROUP + "portals = 127.0.0.1\nstat = standby", "unknown key 'stat' in [1]: did you mean 'state'?"),
    (GROUP + "portals = 0.0.0.0", "t.conf:7: portal '0.0.0.0': a group needs addresses and ports that clients reach"),
    (GROUP + "portals = 192.0.2.9", "t.conf:5: none of these portals is listened on: [portal] has 127.0.0.1:3260"),
    (GROUP + "portals = 127.0.0.1\n[[[[2]]]]\nportals = 127.0.0.1:3260", "t.conf:9: portal '127.0.0.1:3260' is in "),
    (
        GROUP.replace("]]]\n[[[[1", "]]]\naccess = both\n[[[[1") + "portals = 127.0.0.1, 192.0.2.9",
        "t.conf:6: what an initiator moves here, the host of 192.0.2.9:3260 would not hear of",
    ),
    (GROUP.replace("1]", "0]") + "portals = 127.0.0.1", "[[[[0]]]] is no group: write a number from 1 to 65535"),
    (GROUP.replace("[1]", "[one]") + "portals = 127.0.0.1", "[[[[one]]]] is no group: write a number from 1 to 65535"),
    (GROUP.replace("]]]\n[[[[1", "]]]\naccess = none\n[[[[1") + "portals = 127.0.0.1", "'none' is none of implicit, "),
    (GROUP + "portals = 127.0.0.1\n[[[lun 1]]]\nhandler = file\ngroups = 2 standby", "t.conf:10: groups: '2 standby'"),
    (GROUP + "portals = 127.0.0.1\n[[[lun 1]]]\nhandler = file\ngroups = 1 lazy", "t.conf:10: 'lazy' is no access"),
    (LUN + "groups = 1 standby", "t.conf:5: groups: the target has no section [[[groups]]]"),
    # what is written, and what is said
    ("log_levl = 3", "t.conf:1: unknown key 'log_levl': did you mean 'log_level'?"),
    ("\n\ncolour = red", "t.conf:3: unknown key 'colour': known are log_level, log_dir, syslog, foreign_devices"),
    ("loglevel", "t.conf:1: unknown key 'loglevel': did you mean 'log_level'?"),
    ("[portals]", "t.conf:1: unknown section 'portals': did you mean 'portal'?"),
    ("[portal]\n[[chat]]", "t.conf:2: unknown section 'chat' in [portal]: did you mean 'chap'?"),
    ("[portal]\nlisen = ::1", "t.conf:2: unknown key 'lisen' in [portal]: did you mean 'listen'?"),
    ("listen = 127.0.0.1", "t.conf:1: unknown key 'listen': it belongs into [portal]"),
    (LUN + "sice = 1G", "t.conf:5: unknown key 'sice' in [lun 0]: did you mean 'size'?"),
    ("log_level = loud", "t.conf:1: log_level: 'loud' is no level; levels are 0 CRIT, 1 ERROR, 2 WARN, 3 INFO, "),
    ("log_dir = /a, /b", "t.conf:1: log_dir: a value that holds a comma must be quoted"),
    ("syslog = maybe", "t.conf:1: syslog: 'maybe' is neither yes nor no"),
    ("foreign_devices = no", "t.conf:1: foreign_devices: 'no' is neither reject nor ignore"),
    ("portal = 1", "t.conf:1: portal: must be a section, not a key"),
    ("[log_dir]", "t.conf:1: log_dir: must be a key, not a section"),
    ("[log_levels]\n[[file/a]]\nx = 1", "t.conf:2: file/a: must be a key, not a section"),
    ("[handlers]\nfile = 1", "t.conf:2: unknown key 'file' in [handlers]"),
    ("[handlers]\n[[file]]\n[[[x]]]", "t.conf:3: x: must be a key, not a section"),
    (
        "[handlers]\n[[file]]\nmemory_limit = 1M",
        "t.conf:3: memory_limit: '1M' is less than a worker needs: 64M or more",
    ),
    ("[handlers]\n[[file]]\nmemory_limit = much", "t.conf:3: memory_limit: 'much' is no size"),
    ("[portal]\nlisten = nowhere", "t.conf:2: listen: portal address 'nowhere': write it like 127.0.0.1:3260 or"),
    ("[portal]\nlisten = 127.0.0.1:99999", "t.conf:2: listen: portal address '127.0.0.1:99999': write it like"),
    ("[portal]\nlisten = 0.0.0.0", "t.conf:2: portal 0.0.0.0: anybody on the network could write to the disks; "),
    ("[portal]\nmax_connections = 0", "t.conf:2: max_connections: 0 is too small"),
    ("[portal]\nqueue_depth = 100000", "t.conf:2: queue_depth: 100000 is too large"),
    ("[portal]\nnop_interval = 1e30", "t.conf:2: nop_interval: 1e30 is too large"),
    ("\n" + "[" * 100_000, "t.conf:2: a line of 100000 characters: this is no configuration file"),
    ("a" + " " * 100_000, "t.conf:1: a line of 100001 characters: this is no configuration file"),
    ("log_dir = '\0'", "t.conf:1: a NUL character: this is no configuration file"),
    ("[portal]\nlisten = ,", "t.conf:2: listen: no address: write one such as 127.0.0.1:3260"),
    ("[portal]\nlisten = 127.0.0.1, 127.0.0.1:3260", "t.conf:2: listen: an address is there twice"),
    (GROUP + "portals = 127.0.0.1\n[[[lun 1]]]\nhandler = file\ngroups = ''", "t.conf:10: groups: '': write ID STATE"),
    ("[portal]\nlogin_timeout = nan", "t.conf:1: login_timeout: must be at most 86400 seconds"),
    ("[portal]\nacl = ''", "t.conf:2: initiator pattern '': no name fits it"),
    ("[portal]\nacl = 'iqn.a, iqn.b'", "t.conf:2: initiator pattern 'iqn.a, iqn.b': no name fits it"),
    ("[portal]\nlisten = 0.0.0.0\nacl = **", "t.conf:2: portal 0.0.0.0: anybody on the network could write"),
    ("[portal]\nlogin_timeout = soon", "t.conf:2: login_timeout: 'soon' is no number"),
    ("[portal]\ndata_digest = md5", "t.conf:2: data_digest: write CRC32C, None, or both"),
    ("[portal]\nmutual_user = me\nmutual_password = x", "mutual CHAP needs incoming CHAP users too"),
    ("[portal]\n[[chap]]\na =", "t.conf:2: CHAP needs a name and a secret that are not empty"),
    (TARGET, "t.conf:2: target 'iqn.2025-01.local.tcmu:a' has no logical unit: add a section [[[lun 0]]]"),
    (TARGET.replace("iqn", "ign"), "t.conf:2: 'ign.2025-01.local.tcmu:a' is no iSCSI name: write one such as iqn."),
    (TARGET.replace(":a", ":" + "a" * 223), "is no iSCSI name"),
    (TARGET + "[[[lun 0]]]\nsize = 1G", "t.conf:3: [lun 0] needs 'handler'"),
    (TARGET + "[[[lun 0]]]\nhandler =", "t.conf:3: handler: the name is empty"),
    (TARGET + "[[[disk]]]\nhandler = file", "t.conf:3: [[[disk]]] is no logical unit: write [[[lun 0]]], up to 16383"),
    (TARGET + "[[[lun 16384]]]\nhandler = file", "t.conf:3: [[[lun 16384]]] is no logical unit"),
    (LUN + "[[[0]]]\nhandler = ram", "t.conf:5: logical unit 0 is there twice"),
    (LUN + "size = 1Q", "t.conf:5: size: '1Q' is no size: write a number with K, M, G or T, such as 64M"),
    (LUN + "size = 1000", "t.conf:5: size: 1000 bytes are not whole blocks of 512"),
    (LUN + "block_size = 4K\nsize = 1K", "t.conf:6: size: 1024 bytes are not whole blocks of 4096"),
    (LUN + "size = 0", "t.conf:5: size: 0 bytes are not whole blocks of 512"),
    (LUN + "name = a\tb", "t.conf:5: name: 'a\\tb' can't be a disk's name: write printable characters"),
    (LUN + "block_size = 1000", "t.conf:5: block_size: '1000' is no block size: a power of two from 512 to 65536"),
    (LUN + "cfgstring = /a, b", "t.conf:5: cfgstring: a value that holds a comma must be quoted"),
    ("log_level = 3\nlog_level = 4", "t.conf:2: this key is there twice in its section"),
    ("[portal]\n[portal]", "t.conf:2: this section is there twice"),
    ("[[chap]]", "t.conf:1: a section needs the one with one bracket less above it"),
    ("[portal]]", "t.conf:1: the section's brackets don't match"),
    ("log level of three", "t.conf:1: neither 'key = value' nor a [section]"),
    ("log_dir = '/var/log", "t.conf:1: the value's quotes don't match"),
    ("log_dir = '''/var/log\n", "t.conf:1: the value's triple quotes are never closed"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=[message.split(": ")[-1][:40] for _, message in BAD])
def test_a_mistake_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse(text, "t.conf")


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("log_level = x\n\n[portal]\nlisten = y\nz = 1\n", "t.conf")
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == ["t.conf:1", "t.conf:4", "t.conf:5"]


def test_an_empty_file_means_the_defaults() -> None:
    assert parse("") == Config()


def test_a_missing_file_means_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path / "tcmu.conf") == Config()


def test_a_missing_file_that_was_asked_for_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tcmu\.conf: No such file or directory"):
        load(tmp_path / "tcmu.conf", must_exist=True)


def test_the_shipped_file_means_the_defaults() -> None:
    assert load(SHIPPED) == Config()


def test_the_shipped_file_shows_the_defaults() -> None:
    """With its settings taken out of comments it says what the defaults are, beside its examples."""
    text = re.sub(r"^#(?=[a-z\[])", "", SHIPPED.read_text(), flags=re.MULTILINE)
    config = parse(text)
    plain = Config()
    assert config.given == {"log_level", "log_dir", "syslog", "foreign_devices"}
    for name in (*config.given, "warnings"):
        if name != "warnings":
            assert str(getattr(config, name)) == str(getattr(plain, name)), name
    portal = dataclasses.replace(config.portal, access=plain.portal.access, targets={}, groups={})
    assert dataclasses.replace(portal, targets=plain.portal.targets) == plain.portal
    assert [user.name for user in config.portal.access.users] == ["alice"]
    assert config.targets[0].luns == (
        LunConfig(0, "file", "/var/lib/tcmu/disk1.img", "disk1-0", 10 << 30, 512, False, ("rate;iops=500", "log")),
    )


def test_the_portals_of_a_target_are_in_groups_whose_states_each_lun_may_have_for_itself() -> None:
    config = parse(GROUPS + "[[[lun 0]]]\nhandler = file\n[[[lun 1]]]\nhandler = file\n"
                   "groups = 1 standby, 2 active/optimized preferred\n")  # fmt: skip
    (target,) = config.targets
    assert config.portal.groups == {target.name: {"127.0.0.1:3260": 1, "192.0.2.1:3260": 2, "[fd00::1]:3260": 2}}
    first, second = PortGroup(1, (1,), State.OPTIMIZED, True), PortGroup(2, (2,), State.NON_OPTIMIZED)
    assert target.arrangements[0] == Arrangement((first, second), Tpgs.BOTH, 9)
    first, second = PortGroup(1, (1,), State.STANDBY), PortGroup(2, (2,), State.OPTIMIZED, True)
    assert target.arrangements[1] == Arrangement((first, second), Tpgs.BOTH, 9)


def test_a_target_without_groups_has_no_arrangements() -> None:
    config = parse(LUN)
    assert (config.targets[0].arrangements, config.portal.groups) == ({}, {})


def test_every_key_of_the_schema_is_explained_in_the_shipped_file() -> None:
    spec = SHIPPED.parents[1] / "tcmu_core" / "config" / "tcmu.spec"
    keys = set(re.findall(r"^([a-z_]+) =", spec.read_text(), re.MULTILINE)) - {"__many__"}
    shown = set(re.findall(r"^#([a-z_]+) =", SHIPPED.read_text(), re.MULTILINE))
    assert keys <= shown


@pytest.mark.parametrize(
    ("text", "level", "directory"),
    [
        ("log_level = 5", Level.DEBUG_SCSI_CMD, "/var/log"),
        ("log_level=4\nlog_dir='/var/log/tcmu'", Level.DEBUG, "/var/log/tcmu"),
        ('# a comment\n\n  log_dir = "/srv/my logs"\n', Level.INFO, "/srv/my logs"),
        ("log_dir = /x # not part of it", Level.INFO, "/x"),
        ("log_level = 9", Level.DEBUG_SCSI_CMD, "/var/log"),
        ("log_level = -1", Level.CRIT, "/var/log"),
        ("\ufefflog_level = 0\r\n", Level.CRIT, "/var/log"),
    ],
)
def test_the_c_runners_files_are_understood(tmp_path: Path, text: str, level: Level, directory: str) -> None:
    file = tmp_path / "tcmu.conf"
    file.write_text(text, encoding="utf-8")
    config = load(file)
    assert (config.log_level, config.log_dir) == (level, Path(directory))


def test_a_bare_key_is_true_as_in_the_c_runners_grammar() -> None:
    assert parse("syslog").syslog is True


def test_a_level_out_of_range_is_clamped_with_a_warning() -> None:
    assert parse("log_level = 9", "t.conf").warnings == ("t.conf:1: log_level 9: 5 is taken",)


def test_levels_have_names_too() -> None:
    config = parse("log_level = debug scsi cmd\n[log_levels]\nfile/disk = debug\n")
    assert config.log_level is Level.DEBUG_SCSI_CMD
    assert config.log_levels == {"file/disk": Level.DEBUG}


def test_percent_and_dollar_signs_are_themselves() -> None:
    assert parse(LUN + "cfgstring = /a/%(b)s/$c").targets[0].luns[0].cfgstring == "/a/%(b)s/$c"


def test_handlers_get_their_own_section() -> None:
    config = parse("[handlers]\n[[file]]\ndirect = 1\n[[rbd]]\nconf = /etc/ceph/ceph.conf\n")
    assert config.handlers == {"file": {"direct": "1"}, "rbd": {"conf": "/etc/ceph/ceph.conf"}}


def test_targets_have_logical_units_in_order() -> None:
    text = LUN.replace("lun 0", "lun 7") + "size = 1G\nread_only = yes\n[[[lun 2]]]\nhandler = ram\nname = r\n"
    (target,) = parse(text).targets
    assert target.name == "iqn.2025-01.local.tcmu:a"
    assert target.luns == (
        LunConfig(2, "ram", name="r"),
        LunConfig(7, "file", name="a-7", size=1 << 30, read_only=True),
    )


def test_a_memory_limit_is_the_runners_and_no_option_of_the_handler() -> None:
    config = parse("[handlers]\n[[file]]\nmemory_limit = 512M\ndirect = 1\n[[rbd]]\nconf = x\n")
    assert config.memory_limits == {"file": 512 << 20}
    assert config.handlers == {"file": {"direct": "1"}, "rbd": {"conf": "x"}}


def test_the_portal_gets_its_settings() -> None:
    portal = parse(
        "[portal]\nlisten = 127.0.0.1:3261, [::1]\nacl = iqn.1993-08.org.debian:*\nheader_digest = none\n"
        "max_connections = 3\nnop_interval = 2.5\nmutual_user = t\nmutual_password = other\n[[chap]]\na = secret\n"
    ).portal
    assert portal.addresses == ("127.0.0.1:3261", "[::1]")
    assert portal.header_digests == ("None",)
    assert (portal.limits.connections, portal.limits.nop_interval) == (3, 2.5)
    assert [(user.name, user.secret) for user in portal.access.users] == [("a", b"secret")]
    assert portal.access.outgoing is not None
    assert portal.access.allows("iqn.1993-08.org.debian:01:abc")
    assert not portal.access.allows("iqn.1994-05.com.redhat:x")


def test_a_target_may_let_in_others_than_the_portal_does() -> None:
    text = "[portal]\nacl = iqn.a:*\n[[chap]]\na = 1\n" + LUN.replace(
        "[[[lun", "acl = iqn.b:*\n[[[chap]]]\nb = 2\n[[[lun"
    )
    portal = parse(text).portal
    own = portal.access_to("iqn.2025-01.local.tcmu:a")
    assert [user.name for user in own.users] == ["b"]
    assert own.initiators == ("iqn.b:*",)
    assert portal.access_to("iqn.2025-01.local.tcmu:other").initiators == ("iqn.a:*",)


def test_listening_for_everybody_takes_a_word_or_a_lock() -> None:
    for more in ("insecure = yes", "acl = iqn.a:*", "[[chap]]\na = b"):
        assert parse(f"[portal]\nlisten = 0.0.0.0\n{more}\n").portal.addresses == ("0.0.0.0",)


def test_passwords_that_others_can_read_are_warned_about(tmp_path: Path) -> None:
    file = tmp_path / "tcmu.conf"
    file.write_text("[portal]\n[[chap]]\na = long enough to be one\n")
    file.chmod(0o644)
    assert load(file).warnings == (f"{file}: holds passwords and others may read it: chmod 600 {file}",)
    file.chmod(0o600)
    assert load(file).warnings == ()


def test_a_password_that_can_be_guessed_is_warned_of_with_its_line() -> None:
    text = "[portal]\n[[chap]]\nalice = elevenchars\nbob = twelve chars\n"
    (warning,) = parse(text, "t.conf").warnings
    assert warning == "t.conf:3: the password of alice is shorter than 12 characters: it can be guessed"


def test_disks_that_are_called_alike_are_warned_of() -> None:
    lun = "[[[lun {}]]]\nhandler = ram\nsize = 1M\nname = one\n"
    text = f"[targets]\n[[iqn.2026-01.org:a]]\n{lun.format(0)}[[iqn.2026-01.org:b]]\n{lun.format(2)}"
    (warning,) = parse(text, "t.conf").warnings
    assert warning.startswith("t.conf:9: 'one' is LUN 0 of iqn.2026-01.org:a, too: ")


def test_passwords_don_t_show_in_a_repr() -> None:
    assert "sesame" not in repr(parse("[portal]\n[[chap]]\na = sesame\n"))


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"log_level = 3\n\xff\n", "tcmu.conf:2: not UTF-8 text"), (b"#" * (2 << 20) + b"#", "larger than 2 MiB")],
    ids=["binary", "huge"],
)
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "tcmu.conf"
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        load(file)


def test_foreign_devices_can_be_left_to_others() -> None:
    assert parse("foreign_devices = ignore").foreign_devices is ForeignDevices.IGNORE


def test_the_options_of_a_handler_know_their_lines():
    config = parse("[handlers]\n[[file]]\n\ndirect = yes\nsize = 3M\n", "/etc/tcmu/tcmu.conf")
    options = config.handlers["file"]
    assert dict(options) == {"direct": "yes", "size": "3M"}
    assert options["direct"].where == "/etc/tcmu/tcmu.conf:4"
    assert options["size"].where == "/etc/tcmu/tcmu.conf:5"
