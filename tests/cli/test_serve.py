"""`tcmu serve` as a process, reached by clients that were not written here."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tcmu_core.testing import Client
from tests.cli.conftest import DROP_IN, Call, Serving, Start, run
from tests.waiting import wait_for

Serve = Callable[..., Serving]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
SIGNALS += [signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGIO]  # they would end it as well

READ_ONE = bytes([0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0])

# Keeps what is written in memory until it is told to flush: a stop without a flush loses it.
LAZY = (
    DROP_IN.replace(
        "self.data = bytearray(device.size)",
        "self.data = bytearray(device.size)\n        self.path = device.cfgstring",
    )
    + """
    @hookimpl
    def flush(self):
        with open(self.path, "wb") as file:
            file.write(self.data)
"""
)

# Never answers a read.
STUCK = """\
from concurrent.futures import Future

from tcmu_core import hookimpl


class Stuck:
    @hookimpl
    def open(self, device): ...

    @hookimpl
    def read(self, offset, buffers):
        print("reading", flush=True)
        return Future()
"""


def qemu_io(uri: str, *commands: str) -> subprocess.CompletedProcess[str]:
    return run("qemu-io", "-f", "raw", *[word for command in commands for word in ("-c", command)], uri)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


# -- being reached --------------------------------------------------------------------------------------------------


def test_every_printed_command_works_when_it_is_pasted(serve: Serve) -> None:
    disk = serve("ram", "--size", "8M")
    for line in disk.said["commands"]:
        done = run("bash", "-c", line)
        assert done.returncode == 0, (line, done)
        assert done.stdout


def test_the_printed_commands_work_with_a_login_too(serve: Serve, tmp_path: Path) -> None:
    secrets = tmp_path / "it's a file"
    secrets.write_text("# who may come\nalice:open se:same 12\n")
    secrets.chmod(0o600)
    for chap in (("--chap-file", secrets), ("--chap", "alice:open se:same 12")):
        disk = serve("ram", "--size", "8M", *chap)
        done = run("bash", "-e", "-c", "\n".join(disk.said["commands"]))
        assert done.returncode == 0, done
        assert "virtual size: 8 MiB" in done.stdout


@pytest.mark.parametrize(
    "text",
    ["\n   \nalice:open sesame 12\n", "alice:open sesame 12\r\nbob:another password\r\n", "\ufeffalice:open sesame"],
)
def test_the_printed_commands_find_the_password_wherever_it_stands(serve: Serve, tmp_path: Path, text: str) -> None:
    secrets = tmp_path / "secrets"
    secrets.write_bytes(text.encode())
    secrets.chmod(0o600)
    disk = serve("ram", "--size", "8M", "--chap-file", secrets)
    done = run("bash", "-e", "-c", "\n".join(disk.said["commands"]))
    assert done.returncode == 0, done


def test_who_is_let_in_alone_is_told_beside_the_commands(command: Start) -> None:
    process = command("serve", "ram", "--size", "1M", "--portal", "127.0.0.1:0", "--acl", "iqn.2026-01.org:x*")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(8)]
    assert any("that --acl lets in, iqn.2026-01.org:x*: `-i NAME`" in line for line in lines)


def test_a_person_reads_what_json_says(command: Start) -> None:
    process = command("serve", "ram", "--size", "8M", "--portal", "127.0.0.1:0", "--name", "my disk")
    assert process.stdout is not None
    lines = []
    while not lines or "Ctrl-C stops it." not in lines[-1]:
        lines.append(process.stdout.readline().strip())
        assert lines[-1] or len(lines) < 20
    assert lines[0].startswith("my disk: 8 MiB, blocks of 512 bytes, by handler ram of tcmu-ram ")
    assert lines[1].startswith("iscsi://127.0.0.1:")
    assert lines[1].endswith("/iqn.2025-01.local.tcmu:my-disk/0")
    assert f"iscsi-inq {lines[1]}" in lines
    assert any(line.startswith("iscsiadm -m node -T ") and line.endswith("--login") for line in lines)


def test_a_handler_of_twenty_lines_in_a_directory_is_a_disk(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "handler_mine.py").write_text(DROP_IN)
    assert len([line for line in DROP_IN.splitlines() if line]) <= 20
    disk = serve("mine", "--handler-path", tmp_path, "--size", "4M")
    done = qemu_io(disk.uri, "write -P 0x5a 64k 1M", "read -P 0x5a 64k 1M", "read -P 0 0 64k")
    assert done.returncode == 0, done
    assert "verification failed" not in done.stdout
    assert disk.stop().status == 0


def test_a_relative_path_is_found_from_here(serve: Serve, tmp_path: Path) -> None:
    disk = serve("file", "disk.img", "--size", "1M")
    assert disk.said["cfgstring"] == str(tmp_path / "disk.img")
    assert (tmp_path / "disk.img").stat().st_size == 1 << 20


def test_blocks_can_be_4096_bytes(serve: Serve) -> None:
    disk = serve("ram", "--size", "8M", "--block-size", "4096")
    done = run("iscsi-readcapacity16", disk.uri)
    assert "LOGICAL BLOCK LENGTH IN BYTES:4096" in done.stdout, done


def test_a_read_only_disk_refuses_writes(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    disk = serve("file", "disk.img", "--read-only")
    assert disk.said["read_only"] is True
    assert qemu_io(disk.uri, "write 0 4k").returncode != 0
    assert run("qemu-io", "-r", "-f", "raw", "-c", "read 0 4k", disk.uri).returncode == 0


def test_a_target_and_an_ipv6_portal_can_be_chosen(serve: Serve) -> None:
    disk = serve("ram", "--size", "1M", "--target", "iqn.2001-04.com.example:x", portal="[::1]:0")
    assert disk.uri.startswith("iscsi://[::1]:")
    assert disk.uri.endswith("/iqn.2001-04.com.example:x/0")
    assert run("iscsi-inq", disk.uri).returncode == 0


def test_a_wrong_password_is_refused(serve: Serve) -> None:
    disk = serve("ram", "--size", "1M", "--chap", "alice:rightpassword")
    login = {"LIBISCSI_CHAP_USERNAME": "alice"}
    assert run("iscsi-inq", disk.uri).returncode != 0
    assert run("iscsi-inq", disk.uri, **login, LIBISCSI_CHAP_PASSWORD="wrongpassword").returncode != 0
    assert run("iscsi-inq", disk.uri, **login, LIBISCSI_CHAP_PASSWORD="rightpassword").returncode == 0


def test_an_acl_lets_in_whom_it_names(serve: Serve) -> None:
    disk = serve("ram", "--size", "1M", "--acl", "iqn.2001-04.com.example:*")
    assert run("iscsi-inq", "-i", "iqn.2001-04.com.example:host", disk.uri).returncode == 0
    assert run("iscsi-inq", "-i", "iqn.2001-04.org.example:host", disk.uri).returncode != 0


def test_defaults_for_the_handler_come_from_tcmu_conf(serve: Serve, tmp_path: Path) -> None:
    conf = tmp_path / "tcmu.conf"
    conf.write_text("[handlers]\n[[file]]\nsize = 3M\n")
    disk = serve("file", "disk.img", "--config", conf)
    assert disk.said["size"] == 3 << 20


def test_disks_are_told_apart_and_keep_their_identity(serve: Serve) -> None:
    def serial(name: str) -> str:
        disk = serve("file", f"{name}.img", "--size", "1M")
        said = run("iscsi-inq", "-e", "1", "-c", "128", disk.uri).stdout
        disk.stop()
        return said

    first = serial("a")
    assert "Unit Serial Number" in first
    assert serial("b") != first
    assert serial("a") == first


# -- stopping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_stops_it_and_flushes(serve: Serve, tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "handler_lazy.py").write_text(LAZY)
    goal = tmp_path / "flushed"
    disk = serve("lazy", goal, "--handler-path", tmp_path, "--size", "1M")
    assert qemu_io(disk.uri, "write -P 0x77 4k 4k").returncode == 0
    goal.unlink(missing_ok=True)  # what a client's own flush has written
    said = disk.stop(number)
    assert (said.status, said.out, said.err) == (0, "", "")
    assert goal.read_bytes()[4096:8192] == b"\x77" * 4096


def test_it_stops_while_a_client_is_logged_in(serve: Serve) -> None:
    disk = serve("ram", "--size", "1M")
    with subprocess.Popen(
        ["qemu-io", "-f", "raw", disk.uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write("read 0 4k\n")
        client.stdin.flush()
        while "bytes at offset" not in client.stdout.readline():
            pass
        assert disk.stop().status == 0
        client.kill()


def test_a_log_that_nobody_reads_holds_up_no_command(serve: Serve) -> None:
    disk = serve("ram", "--size", "1M", "-d")  # a line for each command
    with Client(disk.uri) as client:
        for _ in range(3000):  # lines for several pipes
            assert client.command(bytes.fromhex("28 00 00000000 00 0001 00"), read=512).status == 0
    said = disk.stop()
    assert said.status == 0
    assert "READ(10)" in said.err


def test_it_stops_while_a_handler_does_not_answer(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "handler_stuck.py").write_text(STUCK)
    disk = serve("stuck", "--handler-path", tmp_path, "--size", "1M")
    client = subprocess.Popen(["qemu-io", "-r", "-f", "raw", "-c", "read 0 4k", disk.uri], stdout=subprocess.DEVNULL)
    with client:
        assert disk.process.stderr is not None
        assert disk.process.stderr.readline() == "reading\n"
        assert disk.stop().status == 0
        client.kill()


HANGS = """\
import time

