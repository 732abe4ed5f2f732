import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tcmu_core import ConfigError, HandlerError
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.handlers.registry import Registry
from tcmu_core.testing import check_handler, open_device

ROOT = Path(__file__).parents[2]

TWENTY_LINES = '''
"""A disk in a bytearray."""
from tcmu_core import hookimpl


class Handler:
    """Nothing is needed."""

    @hookimpl
    def open(self, device):
        device.size = device.size or 1 << 20
        self.data = bytearray(device.size)

    @hookimpl
    def read(self, offset, buffers):
        for buffer in buffers:
            buffer[:] = self.data[offset : offset + len(buffer)]
            offset += len(buffer)

    @hookimpl
    def write(self, offset, buffers):
        for buffer in buffers:
            self.data[offset : offset + len(buffer)] = buffer
            offset += len(buffer)
'''

A_MODULE = """
from tcmu_core import hookimpl

@hookimpl
def open(device):
    device.size = 1 << 20
    device.state = bytearray(1 << 20)

@hookimpl
def read(device, offset, buffers):
    for buffer in buffers:
        buffer[:] = device.state[offset : offset + len(buffer)]
        offset += len(buffer)
"""


def drop_in(directory: Path, name: str, source: str) -> None:
    (directory / f"handler_{name}.py").write_text(source)


# -- what is found --------------------------------------------------------------------------------------------------


def test_a_drop_in_file_of_twenty_lines_is_a_handler(tmp_path):
    drop_in(tmp_path, "array", TWENTY_LINES)
    handler = Registry([tmp_path]).get("array")
    assert handler.source == str(tmp_path / "handler_array.py")
    assert handler.config_desc == "Nothing is needed."
    assert handler.capabilities == ("write",)
    check_handler(lambda: open_device(handler.factory, size=1 << 20), examples=5)


def test_a_drop_in_file_may_be_a_module_of_hooks_whose_state_is_the_devices(tmp_path):
    drop_in(tmp_path, "plain", A_MODULE)
    handler = Registry([tmp_path]).get("plain")
    one, two = (handler.open(DiskSpec("plain", name=name)) for name in ("one", "two"))
    one.device.state[0] = 1
    room = memoryview(bytearray(512))
    two.operations.read(0, [room])
    assert room[0] == 0
    assert one.device.read_only


def test_a_class_gives_each_device_an_instance_of_its_own(tmp_path):
    drop_in(tmp_path, "array", TWENTY_LINES)
    handler = Registry([tmp_path]).get("array")
    one, two = (handler.open(DiskSpec("array", name=name)) for name in ("one", "two"))
    one.operations.write(0, [memoryview(b"1" * 512)])
    room = memoryview(bytearray(512))
    two.operations.read(0, [room])
    assert room == bytes(512)


def test_what_pip_installs_into_a_directory_is_found_there(tmp_path):
    target = tmp_path / "target"
    source = tmp_path / "source"
    subprocess.run(["cp", "-rL", str(ROOT / "plugins/tcmu-ram"), str(source)], check=True)
    (source / "pyproject.toml").write_text(
        (source / "pyproject.toml")
        .read_text()
        .replace('\nram = "tcmu_ram:', '\nfresh = "tcmu_test_fresh:')
        .replace('"tcmu-ram"', '"tcmu-fresh"')
        .replace("tcmu_ram", "tcmu_test_fresh")
    )
    (source / "tcmu_ram").rename(source / "tcmu_test_fresh")
    for file in (source / "tcmu_test_fresh").glob("*.py"):
        file.write_text(file.read_text().replace("tcmu_ram", "tcmu_test_fresh"))
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--no-index",
            "--disable-pip-version-check",
            "--root-user-action=ignore",
            "--target",
            str(target),
            str(source),
        ],
        check=True,
    )
    handler = Registry([target]).get("fresh")
    assert handler.source == "tcmu-fresh 0.1.0"
    assert {"write", "discard", "extents", "reconfigure"} <= set(handler.capabilities)
    with open_device(handler.factory, size=1 << 20) as disk:
        disk.write(0, b"p" * 512)
        assert disk.read(0, 1024) == b"p" * 512 + bytes(512)


