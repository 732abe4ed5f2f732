"""Real servers: nbdkit and qemu-nbd. The kit's promises, less able servers, errors, time limits, TLS, connections."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tcmu_core import ConfigError, Extent, StorageTimeout
from tcmu_core.loop import Loop
from tcmu_core.testing import OpenDevice, check_handler, open_device
from tcmu_nbd import NbdHandler
from tests.waiting import wait_for

MIB = 1 << 20
SIZE = 8 * MIB


def opened(server: object, options: str = "", **attributes: object) -> object:
    return open_device(NbdHandler, f"{server.cfgstring}{options}", **attributes)


@pytest.fixture(
    params=[
        "memory",
        pytest.param("file", marks=pytest.mark.soak),
        pytest.param("qemu raw", marks=pytest.mark.soak),
        "qemu qcow2",
    ]
)
def server(request, nbdkit, qemu_nbd, fast_dir, image):
    if request.param == "memory":
        return nbdkit("memory", SIZE)
    if request.param == "file":
        return nbdkit("file", image)
    if request.param == "qemu raw":
        return qemu_nbd("-f", "raw", "--discard=unmap", image)
    qcow2 = fast_dir / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", qcow2, str(SIZE)], check=True)
    return qemu_nbd("-f", "qcow2", "--discard=unmap", qcow2)


# -- the kit's promises ---------------------------------------------------------------------------------------------


def test_every_server_keeps_the_promises_of_a_handler(server):
    check_handler(lambda: opened(server), persistent=True, examples=8)


@pytest.mark.soak
@pytest.mark.parametrize(
    "words",
    [
        ("--filter=nozero", "--filter=noextents", "memory", SIZE),
        ("--filter=fua", "memory", SIZE, "fuamode=force"),
        ("--no-sr", "memory", SIZE),
        ("--filter=blocksize-policy", "memory", SIZE, "blocksize-minimum=4096", "blocksize-error-policy=error"),
        ("--filter=blocksize-policy", "memory", SIZE, "blocksize-maximum=32K", "blocksize-error-policy=error"),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_so_does_a_server_that_can_do_less(nbdkit, words):
    server = nbdkit(*words)
    claims = ["own block size"] if "blocksize-minimum=4096" in words else []
    check_handler(lambda: opened(server), persistent=True, examples=4, claims=claims, ways=["engine"])


@pytest.mark.soak
@pytest.mark.parametrize("options", [";connections=4;replay=64K", ";sync=1", ";replay=0;block_size=4096"])
@pytest.mark.parametrize("where", ["on a thread", "on a loop"])
def test_so_do_other_options(nbdkit, options, where):
    server = nbdkit("memory", SIZE)
    claims = ["own block size"] if "block_size" in options else []
    with closing(Loop()) as loop:
        reactor = loop if where == "on a loop" else None
        make = partial(opened, server, options, reactor=reactor)
        check_handler(make, persistent=True, examples=4, claims=claims, ways=["engine"])


def test_so_does_a_server_over_tcp(nbdkit, free_port):
    server = nbdkit("memory", SIZE, port=free_port)
    check_handler(lambda: opened(server), persistent=True, examples=4, ways=["engine"])


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.sampled_from(("write", "discard", "write_zeroes")), st.integers(0, 60), st.integers(1, 4)))
)
def test_commands_that_do_not_overlap_may_be_in_flight_together(nbdkit_memory, steps):
    """Each step touches blocks of its own; all are submitted before the first is awaited."""
    with opened(nbdkit_memory, ";connections=3") as disk:
        block = disk.device.block_size
        disk.write(0, b"\xff" * 64 * block)
        model, taken, pending = bytearray(b"\xff" * 64 * block), set(), []
        for number, (what, at, count) in enumerate(steps):
            blocks = set(range(at, min(at + count, 64)))
            if blocks & taken:
                continue
            taken |= blocks
            start, length = at * block, len(blocks) * block
            data = bytes([number % 255 + 1]) * length if what == "write" else bytes(length)
            model[start : start + length] = data
            hook = disk.hook(what)
            pending.append(hook(start, [memoryview(data)]) if what == "write" else hook(start, length))
        for future in pending:
            future.result(30)
        assert disk.read(0, len(model)) == model


@pytest.fixture
def nbdkit_memory(nbdkit):
    return nbdkit("memory", SIZE)


# -- what a server tells becomes what the disk is -------------------------------------------------------------------


def test_block_sizes_become_the_disks(nbdkit):
    words = ["blocksize-minimum=4096", "blocksize-preferred=64K", "blocksize-maximum=1M"]
    server = nbdkit("--filter=blocksize-policy", "memory", SIZE, *words)
    with opened(server) as disk:
        device = disk.device
        assert (device.block_size, device.physical_block_size) == (4096, 4096)
        assert (device.max_transfer_length, device.optimal_transfer_length) == (MIB, 65536)
        # More than the server takes at once is cut: the engine has commands of its own that are larger.
        disk.write(0, os.urandom(0) + b"z" * 3 * MIB, [4096, 7, 1 << 20])
        assert disk.read(0, 3 * MIB, [1, 1 << 20]) == b"z" * 3 * MIB
    with pytest.raises(ConfigError, match="blocks of 4096 and more"), opened(server, ";block_size=512"):
        pass


def test_a_read_only_export_is_a_read_only_disk(nbdkit):
    with opened(nbdkit("-r", "memory", SIZE)) as disk:
        assert disk.device.read_only
    with opened(nbdkit("memory", SIZE), ";ro=1") as disk:
        assert disk.device.read_only


def test_a_pattern_is_read_as_it_is(nbdkit):
    with opened(nbdkit("pattern", 1 << 40)) as disk:
        assert disk.size == 1 << 40
        at = (1 << 39) + 512
        assert disk.read(at, 512) == b"".join((at + n).to_bytes(8, "big") for n in range(0, 512, 8))


def test_sparse_data_is_told_by_its_extents(nbdkit, tmp_path):
    server = nbdkit("sparse-random", 64 * MIB, "percent=20", "seed=7")
    with opened(server) as disk:
        found = disk.extents(0, disk.size)
        assert {extent.mapped for extent in found} == {True, False}
        assert sum(extent.length for extent in found) == disk.size
        for extent in found:
            if not extent.mapped:
                assert disk.read(extent.offset, min(extent.length, MIB)) == bytes(min(extent.length, MIB))


def test_extents_are_exact(nbdkit):
    with opened(nbdkit("--filter=noextents", "memory", SIZE)) as disk:
        assert disk.extents(0, SIZE) == [Extent(0, SIZE, True)]
    with opened(nbdkit("memory", SIZE)) as disk:
        disk.write(MIB, b"x" * MIB)
        expected = [Extent(0, MIB, False), Extent(MIB, MIB, True), Extent(2 * MIB, SIZE - 2 * MIB, False)]
        assert disk.extents(0, SIZE) == expected
        assert disk.extents(MIB + 512, MIB) == [Extent(MIB + 512, MIB - 512, True), Extent(2 * MIB, 512, False)]


def test_a_discard_frees_the_servers_storage(nbdkit, image):
    server = nbdkit("file", image)
    with opened(server) as disk:
        disk.write(0, b"x" * 4 * MIB)
        disk.flush()
        before = image.stat().st_blocks
        disk.discard(0, 2 * MIB)
        assert image.stat().st_blocks <= before - 2 * MIB // 512
        disk.write_zeroes(2 * MIB, MIB)
        assert disk.read(0, 4 * MIB) == bytes(3 * MIB) + b"x" * MIB


def shell_plugin(directory: Path, image: Path) -> tuple[Path, Path]:
    """Return a plugin that can't do FUA, and whose trim does nothing; and the log of what it is asked."""
    script, log = directory / "plugin.sh", directory / "calls"
    script.write_text(
        f"""#!/bin/sh
echo "$1" >>{log}
case "$1" in
    get_size) echo {SIZE} ;;
    can_write|can_trim|can_flush) exit 0 ;;
    can_fua) echo none ;;
    pread) dd if={image} iflag=skip_bytes,count_bytes skip="$4" count="$3" status=none ;;
    pwrite) dd of={image} oflag=seek_bytes seek="$4" conv=notrunc status=none ;;
    trim|flush) ;;
    *) exit 2 ;;
esac
"""
    )
    script.chmod(0o755)
    return script, log


