"""One writer: the exclusive lock is held from opening to closing, refused to a second one, and taken from the dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tcmu_core import Busy, CommandError, ConfigError
from tcmu_core.testing import open_device
from tcmu_rbd import RbdHandler, owner
from tcmu_rbd.keeper import Standby
from tests.clusters.ceph import Ceph
from tests.clusters.processes import until
from tests.clusters.serving import serving


def test_a_second_writer_is_refused_and_told_who_has_it(make) -> None:
    image = make()
    with open_device(RbdHandler, image.cfgstring) as disk:
        with pytest.raises(ConfigError, match=r"in use by 127\.0\.0\.1:.*lock=break"):
            open_device(RbdHandler, image.cfgstring).__enter__()
        disk.write(0, b"m" * 512)
    with open_device(RbdHandler, image.cfgstring):
        pass


def test_readers_may_look_at_an_image_that_is_being_written(make) -> None:
    image = make()
    with (
        open_device(RbdHandler, image.cfgstring) as disk,
        open_device(RbdHandler, image.cfgstring, read_only=True) as reader,
    ):
        disk.write(0, b"r" * 512)
        assert reader.read(0, 512) == b"r" * 512


def test_who_lost_the_lock_writes_no_more_and_stands_by(make, ceph: Ceph) -> None:
    image = make()
    with open_device(RbdHandler, image.cfgstring) as loser:
        loser.write(0, b"1" * 512)
        with open_device(RbdHandler, f"{image.cfgstring};lock=break") as winner:
            winner.write(0, b"2" * 512)
            with pytest.raises(Busy):
                loser.write(0, b"3" * 512)
            until(lambda: says(loser) is Standby, "the loser stands by")
            assert winner.read(0, 512) == b"2" * 512
        until(lambda: says(loser) is None, "the loser has it back when the winner has let it go")
        assert loser.read(0, 512) == b"2" * 512
        loser.write(0, b"4" * 512)
    assert ceph.rbd("export", image.name, "-")[:512] == b"4" * 512


@pytest.mark.soak
def test_a_gateway_that_the_cluster_does_not_answer_sends_initiators_to_another_one(make, ceph: Ceph) -> None:
    image = make(more=";lock=move;osd_op_timeout=5")
    with open_device(RbdHandler, image.cfgstring) as one, open_device(RbdHandler, image.cfgstring) as two:
        one.write(0, b"1" * 512)
        with ceph.without("osd"):
            with pytest.raises(Standby):
                one.read(0, 512)
            assert says(two) is Busy  # it takes the disk, it thinks
            until(lambda: says(two) is Standby, "it can't")
            assert says(one) is Standby
        until(lambda: says(one) is None, "it is the first one's again")


def says(disk) -> type[CommandError] | None:
    try:
        disk.read(0, 512)
    except CommandError as error:
        return type(error)
    return None


def test_the_lock_of_a_process_that_was_killed_is_taken_at_once(make, tmp_path: Path) -> None:
    image = make()
    with serving(tmp_path, "rbd", image.cfgstring) as first:
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        # The cluster would need half a minute to notice; the note of its predecessor tells the next one.
        with open_device(RbdHandler, image.cfgstring) as disk:
            disk.write(0, b"n" * 512)


def test_a_note_speaks_of_its_writer_alone() -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    program = f"import os; os.getpid = lambda: {sleeper.pid}; from tcmu_rbd import owner; print(owner.note('a:1'))"
    noted = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert not owner.has_died(noted, "a:1")  # it lives
    sleeper.kill()
    sleeper.wait()
    assert owner.has_died(noted, "a:1")
    assert not owner.has_died(noted, "b:1")  # somebody else's lock
    assert not owner.has_died(noted.replace('"namespace": "', '"namespace": "x'), "a:1")  # of another container
    assert not owner.has_died(noted.replace('"boot": "', '"boot": "x'), "a:1")  # of another host
    for nonsense in ("", "{}", "[]", "null", '{"address": "a:1"}'):
        assert not owner.has_died(nonsense, "a:1")
    assert not owner.has_died(owner.note("a:1"), "a:1")
    assert os.getpid()
