"""What `tcmu create` refuses before it asks the kernel."""

from __future__ import annotations

import pytest

from tcmu_core.cli.tcmu import main


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["create", "x", "8M", "ram", "/tmp/a:b"], 4, "it holds a colon"),
        (["create", "x", "8M", "ram", "/tmp/a,b"], 4, "it holds a comma"),
        (["create", "x", "8M", "file", "/srv/a b"], 4, "it holds a space"),
        (["create", "x", "8M", "ram", "x" * 300], 4, "longer than the 255 bytes"),
        (["create", "x", "8M", "ram", ";tcmur_cmd_time_out=soon;"], 4, "'soon' is no number of seconds"),
        (["create", "x", "much", "ram"], 2, "'much' is no size"),
        (["create", "x"], 2, "required: SIZE, HANDLER"),
        (["export"], 2, "required: NAME"),
    ],
)
def test_what_can_not_be_is_said_at_once(
    arguments: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        ended = main(arguments)
    except SystemExit as usage:
        ended = int(usage.code or 0)
    assert says in capsys.readouterr().err
    assert ended == status


@pytest.mark.parametrize("command", ["create", "delete", "resize", "export", "unexport", "devices"])
def test_each_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: tcmu {command}" in capsys.readouterr().out