def test_what_is_only_trimmed_is_zeroed_where_the_server_keeps_it(nbdkit, image, tmp_path):
    script, log = shell_plugin(tmp_path, image)
    with opened(nbdkit("--filter=nozero", "sh", script)) as disk:
        disk.write(0, b"x" * 65536)
        disk.discard(4096, 8192)
        assert disk.read(0, 65536) == b"x" * 4096 + bytes(8192) + b"x" * (65536 - 12288)
    assert "trim" in log.read_text().split()


def test_an_export_is_found_by_its_name(nbdkit):
    server = nbdkit("--filter=exportname", "memory", SIZE, "exportname=right", "exportname-strict=true")
    with opened(server, ";export=right") as disk:
        assert disk.size == SIZE
    with pytest.raises(OSError, match="no export 'wrong'"), opened(server, ";export=wrong"):
        pass


def test_a_size_that_is_not_the_exports_is_refused(nbdkit):
    server = nbdkit("memory", SIZE)
    with opened(server, size=SIZE) as disk:
        with pytest.raises(ConfigError, match="its server's size"):
            disk.reconfigure(size=2 * SIZE)
        with pytest.raises(ConfigError, match="cfgstring"):
            disk.reconfigure(cfgstring="/other")
    with pytest.raises(ConfigError, match="leave the size out"), opened(server, size=2 * SIZE):
        pass


