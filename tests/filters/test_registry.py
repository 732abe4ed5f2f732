"""Filters are found by their entry points; what is broken disables itself alone; texts become filters."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcmu_core.errors import ConfigError, HandlerError
from tcmu_core.filters import registry
from tcmu_core.filters.base import EVERY_HOOK, Filter
from tcmu_core.filters.registry import FilterRegistry, check, make
from tcmu_core.options import Option, Options

BUNDLED = {
    "cache",
    "cow",
    "delay",
    "fault",
    "log",
    "offset",
    "partition",
    "rate",
    "readonly",
    "record",
    "stats",
    "truncate",
}


def install(directory: Path, project: str, entry: str, source: str = "") -> None:
    """Put a distribution with one filter where Python finds it."""
    info = directory / f"{project}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tcmu.filters]\n{entry}\n")
    if source:
        (directory / f"{project}.py").write_text(source)


def test_the_bundled_ones_are_announced_like_anybodys() -> None:
    found = {each.name: each for each in FilterRegistry()}
    assert found.keys() >= BUNDLED
    assert not [each for each in found.values() if each.error]
    assert all(each.help for each in found.values())


GOOD = "from tcmu_core import Filter\nclass Mine(Filter):\n    passes = frozenset({'read'})\n"
BROKEN = {
    "import missing_thing": "ModuleNotFoundError: No module named 'missing_thing'",
    "class Mine: pass": "it must be a subclass of Filter",
    "import sys; sys.exit(3)": "SystemExit: 3",
    GOOD.replace("'read'", "'read', 'wirte'"): "there is no hook 'wirte': did you mean 'write'",
    GOOD + "    def wrte(self, below): ...": "it has a method 'wrte', which nobody would call: did you mean 'write'",
    GOOD.replace("'read'", "'write'"): "it has no 'read'",
    GOOD + "    options = {'a': int}\n": "its `options` are no tcmu_core.Options",
    GOOD.replace("frozenset({'read'})", "None"): "it can't be looked at: TypeError: 'NoneType' object is not iterable",
    GOOD.replace("frozenset({'read'})", "'read'"): "its 'passes' must be a frozenset of names",
    GOOD.replace("frozenset({'read'})", "[['read']]"): "its 'passes' must be a frozenset of names",
    GOOD + "    provides = 5\n": "it can't be looked at: TypeError",
    GOOD + "    async def write(self, below, offset, buffers): ...\n": "its 'write' is a coroutine function",
    GOOD + "    def flush(self, below): yield\n": "its 'flush' is a generator",
    GOOD
    + "class Odd(type):\n    def __repr__(cls): raise ValueError\nclass Mine(metaclass=Odd): ...\n": "can't be printed",
}


@pytest.mark.parametrize(("source", "message"), BROKEN.items())
def test_a_broken_one_disables_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    install(tmp_path, f"broken_{abs(hash(source))}", f"mine = broken_{abs(hash(source))}:Mine", source)
    monkeypatch.syspath_prepend(tmp_path)
    found = FilterRegistry()
    assert message in found.filters["mine"].error
    assert not found.filters["delay"].error
    with pytest.raises(HandlerError, match="is broken"):
        found.make("mine")


def test_one_from_a_distribution_of_its_own_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "goodfilter", "mine = goodfilter:Mine", GOOD)
    monkeypatch.syspath_prepend(tmp_path)
    assert FilterRegistry().make("mine").name == "mine"


def test_two_of_one_name_are_not_guessed_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "otherdelay", "delay = otherdelay:Mine", GOOD)
    monkeypatch.syspath_prepend(tmp_path)
    assert "two filters have this name" in FilterRegistry().filters["delay"].error


def test_one_that_can_not_be_made_says_why() -> None:
    class Moody(Filter):
        passes = EVERY_HOOK

        def __init__(self) -> None:
            raise ValueError("not today")

    found = FilterRegistry()
    found.filters["moody"] = check("moody", "here", Moody)
    with pytest.raises(HandlerError, match="filter 'moody' can't be made: ValueError: not today"):
        found.make("moody")


@pytest.mark.parametrize("error", [ZeroDivisionError("odd"), SystemExit(3)])
def test_an_option_whose_converter_breaks_is_the_filters_error(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(text: str) -> int:
        raise error

    class Mine(Filter):
        passes = EVERY_HOOK
        options = Options(Option("n", convert))

    found = FilterRegistry()
    found.filters["mine"] = check("mine", "mine 1.0", Mine)
    monkeypatch.setattr(registry, "installed", lambda: found)
    with pytest.raises(HandlerError, match=f"filter 'mine' broke while it read its options: {type(error).__name__}"):
        make(["mine;n=5"])


def test_a_text_becomes_a_filter_with_its_options() -> None:
    (made,) = make(["offset;start=1M;length=2M"])
    assert made.name == "offset"
    assert made.given == {"start": 1 << 20, "length": 2 << 20}


WRONG = {
    "dely": (HandlerError, "no filter 'dely': did you mean 'delay'"),
    "delay;raed=5ms": (ConfigError, "filter 'delay': unknown option 'raed': did you mean 'read'"),
    "delay;read=soon": (ConfigError, "filter 'delay': option 'read': 'soon' is no time"),
    "readonly;yes": (ConfigError, "filter 'readonly': unknown option 'yes'"),
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_text_is_named(text: str) -> None:
    kind, message = WRONG[text]
    with pytest.raises(kind, match=message):
        make([text])


def test_they_are_looked_for_once() -> None:
    assert registry.installed() is registry.installed()
