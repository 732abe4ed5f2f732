"""The virtual machine in which tests run on a real kernel keeps its own promises."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm import BootFailed, CommandFailed, CommandTimeout, Machine, MachineDied
from tests.vm.kernel import Kernel, KernelNotFound

pytestmark = pytest.mark.vm

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 60.0


@pytest.fixture(scope="module")
def vm() -> Iterator[Machine]:
    with Machine() as machine:
        yield machine


@pytest.mark.parametrize("status", [0, 1, 77, 255])
def test_exit_status_comes_back(vm: Machine, status: int) -> None:
    assert vm.run(f"exit {status}").returncode == status


def test_death_by_signal_is_128_plus_its_number(vm: Machine) -> None:
    assert vm.run("kill -SEGV $$").returncode == 128 + signal.SIGSEGV


def test_missing_program_is_127(vm: Machine) -> None:
    assert vm.run(["no-such-program"]).returncode == 127


def test_both_streams_come_back_apart_and_byte_for_byte(vm: Machine) -> None:
    program = r"import os; os.write(1, bytes(range(256)) * 1000 + b'\r\n'); os.write(2, b'two\n\xff')"
    result = vm.run([sys.executable, "-c", program], check=True)
    assert result.stdout.encode(errors="surrogateescape") == bytes(range(256)) * 1000 + b"\r\n"
    assert result.stderr.encode(errors="surrogateescape") == b"two\n\xff"


def test_arguments_are_not_interpreted(vm: Machine) -> None:
    words = ["a b", "$HOME", "'", '"', "\\", "*", "line\nbreak", "", "é"]
    assert vm.run(["printf", "%s|", *words]).stdout == "".join(f"{word}|" for word in words)


def test_stdin_directory_and_environment_reach_the_command(vm: Machine) -> None:
    result = vm.run('cat; pwd; echo "$WORD"', stdin="in\n", cwd="/usr/share", env={"WORD": "a 'b' $c"})
    assert result.stdout == "in\n/usr/share\na 'b' $c\n"


def test_checkout_is_the_working_directory(vm: Machine) -> None:
    assert vm.run(["pwd"]).stdout == f"{ROOT}\n"


def test_check_raises_with_the_output(vm: Machine) -> None:
    with pytest.raises(CommandFailed, match="the reason") as caught:
        vm.run("echo the reason >&2; exit 3", check=True)
    assert caught.value.result.returncode == 3


def test_venv_python_runs_in_the_guest(vm: Machine) -> None:
    program = "import os, pluggy, sys; print(sys.prefix, os.uname().release)"
    assert vm.run([sys.executable, "-c", program]).stdout.split() == [sys.prefix, vm.kernel.release]


def test_guest_cannot_change_the_host(vm: Machine) -> None:
    probe = Path(f"/var/tmp/tcmu-vm-harness-{os.getpid()}")
    victim = probe / "victim"
    probe.mkdir()
    try:
        victim.write_text("host\n")
        changed = vm.run(
            f"cat {victim}; echo guest >{victim}; touch {probe}/new; chmod 0 {probe}; cat {victim}; ls {probe}"
        )
        assert changed.stdout == "host\nguest\nnew\nvictim\n"
        assert vm.run(f"rm -r {probe} && ! ls {probe}").returncode == 0
        assert (victim.read_text(), os.listdir(probe), probe.stat().st_mode & 0o700) == ("host\n", ["victim"], 0o700)
    finally:
        victim.unlink()
        probe.rmdir()


def test_share_works_both_ways(vm: Machine) -> None:
    ours, theirs = vm.share / "ours", vm.share / "theirs"
    for word in ("first", "second and longer", "3rd"):
        ours.write_text(word)
        assert vm.run(["cat", ours]).stdout == word
        vm.run(f"printf %s '{word}' >{theirs}", check=True)
        assert theirs.read_text() == word


def test_temporary_directories_are_the_guests_own(vm: Machine, tmp_path: Path) -> None:
    # pytest's own directory is below the host's /tmp, where the guest looks in vain.
    assert vm.run(["mkdir", "-p", tmp_path / "guest"]).returncode == 0
    assert not (tmp_path / "guest").exists()
    assert vm.run("ls /run/systemd /dev/shm/guest").returncode == 2


def test_a_command_past_its_timeout_is_killed_with_its_children_and_the_machine_lives_on(vm: Machine) -> None:
    # The child leaves the session and has a name of its own, as a daemon does.
    job = vm.spawn("cp /usr/bin/sleep /tmp/straggler; setsid /tmp/straggler 600 & echo begun; sleep 600")
    vm.run("until pidof straggler; do sleep 0.1; done", timeout=PATIENCE, check=True)
    with pytest.raises(CommandTimeout, match="begun") as caught:
        job.wait(timeout=0)
    assert caught.value.result.returncode == 128 + signal.SIGKILL
    assert vm.run(["pidof", "straggler"]).returncode == 1


def test_run_raises_after_its_timeout(vm: Machine) -> None:
    with pytest.raises(CommandTimeout, match=r"killed after 0\.5 s: 'sleep 600'"):
        vm.run("sleep 600", timeout=0.5)


def test_a_daemon_outlives_the_command_that_started_it(vm: Machine) -> None:
    vm.run("cp /usr/bin/sleep /tmp/daemon; setsid /tmp/daemon 600 & until pidof daemon; do sleep 0.1; done", check=True)
    assert vm.run(["pkill", "-x", "daemon"]).returncode == 0


def test_orphans_are_reaped(vm: Machine) -> None:
    pid = vm.run("(sleep 0.1 & echo $!)", check=True).stdout.strip()
    vm.run(f"while [ -e /proc/{pid} ]; do sleep 0.1; done", timeout=PATIENCE, check=True)


def test_background_command_is_watched_and_ended_by_a_signal(vm: Machine) -> None:
    job = vm.spawn("trap 'echo bye; exit 4' TERM; echo up; while :; do sleep 0.1; done")
    vm.run(f"until grep -q up {job.stdout_path}; do sleep 0.1; done", check=True)
    assert job.poll() is None
    job.terminate()
    assert (job.wait().returncode, job.stdout) == (4, "up\nbye\n")


def test_background_python_is_interrupted_as_by_control_c(vm: Machine) -> None:
    job = vm.spawn([sys.executable, "-c", "print('up', flush=True); import signal; signal.pause()"])
    vm.run(f"until grep -q up {job.stdout_path}; do sleep 0.1; done", check=True)
    job.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in job.wait().stderr


def test_output_of_a_command_is_seen_while_it_runs(vm: Machine) -> None:
    job = vm.spawn(f"echo early; until [ -e {vm.share}/seen ]; do sleep 0.1; done; echo late")
    vm.run(f"until grep -q early {job.stdout_path}; do sleep 0.1; done", check=True)
    assert job.stdout == "early\n"
    (vm.share / "seen").touch()
    assert job.wait().stdout == "early\nlate\n"


def test_target_modules_load(vm: Machine) -> None:
    vm.modprobe("target_core_user", "tcm_loop", "iscsi_target_mod")
    assert vm.run(["ls", "/sys/kernel/config/target"]).stdout.split() == ["core", "dbroot", "version"]


def test_scsi_disk_of_the_guest_appears_without_udev(vm: Machine) -> None:
    vm.run(
        "modprobe scsi_debug dev_size_mb=8 && until [ -b /dev/sda ]; do sleep 0.1; done; rmmod scsi_debug", check=True
    )


def test_missing_module_is_reported(vm: Machine) -> None:
    with pytest.raises(CommandFailed, match="no_such_module"):
        vm.modprobe("no_such_module")


def test_machine_leaves_no_process_and_no_file_and_a_panic_is_told() -> None:
    with Machine(cpus=1, memory="512M") as machine:
        share, pid = machine.share, machine.pid
        with pytest.raises(MachineDied, match="sysrq triggered crash"):
            machine.run("echo c >/proc/sysrq-trigger")
        with pytest.raises(MachineDied):
            machine.run("true")
    assert not share.parent.exists()
    assert not Path(f"/proc/{pid}").exists()
    assert "Kernel panic" in machine.console()


def test_machine_dies_with_the_test_process(tmp_path: Path) -> None:
    keep = tmp_path / "machine"
    script = (
        "from pathlib import Path; from tests.vm import Machine\n"
        f"with Machine(cpus=1, memory='512M', keep=Path({str(keep)!r})) as vm: print(vm.pid, flush=True); input()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout is not None
        qemu = os.pidfd_open(int(owner.stdout.readline()))
        try:
            owner.kill()
            assert select.select([qemu], [], [], PATIENCE)[0] == [qemu]
        finally:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(qemu, signal.SIGKILL)
            os.close(qemu)


def test_failed_boot_is_told_and_keeps_no_image(tmp_path: Path) -> None:
    keep = tmp_path / "machine"
    with pytest.raises(BootFailed, match="not ready after 0 s"):
        Machine(cpus=1, boot_timeout=0, keep=keep).start()
    assert not {"vmlinux", "initramfs"} & set(os.listdir(keep))


def test_cloud_kernel_is_passed_over(tmp_path: Path) -> None:
    for release in ("6.1.0-9-amd64", "6.1.0-10-amd64", "6.12.0-1-cloud-amd64", "6.12.0-2-amd64"):
        (tmp_path / "boot").mkdir(exist_ok=True)
        (tmp_path / "boot" / f"vmlinuz-{release}").touch()
        (tmp_path / "lib/modules" / release).mkdir(parents=True)
        if release != "6.12.0-2-amd64":  # removed but not purged
            (tmp_path / "lib/modules" / release / "modules.dep").touch()
    assert Kernel.newest(tmp_path).release == "6.1.0-10-amd64"


def test_machine_without_a_kernel_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(KernelNotFound, match="apt-get install linux-image-amd64"):
        Kernel.newest(tmp_path)


def test_command_line_relays_output_and_status(tmp_path: Path) -> None:
    console = tmp_path / "console"
    command = [sys.executable, "-m", "tests.vm", "--cpus", "1", "--keep-console", str(console), "--"]
    ran = subprocess.run(
        [*command, "sh", "-c", "pwd; echo err >&2; echo '<2>seen' >/dev/kmsg; exit 7"],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout, ran.stderr) == (7, f"{ROOT}\n", "err\n")
    assert "seen" in console.read_text()
