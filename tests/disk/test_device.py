"""What a handler sees of its disk."""

from __future__ import annotations

import logging

import pytest

from tcmu_core import Device
from tcmu_core.progress import Progress


def test_offload_gives_results_and_errors():
    device = Device("disk", "test")
    assert device.offload(divmod, 7, 2).result() == (3, 1)
    with pytest.raises(ZeroDivisionError):
        device.offload(divmod, 7, 0).result()
    device.shutdown()


def test_a_devices_log_lines_begin_with_its_name(caplog):
    with caplog.at_level(logging.INFO, "tcmu.handler.test"):
        Device("disk", "test").log.info("hello")
    assert caplog.records[0].device == "test/disk"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("blocksize", "block_size"), ("readonly", "read_only"), ("sizes", "size"), ("thraeds", "threads")],
)
def test_an_attribute_that_is_misspelt_is_told_what_may_be_meant(wrong, right):
    with pytest.raises(AttributeError, match=f"a device has no {wrong!r}: did you mean {right!r}"):
        setattr(Device("disk", "test"), wrong, 1)


def test_what_is_the_handlers_own_has_its_place():
    device = Device("disk", "test")
    with pytest.raises(AttributeError, match=r"what is the handler's own goes into device\.state"):
        device.connection = object()
    device.state = device
    assert device.state is device


def test_a_device_that_a_person_made_read_only_stays_so():
    device = Device("disk", "test", read_only=True)
    device.read_only = False
    assert device.read_only is True


def test_one_that_the_handler_made_read_only_may_change():
    device = Device("disk", "test")
    device.read_only = True
    device.read_only = False
    assert device.read_only is False


def test_what_takes_long_is_told_and_kept_until_it_is_over():
    device = Device("disk", "test")
    told = []
    device.reported = told.append
    device.progress(3, 8, "loading")
    assert device.doing == Progress("loading", 3, 8)
    device.progress(8, 8, "loading")
    assert device.doing is None
    assert told == [Progress("loading", 3, 8), None]


def test_what_takes_long_is_in_the_log_with_the_devices_name(caplog, monkeypatch):
    monkeypatch.setattr("tcmu_core.progress.FIRST_SECONDS", 0.0)
    device = Device("disk", "test")
    with caplog.at_level(logging.INFO, "tcmu.handler.test"):
        device.progress(1, 8, "loading")
        device.progress(2, 8, "loading")
    assert [(record.device, record.message) for record in caplog.records] == [("test/disk", "loading, 25 %")]
