import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcmu_core import CfgString, ConfigError, boolean, parse_cfgstring, size
from tcmu_core.cfgstring import Default, configfs_problem, split_runner_options

KNOWN = {"count": int, "direct": boolean, "name": str, "size": size}

SIZES = {
    "0": 0,
    "512": 512,
    "512b": 512,
    "64K": 65536,
    "64 k": 65536,
    "1.5G": 3 << 29,
    "10GiB": 10 << 30,
    "10GB": 10 << 30,
    " 2M ": 2 << 20,
    "1T": 1 << 40,
    "1P": 1 << 50,
    "1E": 1 << 60,
    "9007199254740993": 9007199254740993,  # a float would be one off
}


@pytest.mark.parametrize(("text", "value"), SIZES.items())
def test_a_size_is_a_number_with_a_unit(text, value):
    assert size(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "G",
        "-1",
        "1X",
        "1G1",
        "0x10",
        "1,5G",
        ".5G",
        "1..5G",
        "9" * 31,
        "9" * 5000,
        f"{'9' * 400}.5",
        "\u0661",
        "1\u212a",
    ],
)
def test_what_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match="is no size: write a number with K, M, G or T, such as 64M"):
        size(text)


@pytest.mark.parametrize("text", ["1", "yes", "true", "on", "YES", "On", ""])
def test_truth(text):
    assert boolean(text) is True


@pytest.mark.parametrize("text", ["0", "no", "false", "off", "OFF"])
def test_falsehood(text):
    assert boolean(text) is False


def test_neither():
    with pytest.raises(ConfigError, match="'maybe' is neither yes nor no"):
        boolean("maybe")


GOOD = {
    "": CfgString(""),
    "/disk.img": CfgString("/disk.img"),
    "/a b=c/disk": CfgString("/a b=c/disk"),
    "/disk;direct": CfgString("/disk", {"direct": True}),
    "/disk;direct=0;size=1M": CfgString("/disk", {"direct": False, "size": 1 << 20}),
    "/disk; direct = yes ": CfgString("/disk", {"direct": True}),
    "/disk;name=a=b": CfgString("/disk", {"name": "a=b"}),
    "/disk;name=": CfgString("/disk", {"name": ""}),
    "/disk;;direct;": CfgString("/disk", {"direct": True}),
    ";size=64M": CfgString("", {"size": 64 << 20}),
}


@pytest.mark.parametrize(("text", "value"), GOOD.items())
def test_a_body_is_followed_by_options(text, value):
    assert parse_cfgstring(text, KNOWN) == value


BAD = {
    "/disk;dirct=1": "unknown option 'dirct': did you mean 'direct'?",
    "/disk;zzz=1": "unknown option 'zzz': known are count, direct, name, size",
    "/disk;=1": "unknown option ''",
    "/disk;direct=1;direct=1": "option 'direct' is given twice",
    "/disk;count=many": "option 'count': 'many' is not valid",
    "/disk;size=big": "option 'size': 'big' is no size",
    "/disk;direct=perhaps": "option 'direct': 'perhaps' is neither yes nor no",
}


@pytest.mark.parametrize(("text", "message"), BAD.items())
def test_a_mistake_is_named(text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_cfgstring(text, KNOWN)


def test_defaults_fill_in_what_the_cfgstring_does_not_say():
    defaults = {"direct": "yes", "size": "3M"}
    parsed = parse_cfgstring("/disk;direct=no;count=2", KNOWN, defaults)
    assert parsed == CfgString("/disk", {"direct": False, "size": 3 << 20, "count": 2})
    assert parsed.given == {"direct", "count"}


BAD_DEFAULTS = {
    "unknown": ({"dirct": "1"}, "unknown option 'dirct': did you mean 'direct'?"),
    "bad value": ({"size": "big"}, "option 'size': 'big' is no size"),
    "even if it is overruled": ({"direct": "perhaps"}, "option 'direct': 'perhaps' is neither yes nor no"),
}


@pytest.mark.parametrize("what", BAD_DEFAULTS)
def test_a_mistake_in_a_default_says_where_it_stands(what):
    defaults, message = BAD_DEFAULTS[what]
    with pytest.raises(ConfigError, match=re.escape(f"the handler's defaults in tcmu.conf: {message}")):
        parse_cfgstring("/disk;direct=1", KNOWN, defaults)
    placed = {name: Default(value, "/etc/tcmu/tcmu.conf:7") for name, value in defaults.items()}
    with pytest.raises(ConfigError, match=re.escape(f"/etc/tcmu/tcmu.conf:7: {message}")):
        parse_cfgstring("/disk;direct=1", KNOWN, placed)


def test_a_default_is_a_semicolons_business_of_its_own():
    assert parse_cfgstring("", KNOWN, {"name": "a;b=c"}).options == {"name": "a;b=c"}


def test_a_runner_option_in_the_wrong_place_is_told_where_it_belongs():
    with pytest.raises(ConfigError, match=re.escape("the runner's own stand in front: ;tcmur_cmd_time_out=…;")):
        parse_cfgstring("/disk;tcmur_cmd_time_out=3", KNOWN)


# -- what configfs can hold -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ("file//srv/a:b", "a colon"),
        ("file//srv/a,b", "a comma"),
        ("file//srv/a b", "a space"),
        ("file//srv/a\nb", "a newline"),
        ("file//srv/a\tb", r"'\t'"),
        ("file//srv/a\x7fb", r"'\x7f'"),
        ("file//srv/a\u3000b", r"'\u3000'"),
        ("file/" + "a" * 251, "longer than the 255 bytes"),
        ("file/" + "ä" * 126, "longer than the 255 bytes"),
    ],
)
def test_what_configfs_can_not_hold_is_said(config, why):
    assert why in configfs_problem(config)