def test_an_entry_point_may_name_a_module(tmp_path, install):
    install("tcmu-plain", {"plain": "tcmu_test_plain"}, "2.5", tcmu_test_plain=A_MODULE)
    handler = Registry([tmp_path]).get("plain")
    assert (handler.source, handler.version) == ("tcmu-plain 2.5", "2.5")


def test_several_handler_paths_add_up(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        drop_in(tmp_path / name, name, TWENTY_LINES)
    registry = Registry([tmp_path / "one", tmp_path / "two"])
    assert {"one", "two"} <= {handler.name for handler in registry if not handler.error}


def test_a_path_that_is_given_twice_makes_no_duplicates(tmp_path, install):
    drop_in(tmp_path, "array", TWENTY_LINES)
    install("tcmu-plain", {"plain": "tcmu_test_plain"}, tcmu_test_plain=A_MODULE)
    registry = Registry([tmp_path, f"{tmp_path}/.", tmp_path])
    assert not registry.get("array").error
    assert not registry.get("plain").error


def test_handlers_are_listed_by_name(tmp_path):
    for name in ("zeta", "alpha"):
        drop_in(tmp_path, name, TWENTY_LINES)
    names = [handler.name for handler in Registry([tmp_path])]
    assert names == sorted(names)


# -- what is broken, and what a person is told ----------------------------------------------------------------------

HOOKS = "from tcmu_core import hookimpl\nclass Handler:\n"
OPEN = "    @hookimpl\n    def open(self, device): device.size = 1 << 20\n"
READ = "    @hookimpl\n    def read(self, offset, buffers): pass\n"

BROKEN_SOURCES = {
    "import error": ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
    "syntax error": ("def open(:", "SyntaxError"),
    "error at import": ("1 / 0", "ZeroDivisionError: division by zero (handler_bad.py:1)"),
    "exit at import": ("raise SystemExit(3)", "SystemExit: 3"),
    "no hooks": ("x = 1", "has no open and no read hook: mark its functions with @tcmu_core.hookimpl"),
    "no read": (HOOKS + OPEN, "has no read hook"),
    "misspelt hook": (
        HOOKS + OPEN + READ + "    @hookimpl\n    def flsh(self): pass\n",
        "there is no hook 'flsh': did you mean 'flush'?",
    ),
    "wrong argument": (
        HOOKS + OPEN + "    @hookimpl\n    def read(self, offset, buffer): pass\n",
        "{'buffer'} are declared in the hookimpl but can not be found in the hookspec",
    ),
    "two classes": (
        HOOKS + OPEN + READ + "class Other:\n" + OPEN + READ,
        "more than one class has hooks: Handler, Other; keep one in the file",
    ),
    "constructor with arguments": (
        HOOKS + "    def __init__(self, device): pass\n" + OPEN + READ,
        "it can't be made: TypeError",
    ),
    "constructor that fails": (
        HOOKS + "    def __init__(self): raise OSError('no library')\n" + OPEN + READ,
        "it can't be made: OSError: no library (handler_bad.py:3)",
    ),
}


@pytest.mark.parametrize("what", BROKEN_SOURCES)
def test_a_broken_drop_in_file_disables_itself_alone(tmp_path, what):
    source, reason = BROKEN_SOURCES[what]
    drop_in(tmp_path, "bad", source)
    drop_in(tmp_path, "good", TWENTY_LINES)
    registry = Registry([tmp_path])
    assert reason in registry.handlers["bad"].error
    assert "\n" not in registry.handlers["bad"].error, "the reason is one line"
    with pytest.raises(HandlerError, match=re.escape(f"handler 'bad' of {tmp_path}/handler_bad.py is broken")):
        registry.get("bad")
    assert registry.get("good").factory is not None


def test_one_class_by_two_names_is_one(tmp_path):
    drop_in(tmp_path, "good", HOOKS + OPEN + READ + "\nhandler = Handler\n")
    assert Registry([tmp_path]).get("good").factory is not None


BROKEN_ENTRY_POINTS = {
    "import error": ("tcmu_test_bad:Handler", "import no_such_library", "can't be imported: ModuleNotFoundError"),
    "syntax error": ("tcmu_test_bad:Handler", "class Handler(", "can't be imported: SyntaxError"),
    "no such module": ("tcmu_test_absent:Handler", "", "tcmu_test_absent:Handler can't be imported"),
    "no such class": ("tcmu_test_bad:Handler", "x = 1", "has no attribute 'Handler'"),
    "a function": ("tcmu_test_bad:make", "def make(): pass", "it must be a class or a module"),
    "an instance": ("tcmu_test_bad:it", "it = object()", "it must be a class or a module"),
    "misspelt hook": (
        "tcmu_test_bad:Handler",
        HOOKS + OPEN + READ + "    @hookimpl\n    def raed(self): pass\n",
        "there is no hook 'raed': did you mean 'read'?",
    ),
    "malformed": ("tcmu_test_bad:", "x = 1", "can't be imported"),
}


@pytest.mark.parametrize("what", BROKEN_ENTRY_POINTS)
def test_a_broken_distribution_disables_itself_alone(tmp_path, install, what):
    value, source, reason = BROKEN_ENTRY_POINTS[what]
    install("tcmu-bad", {"bad": value}, "3.1", tcmu_test_bad=source)
    install("tcmu-good", {"good": "tcmu_test_good:Handler"}, tcmu_test_good=TWENTY_LINES)
    registry = Registry([tmp_path])
    assert reason in registry.handlers["bad"].error
    assert registry.handlers["bad"].source == "tcmu-bad 3.1"
    assert registry.get("good").factory is not None


def test_a_name_that_no_cfgstring_could_hold_is_refused(tmp_path, install):
    install("tcmu-odd", {"o/dd": "tcmu_test_odd:Handler"}, tcmu_test_odd=TWENTY_LINES)
    assert "may hold letters, digits, - and _ only" in Registry([tmp_path]).handlers["o/dd"].error


def test_two_distributions_with_one_name_disable_each_other_and_are_both_named(tmp_path, install):
    install("tcmu-one", {"same": "tcmu_test_one:Handler"}, tcmu_test_one=TWENTY_LINES)
    install("tcmu-two", {"same": "tcmu_test_two:Handler"}, tcmu_test_two=TWENTY_LINES)
    drop_in(tmp_path, "other", TWENTY_LINES)
    registry = Registry([tmp_path])
    error = registry.handlers["same"].error
    assert "tcmu-one 1.0" in error
    assert "tcmu-two 1.0" in error
    assert "two handlers have this name" in error
    assert not registry.get("other").error


def test_a_drop_in_file_and_a_distribution_with_one_name_disable_each_other_too(tmp_path, install):
    install("tcmu-one", {"same": "tcmu_test_one:Handler"}, tcmu_test_one=TWENTY_LINES)
    drop_in(tmp_path, "same", TWENTY_LINES)
    error = Registry([tmp_path]).handlers["same"].error
    assert "tcmu-one 1.0" in error
    assert "handler_same.py" in error


def test_three_with_one_name_are_all_named(tmp_path, install):
    for name in ("one", "two", "three"):
        install(f"tcmu-{name}", {"same": f"tcmu_test_{name}:Handler"}, **{f"tcmu_test_{name}": TWENTY_LINES})
    error = Registry([tmp_path]).handlers["same"].error
    assert all(f"tcmu-{name} 1.0" in error for name in ("one", "two", "three"))
    assert error.count("two handlers have this name") == 1


def test_a_missing_handler_path_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ConfigError, match="no directory"):
        Registry([tmp_path / "missing"])


