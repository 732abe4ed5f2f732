"""The pure parts, as tables: numbers in and out, descriptors, headers, cfgstrings, pieces of buffers."""

from __future__ import annotations

import random
from array import array
from pathlib import Path

import pytest

from tcmu_core import ConfigError
from tcmu_qcow import layout as q
from tcmu_qcow.compression import locate, locate_v1
from tcmu_qcow.config import parse
from tcmu_qcow.create import Preallocation
from tcmu_qcow.files import HostFile
from tcmu_qcow.formats import Format
from tcmu_qcow.header import Header, encode_header, parse_header
from tcmu_qcow.opening import resolve
from tcmu_qcow.tables import TYPECODES, Table, TableCache, any_bits, decode, encode

# Host cluster management: "bit 0 means the least significant bit"
NUMBERS = [
    (1, "81", [1, 0, 0, 0, 0, 0, 0, 1]),
    (1, "0280", [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
    (2, "e4", [0, 1, 2, 3]),
    (4, "21f0", [1, 2, 0, 15]),
    (8, "00ff", [0, 255]),
    (16, "0001ff00", [1, 0xFF00]),
    (32, "0000000180000000", [1, 1 << 31]),
    (64, "8000000000010000", [1 << 63 | 0x10000]),
]


@pytest.mark.parametrize(("bits", "raw", "numbers"), NUMBERS)
def test_numbers_are_decoded_and_encoded(bits: int, raw: str, numbers: list[int]) -> None:
    assert list(decode(bytes.fromhex(raw), bits)) == numbers
    assert encode(array(TYPECODES[bits], numbers), bits).hex() == raw


@pytest.mark.parametrize("bits", TYPECODES)
def test_encoding_is_the_inverse_of_decoding(bits: int) -> None:
    raw = random.Random(bits).randbytes(4096)
    assert encode(decode(raw, bits), bits) == raw


# Compressed Clusters Descriptor
@pytest.mark.parametrize(
    ("descriptor", "cluster_bits", "offset", "length"),
    [
        (q.COMPRESSED | 0x50000, 16, 0x50000, 512),
        (q.COMPRESSED | 0x50010, 16, 0x50010, 496),
        (q.COMPRESSED | 5 << 54 | 0x50010, 16, 0x50010, 6 * 512 - 16),
        (q.COMPRESSED | 0xFF << 54 | 0x50010, 16, 0x50010, 256 * 512 - 16),
        (q.COMPRESSED | 1 << 61 | 0x401, 9, 0x401, 1023),
        (q.COMPRESSED | 0x1FFF << 49 | 0x600000, 21, 0x600000, 4 << 20),
    ],
)
def test_a_compressed_cluster_is_located(descriptor: int, cluster_bits: int, offset: int, length: int) -> None:
    assert locate(descriptor, cluster_bits) == (offset, length)


def test_a_compressed_cluster_of_version_1_is_located() -> None:
    assert locate_v1(q.V1_COMPRESSED | 1234 << 51 | 0x5432, 12) == (0x5432, 1234)


@pytest.mark.parametrize("version", [2, 3])
def test_a_header_is_read_as_it_was_written(tmp_path: Path, version: int) -> None:
    header = Header(version, 16, 5 << 30, 10, 0x30000, 0x10000, 1, backing_name="base", backing_format="raw")
    if version == 3:
        header.refcount_order = 6
        header.compatible_features = int(q.Compatible.LAZY_REFCOUNTS)
        header.incompatible_features = int(q.Incompatible.EXTENDED_L2 | q.Incompatible.DIRTY)
        header.feature_names = dict(q.FEATURE_NAMES)
        header.l1_size = 20
    path = tmp_path / "header"
    path.write_bytes(encode_header(header).ljust(0x40000, b"\0"))
    file = HostFile.open(str(path), read_only=True)
    assert parse_header(file) == header
    file.close()


@pytest.mark.parametrize(
    ("name", "overlay", "path"),
    [
        ("base", "/a/top", "/a/base"),
        ("../base", "/a/top", "/a/../base"),
        ("/b/base", "/a/top", "/b/base"),
        ("base", "top", "base"),
        ("file:base", "/a/top", "/a/base"),
        ("file:///b/base", "/a/top", "/b/base"),
        ("./with:colon", "/a/top", "/a/./with:colon"),
    ],
)
def test_names_of_other_files_are_resolved(name: str, overlay: str, path: str) -> None:
    assert resolve(name, overlay) == path


def test_bits_are_found_in_any_entry_of_a_table() -> None:
    for at in range(5):
        table = array("Q", [at == number and 0x8000_0000_0000_0200 for number in range(5)])
        assert any_bits(table, 0x200)
        assert any_bits(table, 1 << 63)
        assert not any_bits(table, ~0x8000_0000_0000_0200 & (1 << 64) - 1)
    assert not any_bits(array("Q"), 1)


def test_a_table_writes_back_only_what_changed(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_bytes(bytes([0xEE]) * (64 << 10))
    file = HostFile.open(str(path), read_only=False)
    pending: set[Table] = set()
    table = Table(0, decode(bytes(64 << 10), 64), 64, pending)
    table.entries[0] = table.entries[1024] = table.entries[1535] = 1
    for index in (0, 1024, 1535):
        table.touch(index)
    assert pending == {table}
    table.write_back(file)
    file.close()
    assert not pending
    written = path.read_bytes()
    changed = [at for at in range(0, 64 << 10, 4096) if written[at + 100] != 0xEE]
    assert changed == [0, 8192]
    assert written[7] == written[8199] == written[1535 * 8 + 7] == 1


def test_a_cache_lets_go_of_what_was_not_used(tmp_path: Path) -> None:
    cache = TableCache(3)
    for index in range(3):
        cache[index] = Table(index, array("Q"), 64, cache.pending)
    assert cache.victim() == 0  # all were used: the round ends where it began
    cache[1].used = True
    cache.pop(0)
    cache[3] = Table(3, array("Q"), 64, cache.pending)
    assert cache.victim() == 2


CFGSTRINGS = [
    ("/a/b", {}, {}),
    ("disk.qcow2;format=raw", {"format": Format.RAW}, None),
    ("d;ro=1;snapshot=monday;l2_cache=1M", {"read_only": True, "snapshot": "monday", "cache_bytes": 1 << 20}, None),
    ("d;create=1;size=1G", {"format": Format.QCOW2}, {"size": 1 << 30}),
    (
        "d;create=1;size=1G;cluster_size=4K;compat=0.10;preallocation=full;backing=b;backing_format=raw",
        {},
        {
            "cluster_size": 4096,
            "version": 2,
            "preallocation": Preallocation.FULL,
            "backing": "b",
            "backing_format": Format.RAW,
        },
    ),
    (
        "d;create=1;size=1G;extended_l2=1;lazy_refcounts=on;refcount_bits=64",
        {},
        {"extended_l2": True, "lazy_refcounts": True, "refcount_bits": 64},
    ),
]


@pytest.mark.parametrize(("cfgstring", "opening", "creation"), CFGSTRINGS)
def test_a_cfgstring_is_understood(cfgstring: str, opening: dict, creation: dict | None) -> None:
    config = parse(cfgstring)
    assert {name: getattr(config.opening, name) for name in opening} == opening
    assert (config.creation is not None) == ("create" in cfgstring)
    assert {name: getattr(config.creation, name) for name in creation or ()} == (creation or {})


@pytest.mark.parametrize(
    ("cfgstring", "says"),
    [
        ("", "no path"),
        (";ro=1", "no path"),
        ("d;fromat=raw", "did you mean 'format'"),
        ("d;format=vmdk", "none of raw, qcow, qcow2"),
        ("d;cluster_size=4K", "needs create=1"),
        ("d;create=1;format=raw", "only qcow2"),
        ("d;create=1;ro=1", "create=1"),
        ("d;create=1;compat=2", "0.10"),
        ("d;block_size=1000", "512"),
        ("d;refcount_bits=x;create=1", "refcount_bits"),
        ("a\0b", "NUL"),
    ],
)
def test_a_wrong_cfgstring_is_explained(cfgstring: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse(cfgstring)


def test_defaults_from_the_configuration_give_way_to_the_cfgstring() -> None:
    config = parse("d;l2_cache=2M", {"l2_cache": "1M", "ro": "1"})
    assert (config.opening.cache_bytes, config.opening.read_only) == (2 << 20, True)