def test_bytes_behind_the_last_whole_block_are_left_out(nbdkit):
    with opened(nbdkit("memory", SIZE + 100)) as disk:
        assert disk.size == SIZE
    with pytest.raises(ConfigError, match="less than one block"), opened(nbdkit("memory", 100)):
        pass


def write_through(server) -> None:
    with opened(server) as disk:
        assert disk.device.write_cache
        disk.reconfigure(write_cache=False)
        assert not disk.device.write_cache
        for number in range(3):
            disk.write(number * 4096, b"x" * 4096)
            disk.flush()


def test_without_a_write_cache_each_write_says_that_it_must_be_stable(nbdkit, tmp_path):
    log = tmp_path / "log"
    write_through(nbdkit("--filter=log", "--filter=fua", "memory", SIZE, "fuamode=native", f"logfile={log}"))
    assert log.read_text().count(" fua=1") == 3
    assert log.read_text().count(" Flush id") == 1


def test_and_a_server_that_does_not_know_that_is_asked_to_flush(nbdkit, tmp_path, image):
    script, log = shell_plugin(tmp_path, image)
    write_through(nbdkit("sh", script))
    assert log.read_text().split().count("flush") == 3


def test_a_flush_of_nothing_new_asks_nobody(nbdkit, tmp_path):
    log = tmp_path / "log"
    with opened(nbdkit("--filter=log", "memory", SIZE, f"logfile={log}")) as disk:
        for _ in range(3):
            disk.flush()  # the first is for whoever wrote before
        disk.write(0, b"x" * 512)
        disk.flush()
        disk.flush()
    assert log.read_text().count(" Flush id") == 2