from tcmu_core import hookimpl


class Hangs:
    @hookimpl
    def open(self, device):
        device.threads = {threads}

    @hookimpl
    def read(self, offset, buffers):
        hang("read")

    @hookimpl
    def close(self):
        hang("close")


def hang(where):
    if where == "{where}":
        open("hangs", "w").close()
        while True:
            time.sleep(1000)
"""


@pytest.mark.parametrize(
    ("where", "threads", "says"),
    [
        ("read", 0, "waiting for the handler to return from a call (hangs/disk)"),
        ("read", 1, "waiting for the handler to end commands, 1 of them: "),
        ("close", 0, "waiting for the handler to close the disk (hangs/disk)"),
    ],
    ids=["on the loop", "on a thread", "in close"],
)
def test_a_stop_that_a_handler_holds_up_says_so_and_a_second_signal_ends_it(
    serve: Serve, tmp_path: Path, where: str, threads: int, says: str
) -> None:
    (tmp_path / "handler_hangs.py").write_text(HANGS.format(where=where, threads=threads))
    disk = serve("hangs", "--handler-path", tmp_path, "--size", "1M")
    client = None
    if where == "read":
        command = ["qemu-io", "-r", "-f", "raw", "-c", "read 0 4k", disk.uri]
        client = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_for((tmp_path / "hangs").exists)
    disk.process.send_signal(signal.SIGTERM)
    assert disk.process.stderr is not None
    said = disk.process.stderr.readline()
    assert says in said
    assert "a second signal ends it at once" in said
    assert disk.process.poll() is None
    assert disk.stop(signal.SIGINT).status == 128 + signal.SIGINT
    if client is not None:
        client.kill()
        client.wait()


THREAD = """\
import threading, time

