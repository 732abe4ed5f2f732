"""What an image may name: an untrusted one reaches no file of the host that it was not given."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tcmu_core import ConfigError
from tcmu_core.testing import open_device
from tcmu_qcow import Handler, opening
from tcmu_qcow import layout as q
from tcmu_qcow.config import parse
from tcmu_qcow.errors import ForbiddenFile, ImageError
from tcmu_qcow.files import HostFile
from tcmu_qcow.scope import Allowed, Scope, parse_allowed

SIZE = 1 << 20
SECRET = b"secret".ljust(512, b"!") * 2048


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    directory = tmp_path / "elsewhere"
    directory.mkdir()
    path = directory / "secret.raw"
    path.write_bytes(SECRET)
    return path


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    directory = tmp_path / "uploads"
    directory.mkdir()
    return directory


class Recorder(HostFile):
    """A file that is noted when it is opened."""

    opened: list[tuple[str, bool]] = []

    @classmethod
    def open(cls, path: str, *, read_only: bool, create: bool = False) -> HostFile:
        Recorder.opened.append((path, read_only))
        return super().open(path, read_only=read_only, create=create)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    monkeypatch.setattr(Recorder, "opened", [])
    monkeypatch.setattr(opening, "HostFile", Recorder)
    return Recorder.opened


def evil(qemu: object, uploads: Path, secret: Path, kind: str) -> Path:
    """An image that names the secret in some way."""
    path = uploads / "evil.qcow2"
    name = secret
    if kind == "relative":
        name = Path("../elsewhere/secret.raw")
    elif kind == "symbolic link":
        (uploads / "link").symlink_to(secret)
        name = Path("link")
    elif kind == "linked directory":
        (uploads / "sub").symlink_to(secret.parent)
        name = Path("sub/secret.raw")
    elif kind == "two layers down":
        middle = qemu.create(uploads / "middle.qcow2", SIZE, backing=secret)
        return qemu.create(path, SIZE, backing=middle, fmt="qcow2")
    return qemu.create(path, SIZE, backing=name)


KINDS = ["absolute", "relative", "symbolic link", "linked directory", "two layers down"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_backing_file_outside_the_directory_of_the_image_is_not_even_opened(
    qemu: object, uploads: Path, secret: Path, recorded: list[tuple[str, bool]], opened_image: Callable, kind: str
) -> None:
    path = evil(qemu, uploads, secret, kind)
    with pytest.raises(ForbiddenFile, match=r"which it may not.*allow=any"), opened_image(path):
        pass
    assert all(Path(name).resolve() != secret for name, _ in recorded)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("allow", ["any", "here|{}"])
def test_what_the_administrator_allows_is_read(
    qemu: object, uploads: Path, secret: Path, kind: str, allow: str
) -> None:
    path = evil(qemu, uploads, secret, kind)
    with open_device(Handler, f"{path};allow={allow.format(secret.parent)}") as disk:
        assert disk.read(0, 512) == SECRET[:512]
    with open_device(Handler, str(path), options={"allow": allow.format(secret.parent)}) as disk:
        assert disk.read(0, 512) == SECRET[:512]
    with pytest.raises(ForbiddenFile), open_device(Handler, f"{path};allow=here", options={"allow": "any"}):
        pass


@pytest.mark.parametrize("allow", ["here", "none", "any", "elsewhere"])
def test_a_data_file_outside_is_neither_opened_nor_written(
    qemu: object,
    uploads: Path,
    secret: Path,
    recorded: list[tuple[str, bool]],
    opened_image: Callable,
    disk: type,
    allow: str,
) -> None:
    path = qemu.create(uploads / "evil.qcow2", SIZE, f"data_file={secret}")
    secret.write_bytes(SECRET)
    allowed = Allowed(here=False, directories=(str(secret.parent),)) if allow == "elsewhere" else parse_allowed(allow)
    if allow in ("any", "elsewhere"):
        with opened_image(path, allowed=allowed) as image:
            disk(image).write(0, b"w" * 512)
        assert secret.read_bytes()[:512] == b"w" * 512
        return
    with pytest.raises(ForbiddenFile), opened_image(path, allowed=allowed):
        pass
    assert str(secret) not in [name for name, _ in recorded]
    assert secret.read_bytes() == SECRET


@pytest.mark.parametrize("what", ["gone", "fifo"])
def test_a_data_file_that_can_not_be_opened_is_named_and_no_new_image_proposed(
    qemu: object, uploads: Path, what: str
) -> None:
    path = qemu.create(uploads / "image.qcow2", SIZE, f"data_file={uploads / 'data'}")
    (uploads / "data").unlink()
    if what == "fifo":
        os.mkfifo(uploads / "data")
    with (
        pytest.raises(ImageError, match=r"image\.qcow2: its data file .*/data can't be opened: "),
        open_device(Handler, str(path)),
    ):
        pass


def test_what_lies_beside_the_image_or_below_is_allowed_unless_nothing_is(
    qemu: object, uploads: Path, opened_image: Callable
) -> None:
    (uploads / "bases").mkdir()
    base = qemu.create(uploads / "bases/base.qcow2", SIZE)
    path = qemu.create(uploads / "top.qcow2", SIZE, backing=base, fmt="qcow2")
    with opened_image(path) as image:
        assert len(list(image.layers())) == 2
    with pytest.raises(ForbiddenFile), opened_image(path, allowed=parse_allowed("none")):
        pass


def test_an_image_behind_a_link_has_both_directories(
    qemu: object, uploads: Path, tmp_path: Path, opened_image: Callable
) -> None:
    qemu.create(uploads / "base.qcow2", SIZE)
    qemu.create(uploads / "top.qcow2", SIZE, backing=uploads / "base.qcow2", fmt="qcow2")
    (tmp_path / "link.qcow2").symlink_to(uploads / "top.qcow2")
    with opened_image(tmp_path / "link.qcow2") as image:
        assert len(list(image.layers())) == 2


def test_a_link_that_is_turned_while_it_is_opened_is_noticed(
    qemu: object, uploads: Path, secret: Path, opened_image: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = uploads / "link"
    (uploads / "harmless").write_bytes(SECRET)
    link.symlink_to("harmless")
    path = qemu.create(uploads / "evil.qcow2", SIZE, backing=Path("link"))

    class Turning(HostFile):
        @classmethod
        def open(cls, path: str, *, read_only: bool, create: bool = False) -> HostFile:
            if path == str(link):
                link.unlink()
                link.symlink_to(secret)
            return super().open(path, read_only=read_only, create=create)

    monkeypatch.setattr(opening, "HostFile", Turning)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ForbiddenFile), opened_image(path):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_directory_whose_name_begins_alike_is_another_one(tmp_path: Path) -> None:
    scope = Scope(str(tmp_path / "images/top"), Allowed())
    scope.check(str(tmp_path / "images/base"), "top")
    with pytest.raises(ForbiddenFile):
        scope.check(str(tmp_path / "images-of-others/base"), "top")


def test_the_backing_file_of_a_new_image_is_allowed_by_the_cfgstring_that_names_it(
    qemu: object, uploads: Path, secret: Path
) -> None:
    cfgstring = f"{uploads}/new.qcow2;create=1;backing={secret};backing_format=raw"
    for _ in range(2):  # made, and opened again
        with open_device(Handler, cfgstring) as disk:
            assert disk.read(0, 512) == SECRET[:512]
    with pytest.raises(ForbiddenFile), open_device(Handler, f"{uploads}/new.qcow2"):
        pass


@pytest.mark.parametrize("text", ["", "below", "here|bases", "any|here", "relative/path"])
def test_what_may_be_named_is_spelt_as_it_should_be(text: str) -> None:
    with pytest.raises(ConfigError, match=r"neither any, none, here|allow"):
        parse(f"/image;allow={text}")


# -- backing files whose format nobody says ----------------------------------------------------------------------------


def forget_format(path: Path, name: str) -> None:
    """Turn the extension that has the backing file's format into one that nobody knows."""
    data = path.read_bytes()
    at = data.index(q.EXTENSION.pack(q.Extension.BACKING_FORMAT, len(name)) + name.encode())
    path.write_bytes(data[:at] + b"none" + data[at + 4 :])


def test_a_backing_file_without_a_format_that_looks_raw_is_refused_with_the_cure(
    qemu: object, tmp_path: Path, opened_image: Callable, disk: type
) -> None:
    base = tmp_path / "base"
    base.write_bytes(SECRET)
    path = qemu.create(tmp_path / "top.qcow2", SIZE, backing=base)
    forget_format(path, "raw")
    with pytest.raises(ImageError, match=r"does not say .*qemu-img rebase -u -F raw.*backing_format=raw"):
        opening.open_image(str(path))
    with open_device(Handler, f"{path};backing_format=raw") as told:
        assert told.read(0, 512) == SECRET[:512]
    qemu.img("rebase", "-u", "-F", "raw", "-b", base, path)
    with opened_image(path) as image:
        assert disk(image).read(0, 512) == SECRET[:512]


def test_a_backing_file_without_a_format_that_is_an_image_is_read(
    qemu: object, tmp_path: Path, opened_image: Callable
) -> None:
    base = qemu.create(tmp_path / "base.qcow2", SIZE)
    path = qemu.create(tmp_path / "top.qcow2", SIZE, backing=base, fmt="qcow2")
    forget_format(path, "qcow2")
    with opened_image(path) as image:
        assert len(list(image.layers())) == 2
