"""Through the portal, by clients that others wrote: qemu-img, qemu-io, and libiscsi's conformance suite."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conformance.suite import run

MIB = 1 << 20
SIZE = 32 * MIB


@pytest.fixture
def serve(start, tmp_path: Path):
    """Serve a disk with `tcmu serve`, as people do; returns its URI. It ends before the NBD servers do."""
    started: list[subprocess.Popen[str]] = []

    def start(*argv: object) -> str:
        words = [sys.executable, "-m", "tcmu_core.cli.tcmu", "serve", *(str(word) for word in argv), "--json"]
        words += ["--portal", "127.0.0.1:0", "--state-dir", str(tmp_path / "state")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=environment)
        started.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "tcmu serve said nothing"
        return str(json.loads(line)["uri"])

    yield start
    for process in started:
        with process:
            process.terminate()
            assert process.wait(60) == 0


def tool(*words: object) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.img"
    chance = random.Random(1)
    with path.open("wb") as file:
        file.truncate(SIZE)
        for at in range(0, SIZE, 2 * MIB):
            file.seek(at)
            file.write(chance.randbytes(chance.randrange(MIB)))
    return path


@pytest.mark.parametrize("options", ["", ";connections=4"])
def test_an_image_is_copied_to_the_disk_and_compares_identical(serve, nbdkit, source, tmp_path, options) -> None:
    server = nbdkit("memory", SIZE)
    uri = serve("nbd", f"{server.cfgstring}{options}")
    tool("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, uri)
    assert "identical" in tool("qemu-img", "compare", "-f", "raw", "-F", "raw", source, uri)
    straight = f"nbd+unix:///?socket={server.address}"
    assert "identical" in tool("qemu-img", "compare", "-f", "raw", "-F", "raw", source, straight)
    back = tmp_path / "back.img"
    tool("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, back)
    assert back.read_bytes() == source.read_bytes()


def test_a_qcow2_image_of_qemu_nbd_is_written_and_mapped(serve, qemu_nbd, fast_dir) -> None:
    image = fast_dir / "disk.qcow2"
    tool("qemu-img", "create", "-q", "-f", "qcow2", image, SIZE)
    server = qemu_nbd("-f", "qcow2", "--discard=unmap", image)
    uri = serve("nbd", server.cfgstring)
    steps = ["write -P 0xa5 0 8M", "aio_write -P 0x77 16M 1M", "aio_flush", "flush", "read -P 0xa5 1M 3M"]
    steps += ["read -P 0x77 16M 1M", "read -P 0 20M 4M", "discard 2M 4M", "write -z 16M 64k", "read -P 0 16M 64k"]
    told = tool("qemu-io", "-d", "unmap", "-f", "raw", *[word for step in steps for word in ("-c", step)], uri)
    assert "Pattern verification failed" not in told
    runs = [
        (each["start"], each["data"]) for each in json.loads(tool("qemu-img", "map", "--output=json", "-f", "raw", uri))
    ]
    assert (2 * MIB, False) in runs
    assert (6 * MIB, True) in runs
    server.kill(15)
    tool("qemu-img", "check", "-f", "qcow2", image)


FAMILIES = ["Read10", "Read16", "Write10", "Write16", "WriteSame10", "WriteSame16", "Unmap", "GetLBAStatus"]
FAMILIES += ["CompareAndWrite", "Inquiry", "Prefetch10", "ReadCapacity16", "WriteVerify10", "Verify10"]
# It wants the status of one block to begin at that block, with physical blocks of several: see docs/conformance.md.
UNANSWERABLE = {"GetLBAStatus.UnmapSingle"}


def test_the_conformance_suite(serve, nbdkit) -> None:
    server = nbdkit("--filter=blocksize-policy", "memory", SIZE, "blocksize-minimum=512", "blocksize-preferred=512")
    results = run(serve("nbd", server.cfgstring), *[f"ALL.{family}" for family in FAMILIES])
    assert results.failed == {}
    assert len(results.passed) > 60


@pytest.mark.soak
def test_the_whole_suite(serve, nbdkit) -> None:
    results = run(serve("nbd", f"{nbdkit('memory', SIZE).cfgstring};connections=4"), "ALL")
    assert set(results.failed) <= UNANSWERABLE, results.failed
    assert results.ran == 230


def test_a_server_that_is_killed_under_qemu_is_not_noticed(serve, nbdkit, fast_dir) -> None:
    image = fast_dir / "disk.img"
    with image.open("wb") as file:
        file.truncate(SIZE)
    server = nbdkit("--filter=cache", "file", image, "cache=writeback")
    uri = serve("nbd", server.cfgstring)
    bench = [
        "qemu-img",
        "bench",
        "-w",
        "-f",
        "raw",
        "-t",
        "none",
        "-c",
        "20000",
        "-d",
        "16",
        "-s",
        "4096",
        "--pattern=90",
    ]
    with subprocess.Popen([*bench, uri], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as load:
        for _ in range(4):
            time.sleep(0.2)
            server.kill()
            server.start()
        assert load.poll() is None, "it was over before the server was killed as often as it should be"
        load.wait(120)
        assert load.stdout is not None
        assert load.returncode == 0, load.stdout.read()
    tool("qemu-io", "-f", "raw", "-c", "flush", "-c", f"read -P 90 0 {SIZE}", uri)
    server.kill()
    assert image.read_bytes() == b"\x5a" * SIZE
    server.start()
