import errno
import os
import re
import stat

import pytest

from tcmu_core import ConfigError, Device
from tcmu_core.testing import check_handler, open_device
from tcmu_ram import RamHandler, image
from tcmu_ram.memory import CHUNK, Memory

MIB = 1 << 20


def opened(cfgstring="", size=None, **attributes):
    return open_device(RamHandler, str(cfgstring), size=size, **attributes)


@pytest.mark.parametrize("size", [4 * MIB, 4 * MIB + 512, 64 * 512])
def test_it_keeps_the_promises_of_a_handler(size):
    check_handler(lambda: opened(size=size))


def test_with_an_image_it_keeps_them_beyond_its_life(tmp_path):
    claims = ["not crash-safe"]  # the image is saved when the device is closed
    check_handler(lambda: opened(tmp_path / "image", 4 * MIB), persistent=True, examples=5, claims=claims)


def test_nothing_ever_waits():
    with opened(size=4 * MIB) as disk:
        room = [memoryview(bytearray(4096))]
        backend = disk.operations
        answers = [backend.read(0, room), backend.write(0, room), backend.flush(), backend.discard(0, MIB)]
        assert answers == [None] * 4


# -- memory ---------------------------------------------------------------------------------------------------------


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_is_taken_by_what_was_written_and_given_back_by_discard():
    with opened(size=1 << 40) as disk:
        empty = resident()
        disk.write(1 << 39, b"x" * 64 * MIB)
        full = resident()
        disk.discard(1 << 39, 64 * MIB)
        assert full - empty > 60 * MIB
        assert full - resident() > 60 * MIB
        assert disk.read((1 << 39) + 4096, 4096) == bytes(4096)


def test_reading_takes_no_place_among_the_extents():
    with opened(size=MIB) as disk:
        disk.read(0, MIB)
        assert [tuple(extent) for extent in disk.extents(0, MIB)] == [(0, MIB, False)]
        disk.write(CHUNK, b"x" * 512)
        assert [tuple(extent) for extent in disk.extents(0, MIB)] == [
            (0, CHUNK, False),
            (CHUNK, CHUNK, True),
            (2 * CHUNK, MIB - 2 * CHUNK, False),
        ]


def test_clearing_to_the_end_frees_a_last_chunk_that_is_not_whole():
    memory = Memory(CHUNK + 512)
    memory.view[CHUNK : CHUNK + 512] = b"x" * 512
    memory.touched(CHUNK, CHUNK + 512)
    memory.clear(CHUNK, CHUNK + 512)
    assert list(memory.runs(0, CHUNK + 512)) == [(0, CHUNK + 512, False)]
    memory.close()


def test_shrinking_drops_data_and_growing_brings_zeros():
    with opened(size=MIB) as disk:
        disk.write(0, b"a" * MIB)
        disk.reconfigure(size=100 * 512)
        assert disk.read(99 * 512, 512) == b"a" * 512
        disk.reconfigure(size=2 * MIB)
        assert disk.size == 2 * MIB
        assert disk.read(0, 2 * MIB) == b"a" * 51200 + bytes(2 * MIB - 51200)
        disk.write(2 * MIB - 512, b"z" * 512)


# -- images ---------------------------------------------------------------------------------------------------------


def test_an_image_is_loaded_once_and_left_alone(tmp_path):
    image = tmp_path / "image"
    image.write_bytes(b"i" * 5000)
    with opened(f";load={image}") as disk:
        assert disk.size == 5120
        assert disk.read(4096, 1024) == b"i" * 904 + bytes(120)
        disk.write(0, b"w" * 512)
    assert image.read_bytes() == b"i" * 5000


def test_an_image_is_saved_sparse_when_the_device_closes(tmp_path):
    image = tmp_path / "image"
    with opened(f";save={image};size=64M") as disk:
        disk.write(32 * MIB, b"s" * 4096)
        assert not image.exists()
    info = image.stat()
    assert info.st_size == 64 * MIB
    assert info.st_blocks * 512 <= CHUNK
    with opened(f";load={image}") as disk:
        assert disk.read(32 * MIB, 4096) == b"s" * 4096
        assert sum(extent.length for extent in disk.extents(0, 64 * MIB) if extent.mapped) == CHUNK