from tcmu_core import hookimpl


class Thread:
    @hookimpl
    def open(self):
        threading.Thread(target=time.sleep, args=(1000,)).start()

    @hookimpl
    def read(self, offset, buffers):
        pass
"""


def test_a_thread_that_a_handler_does_not_end_is_waited_for_until_a_second_signal(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "handler_thread.py").write_text(THREAD)
    disk = serve("thread", "--handler-path", tmp_path, "--size", "1M")
    disk.process.send_signal(signal.SIGTERM)
    assert disk.process.stderr is not None
    assert "waiting for a thread of the handler to end (thread/disk); a second" in disk.process.stderr.readline()
    assert disk.stop(signal.SIGINT).status == 128 + signal.SIGINT


@pytest.mark.parametrize("what", ["thread", "close"])
def test_what_a_stop_waits_for_is_said_when_the_command_of_run_has_ended_too(tmp_path: Path, what: str) -> None:
    source = THREAD if what == "thread" else HANGS.format(where="close", threads=0)
    (tmp_path / f"handler_{what}.py").write_text(source)
    arguments = ["serve", what, "--handler-path", str(tmp_path), "--size", "1M", "--state-dir", str(tmp_path / "state")]
    command = [sys.executable, "-m", "tcmu_core.cli.tcmu", *arguments, "--run", "true"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        watchdog = threading.Timer(30, process.kill)
        watchdog.start()
        assert process.stderr is not None
        said = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait() == 128 + signal.SIGINT, said
        watchdog.cancel()
    waits = "a thread of the handler to end" if what == "thread" else "the handler to close the disk"
    assert said == f"tcmu: waiting for {waits} ({what}/disk); a signal ends it at once\n"


OWN_SIGNAL = """
import os, signal

from tcmu_core import hookimpl


class Own:
    @hookimpl
    def open(self, device):
        self.heard = 0
        signal.signal(signal.SIGUSR1, self.hear)

    def hear(self, number, frame):
        self.heard += 1

    @hookimpl
    def read(self, offset, buffers):
        os.kill(os.getpid(), signal.SIGUSR1)
        for buffer in buffers:
            buffer[:] = bytes(len(buffer))
"""


def test_a_signal_that_a_handler_has_a_use_for_is_its_own(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "handler_own.py").write_text(OWN_SIGNAL)
    disk = serve("own", "--handler-path", tmp_path, "--size", "1M")
    with Client(disk.uri) as client:
        for _ in range(3):  # the first one tells of a unit attention
            reply = client.command(READ_ONE, read=512)
        assert reply.data == bytes(512)
    assert disk.stop(signal.SIGTERM).status == 0


DEAF = """
import signal

from tcmu_core import hookimpl


class Deaf:
    @hookimpl
    def open(self, device):
        pass

    @hookimpl
    def read(self, offset, buffers):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for buffer in buffers:
            buffer[:] = bytes(len(buffer))