# -- errors and time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sr", [[], ["--no-sr"]], ids=["structured", "simple"])
def test_a_servers_error_is_the_commands_alone(nbdkit, tmp_path, sr):
    trigger = tmp_path / "fail"
    server = nbdkit(*sr, "--filter=error", "memory", SIZE, "error=ENOSPC", "error-rate=100%", f"error-file={trigger}")
    with opened(server) as disk:
        disk.write(0, b"x" * 512)
        trigger.touch()
        for call in (
            lambda: disk.read(0, 512),
            lambda: disk.write(0, b"y" * 512),
            lambda: disk.discard(0, 512),
            lambda: disk.write_zeroes(0, 512),
        ):
            with pytest.raises(OSError, match=r"(?i)no space left") as raised:
                call()
            assert raised.value.errno == 28
        assert disk.extents(0, 512) == [Extent(0, 512, True)]
        trigger.unlink()
        assert disk.read(0, 512) == b"x" * 512


def test_a_command_that_takes_too_long_fails_and_the_disk_goes_on(nbdkit):
    server = nbdkit("--filter=delay", "memory", SIZE, "wdelay=5")
    with opened(server, ";timeout=2") as disk:
        assert disk.read(0, 512) == bytes(512)
        with pytest.raises(StorageTimeout):
            disk.write(0, b"x" * 512)
        assert disk.read(4096, 512) == bytes(512)


def test_a_server_that_hangs_is_left_and_found_again(nbdkit):
    server = nbdkit("memory", SIZE)
    with opened(server, ";timeout=5") as disk:
        disk.write(0, b"x" * 512)
        server.suspend()
        with pytest.raises(StorageTimeout):
            disk.read(0, 512)
        server.resume()
        assert disk.read(0, 512) == b"x" * 512


@pytest.mark.parametrize(
    ("greeting", "message"),
    [(b"SSH-2.0-OpenSSH_9.2\r\n", "is that the right port"), (b"", "closed the connection"), (None, "did not answer")],
    ids=["another", "none", "silence"],
)
def test_something_that_is_no_nbd_server_is_called_so(free_port, monkeypatch, greeting, message):
    monkeypatch.setattr("tcmu_nbd.client.CONNECT_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", free_port)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            if greeting is None:
                connection.recv(1)
            else:
                connection.sendall(greeting)
            connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        place = f";host=127.0.0.1;port={free_port}"
        with pytest.raises((OSError, StorageTimeout), match=message), open_device(NbdHandler, place):
            pass
        thread.join(30)


def test_where_there_is_no_server_the_error_says_where(tmp_path, free_port):
    with (
        pytest.raises(OSError, match=r"nothing\.sock: No such file"),
        open_device(NbdHandler, f"{tmp_path}/nothing.sock"),
    ):
        pass
    place = f";host=127.0.0.1;port={free_port}"
    with (
        pytest.raises(OSError, match=f"127.0.0.1, port {free_port}: Connection refused"),
        open_device(NbdHandler, place),
    ):
        pass
    with pytest.raises(OSError, match=r"nonexistent\.invalid"), open_device(NbdHandler, ";host=nonexistent.invalid"):
        pass


def test_nothing_is_left_behind(nbdkit):
    server = nbdkit("memory", SIZE)
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with opened(server, ";connections=4") as disk:
            disk.write(0, b"x" * 512)
        with pytest.raises(OSError, match="No such file"), open_device(NbdHandler, "/nonexistent/nbd.sock"):
            pass
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == files


# -- connections ----------------------------------------------------------------------------------------------------


