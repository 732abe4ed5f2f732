"""What goes wrong takes nobody else down: bad opens, handlers that hang, crash, leak, killed workers and runners."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator

import pytest

from tcmu_core.daemon.managed import CLOSE_SECONDS, MAX_CRASHES
from tests.kernel.host import CORE, START_SECONDS, Host
from tests.vm import Job, Result

pytestmark = pytest.mark.vm

MIB = 1 << 20
FIO = (
    "fio --name=v --filename={disk} --rw=randrw --bs=4k --size=16M --verify=crc32c --verify_fatal=1 --ioengine=libaio"
    " --direct=1 --iodepth=8 --verify_backlog=256 --time_based --runtime={seconds} --output-format=json"
)


def verified(result: Result) -> None:
    """Hold that fio has ended without an error, and read what it wrote."""
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert "verify" not in result.stderr
    (job,) = json.loads(result.stdout[result.stdout.index("{") :])["jobs"]
    assert job["error"] == 0


def progress(host: Host, *disks: str, by: int = 20) -> None:
    """Wait until every disk has served more requests than `by`."""

    def served() -> list[int]:
        return [sum(map(int, host.sh(f"cat /sys/block/{disk[5:]}/stat").split()[0:5:4])) for disk in disks]

    before = served()
    host.wait(
        lambda: all(now > then + by for now, then in zip(served(), before, strict=True)), 120, f"{disks} serve requests"
    )


def kill_worker(host: Host, name: str) -> None:
    """Kill the worker of a device and wait until the next one serves."""
    victim = host.worker(name)
    host.sh(f"kill -9 {victim}")
    host.wait(lambda: host.worker(name) != victim, 60, f"another worker serves {name}")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("moody/open=nospace", errno.ENOSPC),
        ("moody/open=raise", errno.EIO),
        ("moody/open=exit", errno.EIO),
        ("moody/bad", errno.EINVAL),
        ("file//nowhere/at/all", errno.EINVAL),
        ("nosuch/x", errno.ENOENT),
        ("mood/x", errno.ENOENT),  # a prefix of a handler's name is another name
    ],
)
def test_an_open_that_fails_gives_its_errno_and_leaves_nothing(host: Host, config: str, says: int) -> None:
    made = host.create("no", 8 * MIB, config)
    assert made.returncode != 0
    script = (
        "import os,sys\n"
        f"os.makedirs('{CORE}/user_1/no')\nd='{CORE}/user_1/no/'\n"
        "w=lambda f,v: os.write(os.open(d+f,os.O_WRONLY),v.encode())\n"
        f"w('control','dev_size={8 * MIB}'); w('control','dev_config={config}')\n"
        "try:\n w('enable','1')\nexcept OSError as e:\n print(e.errno)\n"
        "os.rmdir(d)\n"
    )
    assert host.run(["/usr/bin/python3", "-c", script]).stdout.strip() == str(says)
    assert host.sh("ls /dev/uio* 2> /dev/null | wc -l").strip() == "0"
    assert host.create("yes", 8 * MIB, "ram/").returncode == 0


def test_an_open_that_hangs_holds_up_nobody(host: Host) -> None:
    hanging = host.machine.spawn(
        f"mkdir -p {CORE}/user_9/hang; cd {CORE}/user_9/hang; echo -n dev_size={8 * MIB} > control;"
        "echo -n dev_config=moody/open=hang > control; echo -n 1 > enable"
    )
    host.wait(lambda: "uio" in host.sh("ls /dev"), 30, "the device is being opened")
    assert host.create("other", 8 * MIB, "ram/").returncode == 0
    assert host.remove("other").returncode == 0
    assert hanging.poll() is None
    worker = host.sh("pgrep -f '^tcmu:hang' || ps -eo pid,comm | awk '$2 == \"tcmu:hang\" {print $1}'").split()[0]
    host.sh(f"kill -9 {worker}")
    assert hanging.wait(30).returncode != 0
    host.sh(f"rmdir {CORE}/user_9/hang")


# What the log says of a device whose handler does that.
SIGNS = {"exit": "the worker of moody/read=exit ended", "hang": "the worker of moody/read=hang has not answered"}


@pytest.mark.parametrize("mood", ["raise", "exit", "hang"])
def test_a_handler_that_fails_in_a_read_harms_its_own_device_alone(host: Host, mood: str) -> None:
    # The kernel itself ends a command that its handler never answers.
    assert host.create("ill", 8 * MIB, f"moody/read={mood}", then="echo -n 2 > attrib/cmd_time_out").returncode == 0
    assert host.create("well", 8 * MIB, "ram/", hba=2).returncode == 0
    ill, well = host.plug("ill"), host.plug("well", hba=2, number=2)
    reading = host.machine.spawn(f"dd if={ill} of=/dev/null bs=4k skip=300 count=1 iflag=direct")
    host.sh(f"dd if={well} of=/dev/null bs=1M count=8 iflag=direct 2> /dev/null")
    if mood == "raise":
        assert reading.wait(60).returncode != 0
        host.sh(f"dd if={ill} of=/dev/null bs=4k count=1 iflag=direct 2> /dev/null")
    else:
        host.wait(lambda: f"/ill: {SIGNS[mood]}" in host.log(), 60, "what the handler does is noticed")
        host.sh(f"dd if={well} of=/dev/null bs=1M count=8 iflag=direct 2> /dev/null")
        reading.kill()
    host.unplug(number=2)
    assert host.remove("well", hba=2).returncode == 0


@pytest.fixture
def limited(host: Host) -> Iterator[Host]:
    """A host whose runner allows moody workers 96 MiB."""

    def configure(more: str) -> None:
        read = host.log().count("new settings")
        host.sh(f"printf 'log_level = 4\\n{more}' > {host.config}")
        host.wait(lambda: host.log().count("new settings") > read, 30, "the configuration is read again")

    configure("[handlers]\\n[[moody]]\\nmemory_limit = 96M\\n")
    yield host
    configure("")


def test_a_handler_that_leaks_is_replaced_at_its_limit_and_costs_no_error(limited: Host) -> None:
    host = limited
    assert host.create("leaky", 8 * MIB, "moody/read=leak").returncode == 0
    assert host.create("well", 32 * MIB, "file//var/tmp/t/well.img", hba=2).returncode == 0
    leaky, well = host.plug("leaky"), host.plug("well", hba=2, number=2)
    first = host.worker("leaky")
    reading = host.machine.spawn(
        f"fio --name=r --filename={leaky} --rw=randread --bs=4k --offset=2M --rate_iops=4 --direct=1 --time_based"
        " --runtime=10 --output-format=json"
    )
    other = host.machine.spawn(FIO.format(disk=well, seconds=10))
    verified(reading.wait(120))
    verified(other.wait(120))
    assert "its memory_limit is 96 MiB" in host.log()
    assert host.worker("leaky") != first
    assert "the worker of moody/read=leak ended: it took" in host.log()


def test_a_handler_that_takes_all_memory_is_killed_alone_and_costs_no_error(host: Host) -> None:
    assert host.runner is not None
    runner = host.runner.pid
    # As the service has it; workers that inherited this would go last.
    host.sh(f"echo -900 | tee /proc/{runner}/oom_score_adj /proc/$(pgrep -P {runner})/oom_score_adj")
    assert host.create("hog", 8 * MIB, "moody/read=hog+once=/var/tmp/t/hogged").returncode == 0
    assert host.create("well", 32 * MIB, "file//var/tmp/t/well.img", hba=2).returncode == 0
    hog, well = host.plug("hog"), host.plug("well", hba=2, number=2)
    before = host.worker("hog"), host.worker("well")
    other = host.machine.spawn(FIO.format(disk=well, seconds=10))
    host.sh(f"dd if={hog} of=/dev/null bs=4k skip=600 count=1 iflag=direct 2> /dev/null")
    verified(other.wait(120))
    killed = host.sh("dmesg | grep -o 'Killed process [0-9]* ([^)]*)'").splitlines()
    assert killed == [f"Killed process {before[0]} (tcmu:hog)"]
    assert host.worker("hog") != before[0]
    assert host.worker("well") == before[1]
    assert host.runner.poll() is None


def test_a_worker_that_hangs_is_killed_by_hand_and_costs_no_error(host: Host) -> None:
    assert host.create("hung", 8 * MIB, "moody/read=hang+once=/var/tmp/t/hung").returncode == 0
    disk = host.plug("hung")
    reading = host.machine.spawn(f"dd if={disk} of=/dev/null bs=4k skip=600 count=1 iflag=direct")
    host.wait(lambda: host.run("test -e /var/tmp/t/hung").returncode == 0, 30, "the handler hangs")
    kill_worker(host, "hung")
    assert reading.wait(60).returncode == 0


@pytest.mark.parametrize(
    ("mood", "says"), [("hang", "the worker of moody/close=hang does not end: killed"), ("raise", "moody today")]
)
def test_a_close_that_fails_ends_in_bounded_time_and_harms_nobody(host: Host, mood: str, says: str) -> None:
    assert host.create("ill", 8 * MIB, f"moody/close={mood}").returncode == 0
    assert host.create("well", 8 * MIB, "ram/", hba=2).returncode == 0
    well = host.plug("well", hba=2, number=2)
    before = len(host.log())
    removal = host.machine.spawn(f"rmdir {CORE}/user_1/ill")
    host.sh(f"dd if={well} of=/dev/null bs=1M count=8 iflag=direct 2> /dev/null")
    if mood == "hang":
        assert removal.poll() is None
    assert removal.wait(CLOSE_SECONDS + 20).returncode == 0
    assert says in host.log()[before:]
    assert host.sh("ps -eo comm | grep ^tcmu:").split() == ["tcmu:well"]
    assert host.sh("ls /dev/uio* | wc -l").strip() == "1"


def under_load(host: Host) -> tuple[list[str], list[Job]]:
    """Make two devices; return them, and the fio that writes and verifies each until `end` ends it.

    It leaves some of the emulated processors to those who are to start meanwhile.
    """
    for number, name in ((1, "one"), (2, "two")):
        assert host.create(name, 32 * MIB, f"file//var/tmp/t/{name}.img", hba=number).returncode == 0
    disks = [host.plug("one", hba=1, number=1), host.plug("two", hba=2, number=2)]
    trigger = " --rate_iops=200 --trigger-file=/var/tmp/t/end-{number} --aux-path=/var/tmp/t"
    jobs = [
        host.machine.spawn(FIO.format(disk=disk, seconds=600) + trigger.format(number=number))
        for number, disk in enumerate(disks)
    ]
    progress(host, *disks)
    return disks, jobs


def end(host: Host, jobs: list[Job]) -> None:
    """End each fio, which must have met no error."""
    assert [job.poll() for job in jobs] == [None, None]
    host.sh("touch /var/tmp/t/end-0 /var/tmp/t/end-1")
    for job in jobs:
        verified(job.wait(120))


def test_workers_that_are_killed_under_load_cost_no_error_and_stall_no_other_device(host: Host) -> None:
    disks, jobs = under_load(host)
    served = host.worker("two")
    for _ in range(3):
        progress(host, disks[0])
        host.sh(f"kill -STOP {host.worker('one')}")
        progress(host, disks[1])  # while nobody serves the first
        kill_worker(host, "one")
    progress(host, *disks)
    end(host, jobs)
    assert host.worker("two") == served


@pytest.mark.soak
def test_ten_thousand_acknowledged_writes_survive_eight_kills(host: Host) -> None:
    assert host.create("one", 64 * MIB, "file//var/tmp/t/one.img").returncode == 0
    disk = host.plug("one")
    writing = host.machine.spawn(
        f"fio --name=v --filename={disk} --rw=randwrite --bs=4k --size=40M --verify=crc32c --verify_fatal=1"
        " --ioengine=libaio --direct=1 --iodepth=8 --output-format=json"
    )
    for _ in range(MAX_CRASHES):
        progress(host, disk, by=500)
        kill_worker(host, "one")
    result = writing.wait(300)
    verified(result)
    (job,) = json.loads(result.stdout[result.stdout.index("{") :])["jobs"]
    assert job["write"]["total_ios"] == job["read"]["total_ios"] == 40 * MIB // 4096


def test_a_supervisor_that_is_killed_under_load_costs_no_error_and_stalls_no_device(host: Host) -> None:
    disks, jobs = under_load(host)
    for _ in range(2):
        assert host.runner is not None
        before = {name: host.worker(name) for name in ("one", "two")}
        host.runner.kill()
        host.runner.wait(30)
        host.runner = None
        progress(host, *disks)  # while there is no supervisor
        host.start()
        host.wait(lambda: host.log().count("is served on by process") == 2, START_SECONDS, "both devices are adopted")
        assert {name: host.worker(name) for name in before} == before
        progress(host, *disks)
    end(host, jobs)


def test_a_worker_that_hangs_when_its_supervisor_dies_is_replaced_by_the_next(host: Host) -> None:
    assert host.create("hung", 8 * MIB, "moody/read=hang+once=/var/tmp/t/hung").returncode == 0
    disk = host.plug("hung")
    reading = host.machine.spawn(f"dd if={disk} of=/dev/null bs=4k skip=600 count=1 iflag=direct")
    host.wait(lambda: host.run("test -e /var/tmp/t/hung").returncode == 0, 30, "the handler hangs")
    before = host.worker("hung")
    assert host.runner is not None
    host.runner.kill()
    host.runner.wait(30)
    assert host.sh("ps -eo comm | grep ^tcmu:").split() == ["tcmu:hung"]
    host.start()
    host.wait(lambda: "is served by process" in host.log(), START_SECONDS, "the device is served")
    assert host.worker("hung") != before
    assert reading.wait(60).returncode == 0


def test_sigterm_under_load_ends_in_bounded_time_and_the_next_start_carries_on(host: Host) -> None:
    assert host.create("load", 32 * MIB, "file//var/tmp/t/load.img").returncode == 0
    disk = host.plug("load")
    job = host.machine.spawn(FIO.format(disk=disk, seconds=12))
    progress(host, disk)
    assert host.stop(30).returncode == 0
    assert host.sh("ps -eo comm | grep -c ^tcmu: || true").strip() == "0"
    host.start()
    result = job.wait(120)
    assert result.returncode == 0, result.stdout[-2000:]


def test_without_a_runner_devices_can_be_removed_and_made_and_the_next_start_serves_them(host: Host) -> None:
    assert host.create("old", 8 * MIB, "ram/").returncode == 0
    assert host.stop().returncode == 0
    assert host.remove("old").returncode == 0
    assert host.create("new", 8 * MIB, "ram/").returncode == 0
    host.start()
    disk = host.plug("new")
    host.sh(f"dd if={disk} of=/dev/null bs=1M count=8 iflag=direct")
    shown = f"{CORE}/user_1/new/attrib/emulate_write_cache"  # the kernel began with 0
    host.wait(lambda: host.sh(f"cat {shown}").strip() == "1", 30, "the write cache is shown")
    assert "[ERROR]" not in host.log()


def test_a_device_is_removed_while_it_is_used(host: Host) -> None:
    assert host.create("gone", 32 * MIB, "file//var/tmp/t/gone.img").returncode == 0
    disk = host.plug("gone")
    job = host.machine.spawn(FIO.format(disk=disk, seconds=30))
    progress(host, disk)
    host.unplug()
    assert host.remove("gone").returncode == 0
    job.wait(60)
    assert host.sh("ls /dev/uio* 2> /dev/null | wc -l").strip() == "0"


def test_a_second_runner_says_that_there_is_one(host: Host) -> None:
    import sys

    result = host.machine.run([sys.executable, "-m", "tcmu_core.cli.runner", "--config", host.config, "-l", "/tmp"])
    assert result.returncode == 1
    assert "already running" in result.stderr


def test_a_hangup_opens_the_log_file_anew_everywhere(host: Host) -> None:
    assert host.create("logged", 8 * MIB, "ram/").returncode == 0
    log = host.log_dir / "tcmu-runner.log"
    host.sh(f"mv {log} {log}.1")
    assert host.runner is not None
    host.runner.send_signal(1)
    host.wait(lambda: host.run(f"test -s {log}; test -e {log}").returncode == 0 or None, 20, "the new file is there")
    assert host.create("later", 8 * MIB, "ram/", hba=2).returncode == 0
    assert "later" in host.sh(f"cat {log}")
