"""What is to be opened, as every way in says it."""

from __future__ import annotations

import pytest

from tcmu_core import ConfigError
from tcmu_core.disk.spec import DiskSpec


def test_a_cfgstring_is_taken_apart_into_the_runners_part_and_the_handlers():
    spec = DiskSpec("file").configured(";tcmur_cmd_time_out=30;/disk.img;direct=1")
    assert (spec.cfgstring, spec.patience) == ("/disk.img;direct=1", 30)
    assert DiskSpec("file").configured("/disk.img").patience == 0


@pytest.mark.parametrize(
    ("cfgstring", "message"),
    [
        (";tcmur_cmd_timeout=30;/x", "did you mean 'tcmur_cmd_time_out'"),
        (";tcmur_cmd_time_out=soon;/x", "'soon' is no number of seconds"),
        (";tcmur_cmd_time_out=3", "must end with ';'"),
    ],
)
def test_a_wrong_option_of_the_runner_is_named(cfgstring, message):
    with pytest.raises(ConfigError, match=message):
        DiskSpec("file").configured(cfgstring)


def test_its_title_is_what_log_lines_have():
    assert DiskSpec("file", name="a").title == "file/a"