def test_one_distribution_in_two_places_is_named_with_its_versions_and_directories(tmp_path, install):
    install("tcmu-same", {"same": "tcmu_test_same:Handler"}, "1.0", tcmu_test_same=TWENTY_LINES)
    other = tmp_path / "other"
    other.mkdir()
    for path in tmp_path.glob("*.dist-info"):
        shutil.copytree(path, other / "tcmu_same-2.0.dist-info")
    metadata = other / "tcmu_same-2.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 2.0"))
    error = Registry([tmp_path, other]).handlers["same"].error
    assert f"tcmu-same 1.0 in {tmp_path} and tcmu-same 2.0 in {other}" in error


def test_an_unknown_handler_brings_the_nearest_name_and_nobody_elses_package(tmp_path):
    drop_in(tmp_path, "array", TWENTY_LINES)
    with pytest.raises(HandlerError, match="did you mean 'array'") as told:
        Registry([tmp_path]).get("aray")
    assert "pip install" not in str(told.value)


def test_one_of_ours_that_is_not_installed_brings_the_command_that_helps():
    registry = Registry()
    registry.handlers.pop("ram", None)
    with pytest.raises(HandlerError, match="`pip install tcmu-ram` brings it"):
        registry.get("ram")
    with pytest.raises(HandlerError, match="did you mean 'ram'") as told:
        registry.get("rm")
    assert "pip install" not in str(told.value)


