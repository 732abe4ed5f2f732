"""What was written for an older guide goes on working; what was written for another API says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcmu_core import HandlerError
from tcmu_core.handlers.api import API
from tcmu_core.handlers.registry import Registry
from tcmu_core.testing import check_handler, open_device

OLD = Path(__file__).parent / "old"
NAMES = ["module", "six", "futures", "reader"]
SOURCE = """
from tcmu_core import hookimpl

class Handler:
    tcmu_api = {}

    @hookimpl
    def open(self, device):
        device.size = 1 << 20

    @hookimpl
    def read(self, buffers):
        pass
"""


@pytest.mark.parametrize("name", NAMES)
def test_an_old_handler_keeps_every_promise_still(name: str, tmp_path: Path) -> None:
    handler = Registry([OLD]).get(name)
    path, size = (str(tmp_path / "disk"), 1 << 20) if name == "six" else ("", None if name == "reader" else 1 << 20)
    claims = ["not told of errors"] if name == "six" else []  # that a failed flush fails for ever came later
    report = check_handler(
        lambda: open_device(handler.factory, path, size=size), persistent=name == "six", examples=5, claims=claims
    )
    assert {"check_reading", "check_capacity through the ring"} <= set(report.checked)


def test_every_old_handler_is_tested() -> None:
    assert {path.stem for path in OLD.glob("*.py")} == {
        "handler_module",
        "handler_six",
        "handler_futures",
        "handler_reader",
    }


@pytest.mark.parametrize("said", [API, (API, API), (1, API + 5)])
def test_a_handler_for_this_version_is_loaded(tmp_path: Path, said: object) -> None:
    (tmp_path / "handler_some.py").write_text(SOURCE.format(said))
    assert not Registry([tmp_path]).get("some").error


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            API + 1,
            f"written for version {API + 1} of the handler API, and this .* {API}: `pip install --upgrade tcmu-core`",
        ),
        ((API + 1, API + 2), f"written for versions {API + 1} to {API + 2} of the handler API"),
        ("'>=1'", "tcmu_api is '>=1': write the version that it was written for, tcmu_api = 1"),
        ((1,), r"tcmu_api is \(1,\)"),
        ((2, 1), r"tcmu_api is \(2, 1\)"),
        (0, "tcmu_api is 0"),
        (True, "tcmu_api is True"),
    ],
)
def test_another_one_is_listed_with_what_to_do(tmp_path: Path, said: object, told: str) -> None:
    (tmp_path / "handler_some.py").write_text(SOURCE.format(said))
    with pytest.raises(HandlerError, match=told):
        Registry([tmp_path]).get("some")


def test_one_that_is_too_old_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tcmu_core.handlers.api.API", 3)
    (tmp_path / "handler_some.py").write_text(SOURCE.format((1, 2)))
    with pytest.raises(HandlerError, match=r"versions 1 to 2 .* has 3: install a newer version of it, or an older"):
        Registry([tmp_path]).get("some")


def test_what_has_changed_since_is_no_reason_for_another_complaint(tmp_path: Path) -> None:
    (tmp_path / "handler_some.py").write_text(SOURCE.format(9).replace("def read", "def reed"))
    with pytest.raises(HandlerError, match="written for version 9"):
        Registry([tmp_path]).get("some")
