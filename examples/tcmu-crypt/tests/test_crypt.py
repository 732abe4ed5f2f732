"""The filter keeps the promises of a disk, and others can read what it has written."""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from tcmu_core import ConfigError
from tcmu_core.testing import check_handler, open_device
from tcmu_crypt.xts import Sectors
from tcmu_file import FileHandler

SIZE = 256 << 10
LUKS_HEADER = 2 << 20  # bytes, of LUKS1


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "disk.key"
    path.write_bytes(random.Random(1).randbytes(64))
    path.chmod(0o600)
    return path


def opened(image: Path, key: Path, options: str = "", size: int | None = SIZE, **more):
    return open_device(FileHandler, str(image), size=size, filters=[f"crypt;key={key}{options}"], **more)


@pytest.mark.parametrize(("options", "more"), [("", {}), (";sector=4096", {"block_size": 4096})])
def test_the_kit_passes_through_it(tmp_path, key, options, more):
    claims = ["own block size"] if more else []
    report = check_handler(
        lambda: opened(tmp_path / "image", key, options, **more), persistent=True, examples=5, claims=claims
    )
    assert {"check_buffers", "check_persistence", "check_crash", "check_resizing"} <= set(report.checked)
    assert dict(report.left_out)["check_zeros"] == "it has neither discard nor write_zeroes"


# -- what others make of it -------------------------------------------------------------------------------------------

PI, E = (
    "3141592653589793238462643383279502884197169399375105820974944592",
    ("2718281828459045235360287471352662497757247093699959574966967627"),
)
# IEEE 1619-2007 annex B: vector, keys, number of the data unit, beginning and end of what stands for 00 … ff 00 … ff
VECTORS = [
    (4, E[:32] + PI[:32], 0x00, "27a7479befa1d476489f308cd4cfa6e2", "21ee5319d0568"),
    (10, E + PI, 0xFF, "1c3b3a102f770386e4836c99e370cf9b", "cea70b9c6e693e148c151"),
]


@pytest.mark.parametrize(("number", "keys", "unit", "first", "last"), VECTORS)
def test_vectors_of_the_standard(number, keys, unit, first, last):
    sectors = Sectors(bytes.fromhex(keys), 512)
    plain = bytes(range(256)) * 2
    kept = sectors.encrypt(unit * 512, plain)
    assert kept.hex().startswith(first)
    assert kept.hex().endswith(last)
    assert sectors.decrypt(unit * 512, kept) == plain