def connections(server) -> int:
    """Return how many connections a server on a Unix socket has."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return sum(line.endswith(str(server.address)) and line.split()[5] == "03" for line in lines)


@pytest.mark.parametrize(("mode", "count"), [("plugin", 4), ("disable", 1)])
def test_there_are_several_only_where_the_server_allows_it(nbdkit, mode, count):
    server = nbdkit("--filter=multi-conn", "memory", SIZE, f"multi-conn-mode={mode}")
    with opened(server, ";connections=4") as disk:
        # That of the one who looked whether the server is up may not be gone yet.
        wait_for(lambda: connections(server) == count, why=lambda: connections(server))
        futures = [disk.hook("write")(n * 4096, [memoryview(bytes([n + 1]) * 4096)]) for n in range(64)]
        for future in futures:
            future.result(30)
        disk.flush()
        assert disk.read(0, 64 * 4096) == b"".join(bytes([n + 1]) * 4096 for n in range(64))
    wait_for(lambda: not connections(server), why=lambda: "the server's connections are still there")


# -- TLS ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def certificates(tmp_path_factory) -> Path:
    """An authority, a server named localhost, a client; and an authority that nobody believes."""
    place = tmp_path_factory.mktemp("pki")

    def openssl(*words: object) -> None:
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, cwd=place)

    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for name in ("ca", "other"):
        openssl("req", "-x509", *new, "-keyout", f"{name}-key.pem", "-out", f"{name}-cert.pem", "-subj", f"/CN={name}")
    for name in ("server", "client"):
        (place / "names").write_text("subjectAltName=DNS:localhost\n")
        openssl("req", *new, "-keyout", f"{name}-key.pem", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signer = ["-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-CAcreateserial"]
        openssl("x509", "-req", "-in", f"{name}.csr", *signer, "-out", f"{name}-cert.pem", "-extfile", "names")
    return place


@pytest.fixture
def encrypted(nbdkit, certificates):
    return nbdkit("--tls=require", f"--tls-certificates={certificates}", "--tls-verify-peer", "memory", SIZE)


def identity(place: Path) -> str:
    return f";cert={place}/client-cert.pem;key={place}/client-key.pem"


def test_a_disk_over_tls_keeps_the_promises(encrypted, certificates):
    options = f";tls=require;ca={certificates}/ca-cert.pem{identity(certificates)};connections=2"
    check_handler(lambda: opened(encrypted, options), persistent=True, examples=4, ways=["engine"])


def test_much_data_in_flight_over_tls(encrypted, certificates):
    with opened(encrypted, f";tls=require;ca={certificates}/ca-cert.pem{identity(certificates)}") as disk:
        parts = [os.urandom(MIB) for _ in range(8)]
        for future in [disk.hook("write")(n * MIB, [memoryview(part)]) for n, part in enumerate(parts)]:
            future.result(30)
        rooms = [bytearray(MIB) for _ in parts]
        for future in [disk.hook("read")(n * MIB, [memoryview(room)]) for n, room in enumerate(rooms)]:
            future.result(30)
        assert rooms == parts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "add tls=require"),
        (";tls=require;ca={place}/other-cert.pem{identity}", "certificate is not good"),
        (";tls=on;ca={place}/other-cert.pem{identity}", "certificate is not good"),
        (";tls=require;ca={place}/ca-cert.pem;tls_hostname=elsewhere{identity}", "certificate is not good"),
        (";tls=require;ca={place}/ca-cert.pem", "TLS|closed|reset"),
    ],
    ids=["plain", "another authority", "another authority, on", "another name", "no certificate of ours"],
)
def test_tls_that_is_not_right_is_refused(encrypted, certificates, options, message):
    text = options.format(place=certificates, identity=identity(certificates))
    with pytest.raises(OSError, match=message), opened(encrypted, text):
        pass


def test_a_server_without_tls_is_used_when_it_is_on_and_not_when_it_is_required(nbdkit):
    server = nbdkit("memory", SIZE)
    with opened(server, ";tls=on") as disk:
        assert disk.size == SIZE
    with pytest.raises(OSError, match="tls=require"), opened(server, ";tls=require"):
        pass


def test_tls_over_tcp_checks_the_hosts_name(nbdkit, certificates, free_port):
    words = [f"--tls-certificates={certificates}", "--tls=require", "memory", SIZE]
    nbdkit(*words, port=free_port)
    ca = f";tls=require;ca={certificates}/ca-cert.pem"
    with open_device(NbdHandler, f";host=localhost;port={free_port}{ca}") as disk:
        assert isinstance(disk, OpenDevice)
    with pytest.raises(OSError, match="certificate"), open_device(NbdHandler, f";host=127.0.0.1;port={free_port}{ca}"):
        pass