def test_what_open_lacks_in_a_handler_of_twenty_lines_is_said(tmp_path):
    drop_in(tmp_path, "array", TWENTY_LINES.replace("device.size = device.size or 1 << 20", "pass"))
    with pytest.raises(ConfigError, match="no size: give one"):
        Registry([tmp_path]).get("array").open(DiskSpec("array"))


def test_a_reason_is_one_line_even_if_the_exception_has_several_or_can_not_be_printed(tmp_path):
    drop_in(tmp_path, "lines", "raise ValueError('one\\ntwo')")
    drop_in(tmp_path, "mute", "class E(Exception):\n    def __str__(self): 1 / 0\nraise E")
    handlers = Registry([tmp_path]).handlers
    assert handlers["lines"].error.startswith("ValueError: one two (handler_lines.py:1)")
    assert handlers["mute"].error.startswith("E (which can't be printed)")


# -- classes that break when they are looked at -----------------------------------------------------------------------

LEAVES = TWENTY_LINES.replace(
    "    @hookimpl\n    def open", "    def __init__(self):\n        raise SystemExit(3)\n\n    @hookimpl\n    def open"
)
LEAVES_WHEN_LOOKED_AT = """
import tcmu_core

class Meta(type):
    def __getattribute__(cls, name):
        if name == "config_desc":
            raise SystemExit(3)
        return super().__getattribute__(name)

class Handler(metaclass=Meta):
    @tcmu_core.hookimpl
    def open(self): ...

    @tcmu_core.hookimpl
    def read(self): ...
"""
HIDES_ITS_MODULE = """
class Meta(type):
    @property
    def __module__(cls):
        raise SystemExit(3)

class Handler(metaclass=Meta):
    pass
"""


@pytest.mark.parametrize("source", [LEAVES, LEAVES_WHEN_LOOKED_AT, HIDES_ITS_MODULE])
def test_a_class_that_ends_the_process_disables_itself_alone(tmp_path, source):
    drop_in(tmp_path, "leaves", source)
    drop_in(tmp_path, "array", TWENTY_LINES)
    registry = Registry([tmp_path])
    with pytest.raises(HandlerError, match=r"'leaves' .* is broken: .*SystemExit: 3"):
        registry.get("leaves")
    registry.get("array")


def test_a_class_that_ends_the_process_for_one_disk_fails_that_one(tmp_path):
    once = "import sys\n" + TWENTY_LINES.replace(
        "    @hookimpl\n    def open",
        "    made = []\n\n    def __init__(self):\n        if self.made:\n            sys.exit(3)\n"
        "        self.made.append(1)\n\n    @hookimpl\n    def open",
    )
    drop_in(tmp_path, "once", once)
    handler = Registry([tmp_path]).get("once")
    with pytest.raises(HandlerError, match="can't be made: SystemExit: 3"):
        handler.open(DiskSpec("once"))
    with pytest.raises(HandlerError, match="can't be made: SystemExit: 3"):
        handler.check_config("")


def test_a_drop_in_that_is_a_pipe_disables_itself_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "handler_pipe.py")
    drop_in(tmp_path, "twenty", TWENTY_LINES)
    found = Registry([tmp_path])
    assert found.handlers["pipe"].error == "it is no regular file"
    assert not found.handlers["twenty"].error


def test_an_option_whose_converter_breaks_is_the_handlers_error(tmp_path: Path) -> None:
    own = """
import sys
from tcmu_core import Option, Options

def leave(text):
    sys.exit(3)

Handler.options = Options(Option("odd", leave))
"""
    drop_in(tmp_path, "odd", TWENTY_LINES + own)
    handler = Registry([tmp_path]).get("odd")
    for call in (lambda: handler.check_config(";odd=1"), lambda: handler.open(DiskSpec("odd", ";odd=1"))):
        with pytest.raises(HandlerError, match="broke while it read its options: SystemExit: 3"):
            call()