def by_definition(key: bytes, number: int, plain: bytes) -> bytes:
    """Return a sector encrypted block by block, as IEEE 1619 5.3 writes it down."""
    first, second = (Cipher(AES(half), ECB()).encryptor() for half in (key[: len(key) // 2], key[len(key) // 2 :]))
    tweak = int.from_bytes(second.update(number.to_bytes(16, "little")), "little")
    kept = b""
    for at in range(0, len(plain), 16):
        block = int.from_bytes(plain[at : at + 16], "little") ^ tweak
        block = int.from_bytes(first.update(block.to_bytes(16, "little")), "little") ^ tweak
        kept += block.to_bytes(16, "little")
        tweak = tweak << 1 ^ (0x87 if tweak >> 127 else 0)
        tweak &= (1 << 128) - 1
    return kept


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("length", [32, 64])
def test_what_is_kept_is_what_the_standard_defines(tmp_path, key, sector, length):
    key.write_bytes(secret := os.urandom(length))
    plain = os.urandom(4 * sector)
    with opened(tmp_path / "image", key, f";sector={sector}", block_size=sector) as disk:
        disk.write(8 * sector, plain)
    kept = (tmp_path / "image").read_bytes()
    for number in range(4):
        at = (8 + number) * sector
        assert kept[at : at + sector] == by_definition(
            secret, at // 512, plain[number * sector : (number + 1) * sector]
        )


def run(*words: object) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_qemu_has_encrypted_is_read_and_qemu_reads_what_is_written(tmp_path, key):
    plain, image, back = tmp_path / "plain", tmp_path / "luks", tmp_path / "back"
    plain.write_bytes(random.Random(2).randbytes(SIZE))
    (password := tmp_path / "password").write_text("x")
    secret = ["--object", f"secret,id=it,file={password}"]
    made = "driver=luks,key-secret=it,file.driver=file,file.filename="
    with image.open("wb") as file:
        file.truncate(LUKS_HEADER + SIZE)
    luks = ["--type", "luks1", "--cipher", "aes-xts-plain64", "--key-size", "512", "--pbkdf-force-iterations", "1000"]
    run("cryptsetup", "luksFormat", "--batch-mode", *luks, image, password)
    run("qemu-img", "convert", *secret, "-n", "-f", "raw", "--target-image-opts", plain, f"{made}{image}")
    told = run("cryptsetup", "luksDump", "--dump-master-key", "--batch-mode", "--key-file", password, image)
    assert "xts-plain64" in told
    (payload,) = re.findall(r"Payload offset:\s*(\d+)", told)
    key.write_bytes(bytes.fromhex("".join(re.findall(r"\b[0-9a-f]{2}\b", told.partition("MK dump:")[2]))))
    assert int(payload) * 512 == LUKS_HEADER
    filters = [f"offset;start={LUKS_HEADER}", f"crypt;key={key}"]
    with open_device(FileHandler, str(image), filters=filters) as disk:
        assert disk.read(0, SIZE) == plain.read_bytes()
        disk.write(4096, b"ours" * 1024)
    run("qemu-img", "convert", *secret, "--image-opts", "-O", "raw", f"{made}{image}", back)
    assert back.read_bytes() == plain.read_bytes()[:4096] + b"ours" * 1024 + plain.read_bytes()[8192:]


# -- what does not get out --------------------------------------------------------------------------------------------


def test_zeros_are_kept_as_noise_and_the_data_of_a_write_is_left_alone(tmp_path, key):
    data = bytearray(SIZE)
    with opened(tmp_path / "image", key) as disk:
        disk.finish(disk.start("write", 0, [memoryview(data)]))
        assert not any(data)
        assert disk.operations.discard is None
        assert disk.operations.write_zeroes is None
        assert disk.operations.extents is None
    kept = (tmp_path / "image").read_bytes()
    assert len({hashlib.sha256(kept[at : at + 16]).digest() for at in range(0, SIZE, 16)}) == SIZE // 16


def test_another_key_reads_noise(tmp_path, key):
    with opened(tmp_path / "image", key) as disk:
        disk.write(0, b"a" * 512)
    key.write_bytes(bytes(reversed(key.read_bytes())))
    with opened(tmp_path / "image", key) as disk:
        assert disk.read(0, 512) != b"a" * 512


def public(key):
    key.chmod(0o640)


def short(key):
    key.write_bytes(b"sesame" * 5)


def long(key):
    key.write_bytes(b"sesame" * 11)


def twice(key):
    key.write_bytes(b"sesame__" * 8)


def pipe(key):
    key.unlink()
    os.mkfifo(key, 0o600)


def gone(key):
    key.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (public, "others may read or write it: chmod 600"),
        (short, "32 or 64 bytes"),
        (long, "32 or 64 bytes"),
        (twice, "both halves are the same"),
        (pipe, "it is no file"),
        (gone, "No such file"),
    ],
)
def test_a_key_that_can_not_be_used_is_refused_and_not_shown(tmp_path, key, spoil, message, caplog):
    spoil(key)
    with pytest.raises(ConfigError, match=message) as told, opened(tmp_path / "image", key):
        pass
    assert "sesame" not in str(told.value) + caplog.text


def test_a_key_of_somebody_else_is_refused(tmp_path, key, monkeypatch):
    if os.geteuid():
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    else:  # root's files are anybody's to use
        os.chown(key, 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to somebody else"), opened(tmp_path / "image", key):
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [(";sector=1024", "512 or 4096"), (";sector=4096", "no whole sector: write --block-size 4096")],
)
def test_sectors_that_can_not_be_are_refused(tmp_path, key, options, message):
    with pytest.raises(ConfigError, match=message), opened(tmp_path / "image", key, options):
        pass


def test_no_key_is_refused(tmp_path):
    with (
        pytest.raises(ConfigError, match="needs key="),
        open_device(FileHandler, str(tmp_path / "image"), size=SIZE, filters=["crypt"]),
    ):
        pass