"""


def test_a_handler_that_has_a_signal_ignored_does_not_keep_it_from_us(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "handler_deaf.py").write_text(DEAF)
    disk = serve("deaf", "--handler-path", tmp_path, "--size", "1M")
    with Client(disk.uri) as client:
        for _ in range(2):
            client.command(READ_ONE, read=512)
    status = Path(f"/proc/{disk.process.pid}/status")
    wait_for(lambda: not int(status.read_text().partition("SigIgn:")[2].split()[0], 16) & 1 << signal.SIGTERM - 1)
    assert disk.stop(signal.SIGTERM).status == 0


FORKS = """
import os

from tcmu_core import hookimpl


class Forks:
    @hookimpl
    def open(self, device):
        device.threads = int(device.cfgstring)

    @hookimpl
    def read(self, offset, buffers):
        if not os.fork():
            offset = -1  # the child returns, too
        for buffer in buffers:
            buffer[:] = b"pc"[offset < 0 :][:1] * len(buffer)
"""


@pytest.mark.parametrize("threads", [0, 2])
def test_a_child_that_a_hook_forks_and_that_returns_serves_nobody(serve: Serve, tmp_path: Path, threads: int) -> None:
    (tmp_path / "handler_forks.py").write_text(FORKS)
    disk = serve("forks", str(threads), "--handler-path", tmp_path, "--size", "1M")
    replies = []
    with Client(disk.uri) as client:
        for _ in range(8):
            replies.append(client.command(READ_ONE, read=512))
    assert [reply.data for reply in replies[1:]] == [b"p" * 512] * 7
    children = Path(f"/proc/{disk.process.pid}/task/{disk.process.pid}/children")
    wait_for(lambda: all(gone(int(pid)) for pid in children.read_text().split()))
    assert disk.stop(signal.SIGTERM).status == 0


def test_two_signals_are_as_one(serve: Serve) -> None:
    disk = serve("ram", "--size", "1M")
    disk.process.send_signal(signal.SIGINT)
    assert disk.stop(signal.SIGTERM).status == 0


def test_under_nohup_it_outlives_the_terminal(serve: Serve) -> None:
    disk = serve("ram", "--size", "1M", before=["nohup"])
    disk.process.send_signal(signal.SIGHUP)
    assert run("iscsi-inq", disk.uri).returncode == 0
    assert disk.stop(signal.SIGTERM).status == 0


def test_the_address_is_free_again_at_once(serve: Serve) -> None:
    disk = serve("ram", "--size", "1M")
    assert run("iscsi-inq", disk.uri).returncode == 0
    disk.stop()
    again = serve("ram", "--size", "1M", portal=disk.said["portal"])
    assert again.uri == disk.uri


def test_the_file_is_free_again(serve: Serve) -> None:
    assert serve("file", "disk.img", "--size", "1M").stop().status == 0
    assert serve("file", "disk.img").said["size"] == 1 << 20


# -- --run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shell", "status"),
    [
        ("true", 0),
        ("exit 7", 7),
        ("no-such-program-here 2>/dev/null", 127),
        ("kill -9 $$", 128 + 9),
        ("kill -TERM $$", 128 + 15),
        ("qemu-img info $uri >/dev/null", 0),
    ],
)
def test_run_exits_with_the_commands_status(command: Start, shell: str, status: int) -> None:
    process = command("serve", "ram", "--size", "1M", "--run", shell)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (status, "", "")


def test_run_has_the_disks_address_in_its_environment(command: Start) -> None:
    process = command("serve", "ram", "--size", "1M", "--run", 'echo "$uri|$portal|$iqn|$lun"')
    uri, portal, iqn, lun = process.communicate()[0].strip().split("|")
    assert uri == f"iscsi://{portal}/{iqn}/{lun}"
    assert portal.startswith("127.0.0.1:")
    assert (iqn, lun) == ("iqn.2025-01.local.tcmu:disk", "0")


def test_run_can_log_in_without_seeing_the_password(command: Start) -> None:
    process = command("serve", "ram", "--size", "1M", "--chap", "a:longpassword", "--run", "echo $uri; iscsi-inq $uri")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "longpassword" not in out
    assert "DIRECT_ACCESS" in out


def test_run_keeps_what_the_command_wrote(command: Start, tmp_path: Path) -> None:
    shell = "qemu-io -f raw -c 'write -P 0x11 0 64k' $uri >/dev/null"
    assert command("serve", "file", "disk.img", "--size", "1M", "--run", shell).wait() == 0
    assert (tmp_path / "disk.img").read_bytes()[:65536] == b"\x11" * 65536


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_ends_the_command_too(command: Start, number: signal.Signals) -> None:
    process = command("serve", "ram", "--size", "1M", "--run", "sleep 1000 & echo $$ $!; wait")
    assert process.stdout is not None
    shell, sleep = (int(word) for word in process.stdout.readline().split())
    process.send_signal(number)
    assert process.wait() == 128 + number
    assert gone(shell)
    wait_for(lambda: gone(sleep))  # which is nobody's child here, and ends when it has the processor


def test_a_command_that_will_not_end_is_killed(command: Start) -> None:
    process = command("serve", "ram", "--size", "1M", "--run", "trap '' TERM; echo $$; while :; do sleep 1000; done")
    assert process.stdout is not None
    shell = int(process.stdout.readline())
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM
    assert gone(shell)


def test_what_the_command_left_in_the_background_ends_with_it(command: Start) -> None:
    process = command("serve", "ram", "--size", "1M", "--run", "sleep 1000 >/dev/null 2>&1 & echo $!")
    out, _err = process.communicate()
    assert process.returncode == 0
    wait_for(lambda: gone(int(out)))


def test_run_leaves_no_state_behind(command: Start, tmp_path: Path) -> None:
    command("serve", "ram", "--size", "1M", "--run", "true").wait()
    assert not list(tmp_path.iterdir())


# -- what can't be served -------------------------------------------------------------------------------------------

BAD = [
    (("fiel", "/x"), 3, "no handler 'fiel': did you mean 'file'?"),
    (("file",), 4, "no path: write /path/of/the/disk.img"),
    (("file", "missing.img"), 4, "missing.img"),
    (("file", "."), 4, "a disk needs a file or a block device"),
    (("ram",), 4, "size"),
    (("ram", "--size", "100"), 4, "less than one block of 512 bytes"),
    (("ram", "--size", "1M", "--target", "disk"), 4, "'disk' is no iSCSI name: write one such as iqn."),
    (("ram", "--size", "1M", "--portal", "0.0.0.0:0"), 4, "anybody on the network could write to the disks"),
    (("ram", "--size", "1M", "--portal", "192.0.2.1:0", "--insecure"), 4, "Cannot assign requested address"),
    (("ram", "--size", "1M", "--acl", "["), 4, "initiator pattern '[': no name fits it: write one such as iqn."),
    (("ram", "--size", "1M", "--acl", ""), 4, "initiator pattern '': no name fits it"),
    (("ram", "--size", "1M", "--portal", "0.0.0.0:0", "--acl", "?*"), 4, "anybody on the network could write"),
    (("ram", "--size", "1M", "--chap", "a:one", "--chap", "a:two"), 4, "user 'a' is there twice"),
    (
        ("ram", "--size", "1M", "--serial", "same", "--lun", "ram --size 1M --serial same"),
        4,
        "two disks have the same --serial",
    ),
    (
        (
            "ram",
            "--size",
            "1M",
            "--serial",
            "11111111-1111-4111-8111-111111111111",
            "--lun",
            "ram --size 1M --serial 11111111-1111-4111-8111-111111111112",
        ),
        4,
        "UUIDs that begin alike",
    ),
    (("ram", "--size", "1M", "--chap-file", "none"), 1, "none: No such file or directory"),
    (("ram", "--size", "1M", "--config", "none"), 4, "none: No such file or directory"),
    (("ram", "--size", "1M", "--handler-path", "none"), 4, "handler path 'none' is no directory"),
]


@pytest.mark.parametrize(("argv", "status", "message"), BAD, ids=[message[:40] for _, _, message in BAD])
def test_a_mistake_is_explained(command: Start, argv: tuple[str, ...], status: int, message: str) -> None:
    process = command("serve", *argv)
    out, err = process.communicate()
    assert (process.returncode, out) == (status, "")
    assert message in err
    assert err.startswith("tcmu: ")
    assert "Traceback" not in err


def test_an_address_in_use_says_what_to_do(command: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = command("serve", "ram", "--size", "1M", "--portal", f"127.0.0.1:{taken.getsockname()[1]}")
        _out, err = process.communicate()
    assert process.returncode == 4
    assert "Address already in use; --portal 127.0.0.1:0 takes a free port" in err


def test_a_file_that_is_served_already_is_refused(serve: Serve, command: Start) -> None:
    serve("file", "disk.img", "--size", "1M")
    process = command("serve", "file", "disk.img", "--portal", "127.0.0.1:0")
    _out, err = process.communicate()
    assert process.returncode == 4
    assert "disk.img" in err


def test_passwords_that_others_can_read_are_refused(command: Start, tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    file.write_text("a:b\n")
    file.chmod(0o640)
    process = command("serve", "ram", "--size", "1M", "--chap-file", file)
    _out, err = process.communicate()
    assert process.returncode == 4
    assert f"others can read the passwords in it: chmod 600 {file}" in err


def test_a_user_that_is_in_the_password_file_twice_is_refused(command: Start, tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    file.write_text("a:one\n# b:none\na:two\n")
    file.chmod(0o600)
    process = command("serve", "ram", "--size", "1M", "--chap-file", file)
    assert f"{file}:3: user 'a' is there twice" in process.communicate()[1]


def test_each_of_several_logins_is_taken(command: Start) -> None:
    check = "LIBISCSI_CHAP_USERNAME={0} LIBISCSI_CHAP_PASSWORD={0}longpassword iscsi-inq $uri"
    process = command("serve", "ram", "--size", "1M", "--chap", "a:alongpassword", "--chap", "b:blongpassword",
                      "--run", " && ".join(check.format(name) for name in "ab"))  # fmt: skip
    assert process.communicate()[0].count("Peripheral Qualifier") == 2
    assert process.returncode == 0


def test_a_password_file_that_is_a_pipe_is_refused_at_once(command: Start, tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    os.mkfifo(file, 0o600)
    process = command("serve", "ram", "--size", "1M", "--chap-file", file)
    assert f"{file}: no regular file" in process.communicate()[1]
    assert process.returncode == 4


@pytest.mark.parametrize("text", [b"", b"alice\n", b"alice:\n", b":secret\n", b"a:b\n\xff:\xfe\n", b"a:b\n" * 100_000])
def test_a_password_file_without_passwords_is_refused(command: Start, tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "secrets"
    file.write_bytes(text)
    file.chmod(0o600)
    process = command("serve", "ram", "--size", "1M", "--chap-file", file)
    said = process.communicate()[1]
    assert "USER:PASSWORD" in said or "no file of passwords" in said
    assert "Traceback" not in said
    assert process.returncode == 4


def test_a_handler_that_breaks_in_open_is_explained(command: Start, tmp_path: Path) -> None:
    (tmp_path / "handler_bad.py").write_text(DROP_IN.replace("bytearray(device.size)", "1 / 0"))
    process = command("serve", "bad", "--handler-path", tmp_path, "--size", "1M")
    _out, err = process.communicate()
    assert process.returncode == 3
    assert "handler 'bad'" in err
    assert "ZeroDivisionError" in err
    assert "Traceback" not in err


def test_debug_logs_each_command_by_name(command: Start) -> None:
    process = command("serve", "ram", "--size", "1M", "-d", "--run", "iscsi-inq $uri >/dev/null")
    _out, err = process.communicate()
    assert process.returncode == 0
    assert any("[DEBUG_SCSI_CMD]" in line and "ram/disk: " in line and "INQUIRY" in line for line in err.splitlines())


# -- who a disk is --------------------------------------------------------------------------------------------------

# A disk in memory that takes a cfgstring and says nothing of it.
NAMED = DROP_IN.replace('"""Nothing: the disk is in memory, as large as --size says."""', '"""Anything."""')


def identity(disk: Serving) -> tuple[str, bytes]:
    """Return the serial number of VPD page 80h, and the NAA designator of page 83h that Linux makes a WWN of."""
    serial = run("iscsi-inq", "-e", "1", "-c", "128", disk.uri).stdout
    page = subprocess.run(["iscsi-inq", "-e", "1", "-c", "131", disk.uri], capture_output=True, check=True).stdout
    _, naa, after = page.partition(b"(3) NAA")
    assert naa
    return serial, after


@pytest.mark.parametrize("words", [("ram",), ("ram", ";size=1M"), ("mine",), ("mine", "/the/same"), ("fbo",)])
def test_disks_of_two_processes_that_share_no_storage_are_not_one(
    serve: Serve, tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "handler_mine.py").write_text(NAMED)
    size = () if words[0] == "fbo" or ";size=1M" in words else ("--size", "1M")
    first, second = (serve(*words, *size, "--handler-path", tmp_path) for _ in range(2))
    assert first.said["target"] == second.said["target"]
    assert all(one != other for one, other in zip(identity(first), identity(second), strict=True))


def test_two_drives_with_other_discs_are_not_one(serve: Serve, tmp_path: Path) -> None:
    for name in ("a.iso", "b.iso"):
        (tmp_path / name).write_bytes(bytes(1 << 20))
    first, second = (serve("fbo", f"{name}.iso;ro=1") for name in "ab")
    assert all(one != other for one, other in zip(identity(first), identity(second), strict=True))


def test_one_disk_keeps_its_identity_and_a_serial_number_that_was_given_is_its_own(serve: Serve) -> None:
    disk = serve("file", "disk.img", "--size", "1M")
    before = identity(disk)
    disk.stop()
    assert identity(serve("file", "disk.img")) == before
    assert "SN-17" in identity(serve("ram", "--size", "1M", "--serial", "SN-17"))[0]


def test_what_a_person_made_read_only_no_handler_writes_to(serve: Serve, tmp_path: Path) -> None:
    text = DROP_IN.replace("bytearray(device.size)", "bytearray(device.size); device.read_only = False")
    (tmp_path / "handler_mine.py").write_text(text)
    disk = serve("mine", "--handler-path", tmp_path, "--size", "1M", "--read-only")
    assert disk.said["read_only"] is True
    assert qemu_io(disk.uri, "write 0 4k").returncode != 0


# -- what is said ---------------------------------------------------------------------------------------------------

# Prints at import, in each hook, and past Python.
NOISY = (
    "import os\nprint('at import')\nos.write(1, b'past Python\\n')\n"
    + DROP_IN.replace("self.data = bytearray(device.size)", "self.data = bytearray(device.size); print('in open')")
    + "\n    @hookimpl\n    def close(self): print('in close'); os.system('echo from a child')\n"
)
NOISES = ("at import", "past Python", "in open", "in close", "from a child")


def test_what_a_handler_prints_is_not_what_we_say(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "handler_noisy.py").write_text(NOISY)
    disk = serve("noisy", "--handler-path", tmp_path, "--size", "1M")  # its first line is JSON
    said = disk.stop()
    assert (said.status, said.out) == (0, "")
    for noise in NOISES:
        assert noise in said.err


@pytest.mark.parametrize(
    "words", [("handlers", "--json"), ("check", "noisy", "--json"), ("handlers", "noisy", "--json")]
)
def test_what_a_handler_prints_when_it_is_loaded_is_not_what_we_say_either(
    command: Start, tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "handler_noisy.py").write_text(NOISY)
    out, err = command(*words, "--handler-path", tmp_path).communicate()
    assert json.loads(out)
    assert "at import\n" in err
    assert "past Python\n" in err


def test_the_output_of_the_command_that_is_run_is_its_own(command: Start, tmp_path: Path) -> None:
    (tmp_path / "handler_noisy.py").write_text(NOISY)
    process = command(
        "serve", "noisy", "--handler-path", tmp_path, "--size", "1M", "--run", "echo hello; echo $lun >&2"
    )
    out, err = process.communicate()
    assert out == "hello\n"
    assert "0\n" in err


def test_several_portals_are_all_listened_on(serve: Serve) -> None:
    disk = serve("ram", "--size", "1M", "--portal", "127.0.0.2:0", "--portal", "[::1]:0")
    assert [address.rpartition(":")[0] for address in disk.said["portals"]] == ["127.0.0.2", "[::1]", "127.0.0.1"]
    for address in disk.said["portals"]:
        assert run("iscsi-inq", f"iscsi://{address}/{disk.said['target']}/0").returncode == 0


def test_what_is_advertised_is_told_to_clients(serve: Serve, command: Start) -> None:
    mapped = ("--advertise", "disks.example.com:3261", "--advertise", "192.0.2.7")
    disk = serve("ram", "--size", "1M", *mapped)
    assert disk.uri == f"iscsi://disks.example.com:3261/{disk.said['target']}/0"
    (listening,) = disk.said["portals"]
    told = run("iscsi-ls", f"iscsi://{listening}").stdout
    assert {word.split(",")[0] for word in told.split() if word.startswith("Portal:")} == {
        "Portal:disks.example.com:3261", "Portal:192.0.2.7:3260",
    }  # fmt: skip
    process = command("serve", "ram", "--size", "1M", *mapped, "--run", "iscsi-inq $uri")
    assert "Vendor" in process.communicate()[0]  # that command is here
    assert process.returncode == 0


def test_an_address_that_nobody_can_reach_is_not_advertised(call: Call, tmp_path: Path) -> None:
    said = call("serve", "ram", "--size", "1M", "--advertise", "0.0.0.0:3260", "--state-dir", tmp_path)
    assert said.status == 2
    assert "clients need one that they can reach" in said.err


@pytest.mark.parametrize(("password", "warned"), [("a", True), ("elevenchars", True), ("twelve chars", False)])
def test_a_password_that_can_be_guessed_is_warned_of(command: Start, password: str, warned: bool) -> None:
    process = command("serve", "ram", "--size", "1M", "--chap", f"alice:{password}", "--run", "iscsi-inq $uri")
    _out, err = process.communicate()
    assert process.returncode == 0, err
    assert ("the password of alice is shorter than 12 characters" in err) is warned


def test_a_login_that_fails_is_shown(serve: Serve) -> None:
    disk = serve("ram", "--size", "1M", "--chap", "alice:rightpassword")
    run("iscsi-inq", disk.uri, LIBISCSI_CHAP_USERNAME="alice", LIBISCSI_CHAP_PASSWORD="wrongpassword")
    assert "login failed" in disk.stop().err


@pytest.mark.parametrize("words", [("file", ";tcmur_cmd_timeout=3;a.img"), ("ram", ";tcmur_cmd_time_out=x;")])
def test_a_wrong_option_of_the_runner_is_refused(command: Start, words: tuple[str, ...]) -> None:
    process = command("serve", *words, "--size", "1M")
    _out, err = process.communicate()
    assert process.returncode == 4
    assert "tcmur_cmd_time_out" in err


def test_a_handler_of_twenty_lines_without_a_size_says_what_to_do(command: Start, tmp_path: Path) -> None:
    (tmp_path / "handler_mine.py").write_text(DROP_IN)
    process = command("serve", "mine", "--handler-path", tmp_path)
    _out, err = process.communicate()
    assert process.returncode == 4
    assert "no size: give one (tcmu serve --size 1G)" in err


def test_a_wrong_default_of_tcmu_conf_is_named_with_its_line(command: Start, tmp_path: Path) -> None:
    (tmp_path / "tcmu.conf").write_text("[handlers]\n[[file]]\n\ndirct = yes\n")
    process = command("serve", "file", "a.img", "--size", "1M", "--config", tmp_path / "tcmu.conf")
    _out, err = process.communicate()
    assert process.returncode == 4
    assert f"{tmp_path}/tcmu.conf:4: unknown option 'dirct': did you mean 'direct'?" in err


def test_a_disk_that_could_not_be_saved_when_it_was_stopped_is_no_success(serve: Serve, tmp_path: Path) -> None:
    image = tmp_path / "images" / "disk"
    image.parent.mkdir()
    serving = serve("file", image, "--size", "1M", "--filter", "fault")
    fault = ("fault", "disk", "add", "flush -> write-error", "--state-dir", tmp_path / "state")
    done = run(sys.executable, "-m", "tcmu_core.cli.tcmu", *fault, PYTHONPATH=os.pathsep.join(sys.path))
    assert not done.returncode, done.stderr
    said = serving.stop()
    assert "the last flush failed" in said.err
    assert said.status == 1


# -- several disks ----------------------------------------------------------------------------------------------------


def test_several_disks_are_luns_of_one_target_each_with_its_own_ways(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "two words.img").write_bytes(b"\x55" * (2 << 20))
    disk = serve(
        "ram", "--size", "1M", "--name", "first",
        "--lun", "file 'two words.img' --read-only",
        "--lun", "ram --size 4M --block-size 4096 --name scratch --filter 'truncate;size=3M' --serial abc",
    )  # fmt: skip
    luns = disk.said["luns"]
    assert [(one["lun"], one["device"], one["size"], one["block_size"], one["read_only"]) for one in luns] == [
        (0, "first", 1 << 20, 512, False),
        (1, "disk1", 2 << 20, 512, True),
        (2, "scratch", 3 << 20, 4096, False),
    ]
    assert luns[0]["uri"] == disk.uri
    listing = run("iscsi-ls", "-s", f"iscsi://{disk.said['portal']}").stdout
    assert [line.split()[0] for line in listing.splitlines() if line.startswith("Lun:")] == ["Lun:0", "Lun:1", "Lun:2"]
    assert "abc" in run("iscsi-inq", "-e", "1", "-c", "128", luns[2]["uri"]).stdout
    assert qemu_io(luns[0]["uri"], "write -P 0x11 0 64k").returncode == 0
    assert qemu_io(luns[2]["uri"], "write -P 0x22 0 64k").returncode == 0
    assert "verification failed" not in qemu_io(luns[0]["uri"], "read -P 0x11 0 64k").stdout
    assert "verification failed" not in qemu_io(luns[2]["uri"], "read -P 0x22 0 64k").stdout
    assert (
        "verification failed"
        not in run("qemu-io", "-r", "-f", "raw", "-c", "read -P 0x55 0 64k", luns[1]["uri"]).stdout
    )
    assert disk.stop().status == 0


def test_the_command_finds_the_urls_of_all_disks(command: Start) -> None:
    process = command(
        "serve", "ram", "--size", "1M", "--lun", "ram --size 2M", "--run", "qemu-img info $uri1; echo $uri"
    )
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "virtual size: 2 MiB" in out
    assert out.splitlines()[-1].endswith("/0")


def test_each_disk_is_told_to_people(command: Start) -> None:
    process = command("serve", "ram", "--size", "1M", "--lun", "ram --size 2M", "--portal", "127.0.0.1:0")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(4)]
    assert [line.split(",")[0] for line in lines[::2]] == ["disk: 1 MiB", "disk1: 2 MiB"]
    assert [line.rstrip()[-2:] for line in lines[1::2]] == ["/0", "/1"]


@pytest.mark.parametrize(
    ("lun", "status", "reason"),
    [
        ("", 2, "the following arguments are required: HANDLER"),
        ("ram --size 1Q", 2, "argument --size: "),
        ("ram 'half", 2, "No closing quotation"),
        ("ram --portal :0", 2, "unrecognized arguments: --portal"),
        ("ram --size 1M --name disk", 4, "two disks have the same name"),
        ("nothing-of-the-kind", 3, "nothing-of-the-kind"),
    ],
)
def test_a_lun_that_can_not_be_is_refused(call: Call, tmp_path: Path, lun: str, status: int, reason: str) -> None:
    said = call("serve", "ram", "--size", "1M", "--lun", lun, "--state-dir", tmp_path)
    assert (said.status, reason in said.err) == (status, True), said.err