@pytest.mark.parametrize("config", ["ram/", "file//srv/ä.img;direct=1", "file/" + "a" * 250, "file//\udcff"])
def test_what_configfs_can_hold_has_no_problem(config):
    assert configfs_problem(config) == ""


def test_where_no_option_is_known_that_is_said():
    with pytest.raises(ConfigError, match="known are none"):
        parse_cfgstring("/disk;a=1", {})


RUNNER = {
    "": ({}, ""),
    "/disk;direct=1": ({}, "/disk;direct=1"),
    ";tcmur_cmd_time_out=30;/disk;direct=1": ({"tcmur_cmd_time_out": 30}, "/disk;direct=1"),
    ";size=64M": ({}, ";size=64M"),
    ";tcmur_cmd_time_out=30;;size=64M": ({"tcmur_cmd_time_out": 30}, ";size=64M"),
    ";tcmur_cmd_time_out=30;": ({"tcmur_cmd_time_out": 30}, ""),
    ";tcmur_filter=stats;/disk": ({"tcmur_filter": ("stats",)}, "/disk"),
    ";tcmur_filter=delay&read=5ms&seed=1;;tcmur_filter=log;;size=64M": (
        {"tcmur_filter": ("delay;read=5ms;seed=1", "log")},
        ";size=64M",
    ),
    ";tcmur_filter=fault&rule=read%20-%3E%20busy;tcmur_cmd_time_out=9;tcmur_filter=log;/disk;a=b": (
        {"tcmur_filter": ("fault;rule=read -> busy", "log"), "tcmur_cmd_time_out": 9},
        "/disk;a=b",
    ),
}


@pytest.mark.parametrize(("text", "value"), RUNNER.items())
def test_the_runners_own_options_are_taken_off_the_front(text, value):
    assert split_runner_options(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (";tcmur_cmd_time_out=30", "the runner option 'tcmur_cmd_time_out=30' must end with ';'"),
        (";tcmur_cmd_timeout=30;/disk", "unknown option 'tcmur_cmd_timeout': did you mean 'tcmur_cmd_time_out'?"),
        (";tcmu_cmd_time_out=30;/disk", "unknown option 'tcmu_cmd_time_out': did you mean 'tcmur_cmd_time_out'?"),
        (";tcmur_cmd_time_out=soon;/disk", "'soon' is no number of seconds"),
        (";tcmur_cmd_time_out=-1;/disk", "'-1' is no number of seconds"),
        (";tcmur_cmd_time_out=1;;tcmur_cmd_time_out=2;/disk", "option 'tcmur_cmd_time_out' is given twice"),
    ],
)
def test_a_wrong_runner_option_is_named(text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        split_runner_options(text)


@given(st.text())
def test_any_text_is_parsed_or_refused_with_a_config_error(text):
    for parse in (lambda: parse_cfgstring(text, KNOWN), lambda: split_runner_options(text)):
        with contextlib.suppress(ConfigError):
            parse()


@given(
    st.text(st.characters(exclude_characters=";"), max_size=30),
    st.dictionaries(st.sampled_from("abcd"), st.text(st.characters(exclude_characters=";")).map(str.strip)),
)
def test_what_was_put_together_is_taken_apart_again(body, options):
    text = body + "".join(f";{name}={value}" for name, value in options.items())
    assert parse_cfgstring(text, dict.fromkeys("abcd", str)) == CfgString(body, options)