def test_saving_replaces_the_image_and_keeps_its_mode(tmp_path):
    image = tmp_path / "image"
    image.write_bytes(b"old" * 512)
    image.chmod(0o640)
    with open(image, "rb") as reader, opened(image, size=MIB) as disk:
        disk.write(0, b"new!" * 128)
        disk.disk.close()
        assert reader.read().rstrip(b"\0") == b"old" * 512, "the old image was overwritten in place"
    assert image.read_bytes()[:512] == b"new!" * 128
    assert stat.S_IMODE(image.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["image"]


def use_and_close(target):
    with opened(f";save={target}", MIB) as disk:
        disk.write(MIB - 512, b"k" * 512)


def test_an_image_that_cannot_be_saved_where_it_should_be_is_kept_elsewhere_and_the_error_says_where(
    tmp_path, monkeypatch, caplog
):
    target, elsewhere = tmp_path / "directory", tmp_path / "elsewhere"
    target.mkdir()
    elsewhere.mkdir()
    monkeypatch.setattr("tcmu_ram.image.ELSEWHERE", (str(elsewhere),))
    with pytest.raises(OSError, match="could not be saved") as caught:
        use_and_close(target)
    (kept,) = elsewhere.iterdir()
    assert caught.value.errno == errno.EISDIR
    assert str(caught.value).endswith(
        f"{target} could not be saved (Is a directory): what the disk held was saved as {kept} instead"
    )
    assert str(kept) in caplog.text
    assert kept.read_bytes() == bytes(MIB - 512) + b"k" * 512
    assert sorted(os.listdir(tmp_path)) == ["directory", "elsewhere"]


def test_an_image_that_cannot_be_saved_anywhere_leaves_no_trace_and_the_error_says_that_it_is_gone(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("tcmu_ram.image.ELSEWHERE", (str(tmp_path / "missing"), str(tmp_path / "full")))
    (tmp_path / "full").mkdir()

    def no_space(fd, offset, buffers):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tcmu_core.posix.write_full", no_space)
    gone = f"{tmp_path}/image could not be saved (No space left on device): what the disk held is gone"
    with pytest.raises(OSError, match=re.escape(gone)):
        use_and_close(tmp_path / "image")
    assert gone in caplog.text
    assert [entry for _, _, files in os.walk(tmp_path) for entry in files] == []


def test_an_image_shorter_than_the_device_has_its_size_when_it_is_open(tmp_path):
    image = tmp_path / "image"
    image.write_bytes(b"")
    with opened(image, MIB):
        assert image.stat().st_size == MIB


def test_a_read_only_device_saves_nothing(tmp_path):
    with opened(tmp_path / "image", MIB, read_only=True):
        pass
    assert os.listdir(tmp_path) == []


# -- what a person gets for a mistake -------------------------------------------------------------------------------

BAD_CFGSTRINGS = {
    ";sise=1M": "unknown option 'sise': did you mean 'size'",
    ";size=many": "option 'size': 'many' is no size",
    "/image;save=/other": "is loaded and saved already",
}
BAD_DEVICES = {
    "": "no size: add size=64M",
    ";load={0}/missing": "missing does not exist",
    ";load={0}": "is no file",
    "{0}/no/image;size=1M": "its directory does not exist",
    ";save={0}/no/image;size=1M": "its directory does not exist",
    ";load={0}/large;size=1K": "has 4096 bytes, more than the device's 1024",
    ";size=7E": "there is no memory for",
}


@pytest.mark.parametrize(("cfgstring", "message"), BAD_CFGSTRINGS.items())
def test_a_bad_cfgstring_is_refused_with_a_reason(cfgstring, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        RamHandler().check_config(cfgstring)


@pytest.mark.parametrize(("cfgstring", "message"), BAD_DEVICES.items())
def test_what_cannot_be_opened_is_refused_with_a_reason(tmp_path, cfgstring, message):
    (tmp_path / "large").write_bytes(b"l" * 4096)
    with pytest.raises(ConfigError, match=re.escape(message)), opened(cfgstring.format(tmp_path)):
        pass


def test_a_size_that_is_not_whole_blocks_is_refused_and_leaves_no_image(tmp_path):
    for cfgstring in (";size=1000", f"{tmp_path}/image;size=100"):
        with pytest.raises(ConfigError, match="not whole blocks of 512"), open_device(RamHandler, cfgstring):
            pass
    assert not list(tmp_path.iterdir())


def test_what_is_no_file_is_not_replaced_by_an_image(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr("tcmu_ram.image.ELSEWHERE", (str(tmp_path / "elsewhere"),))
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with (
        pytest.raises(ConfigError, match="no regular file, and would be replaced"),
        open_device(RamHandler, f";save={path}", size=4096),
    ):
        pass
    path.unlink()
    with (
        pytest.raises(OSError, match=r"could not be saved \(it is no regular file\): what the disk held"),
        open_device(RamHandler, f";save={path}", size=4096),
    ):
        os.mkfifo(path)
    assert path.is_fifo()


def test_two_sizes_that_differ_are_refused():
    with pytest.raises(ConfigError, match="leave that out"), opened(";size=1M", 2 * MIB):
        pass


def test_options_of_tcmu_conf_are_defaults():
    with opened(options={"size": "1M"}) as disk:
        assert disk.size == MIB


def test_an_image_that_can_not_be_looked_at_is_refused(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    with (
        pytest.raises(ConfigError, match="Too many levels of symbolic links"),
        open_device(RamHandler, str(loop), size=1 << 20),
    ):
        pass


def test_an_image_with_a_name_as_long_as_names_can_be_is_saved_in_its_place(tmp_path):
    image = tmp_path / ("i" * 255)
    with open_device(RamHandler, str(image), size=1 << 20):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [image.name]


# -- progress -------------------------------------------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch):
    """What is told of the progress in pieces of 1 MiB; where `told.stop` is told, Ctrl-C is pressed."""

    class Told(list):
        stop = None

    told = Told()

    def progress(device, done, total, what=""):
        told.append((what, done, total))
        if told[-1] == told.stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(image, "PIECE", MIB)
    monkeypatch.setattr(Device, "progress", progress)
    return told


def test_loading_and_saving_tell_how_far_they_are(told, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(b"x" * 3 * MIB)
    with opened(path, 8 * MIB) as disk:
        assert told[:3] == [("loading the image", done * MIB, 3 * MIB) for done in range(3)]
        assert disk.read(0, 3 * MIB) == b"x" * 3 * MIB
        disk.write(6 * MIB, b"y" * (MIB + 512))
        del told[:]
    saved = (3 + 1) * MIB + CHUNK  # a chunk is saved whole
    assert told[:5] == [("saving the image", done * MIB, saved) for done in range(5)]
    assert path.read_bytes() == b"x" * 3 * MIB + bytes(3 * MIB) + b"y" * (MIB + 512) + bytes(MIB - 512)


@pytest.mark.parametrize("done", [0, 2])
@pytest.mark.parametrize("what", ["loading the image", "saving the image"])
def test_an_interrupted_load_or_save_leaves_the_image_as_it_was(told, tmp_path, what, done):
    path = tmp_path / "image"
    path.write_bytes(b"x" * 3 * MIB)
    told.stop = (what, done * MIB, 3 * MIB)
    with pytest.raises(Exception, match="KeyboardInterrupt"), opened(path, 3 * MIB) as disk:
        disk.write(0, b"new" * 512)
    assert path.read_bytes() == b"x" * 3 * MIB
    assert os.listdir(tmp_path) == ["image"]
