"""The documentation builds as a site without a warning, and holds what the code says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tcmu_core.cli.tcmu import SUBCOMMANDS
from tcmu_core.handlers.registry import OURS, Handler
from tcmu_core.hookspecs import HOOKS
from tools.site.__main__ import build, gather
from tools.site.reference import PAGES, handlers


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pages, the generated ones too."""
    goal = tmp_path_factory.mktemp("site") / "pages"
    gather(goal)
    return goal


@pytest.fixture(scope="module")
def site(pages: Path) -> Path:
    """The site as it is read."""
    goal = pages.parent / "built"
    assert build(pages, goal) == 0
    return goal


def test_it_is_built_without_a_warning(pages, tmp_path, capfd):
    assert build(pages, tmp_path / "again") == 0
    assert "WARNING" not in capfd.readouterr().err


def test_every_document_is_a_page_of_it(pages, site):
    for page in pages.rglob("*.md"):
        name = page.relative_to(pages).with_suffix(".html")
        built = site / name.with_name(name.name.replace("README", "index"))
        assert built.exists(), page


def test_nothing_is_fetched_from_elsewhere_when_it_is_read(site):
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert 'src="http' not in text
        assert 'rel="stylesheet" href="http' not in text


def test_what_is_generated_can_be_searched(site):
    found = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    places = {entry["location"] for entry in found}
    assert {f"reference/hooks.html#{name}" for name in HOOKS} <= places
    assert {f"reference/handlers.html#{name}" for name in OURS} <= places
    assert {f"reference/commands.html#tcmu-{command.name}" for command in SUBCOMMANDS} <= places


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("handlers.md", "<code>save</code> | <code>PATH</code> | the image to write when the disk is closed"),
        ("configuration.md", "<code>memory_limit</code> | memory | <code>None</code> | Defaults for a handler"),
        ("errors.md", "<code>ENOSPC</code> | No space left on device | SpaceAllocationFailed | SpaceAllocationFailed"),
        ("hooks.md", "def read(device: Device, offset: int, buffers: list[memoryview])"),
        ("filters.md", "<code>directory</code>"),
        ("commands.md", "--chap-file FILE"),
    ],
)
def test_a_generated_page_says_what_the_code_says(pages, page, said):
    assert set(PAGES) == {file.name for file in (pages / "reference").iterdir()}
    assert said in (pages / "reference" / page).read_text()


def test_a_handler_that_is_broken_is_not_left_out_in_silence():
    with pytest.raises(ValueError, match="handler sad: it does not load"):
        handlers([Handler("sad", "tcmu-sad 1", error="it does not load")])


@pytest.mark.parametrize("link", ["docs/nowhere.md", "docs/admin.md#nothing-of-that-name"])
def test_a_link_that_leads_nowhere_fails_it(link, tmp_path, capfd):
    gather(tmp_path / "pages")
    with (tmp_path / "pages" / "README.md").open("a") as file:
        file.write(f"\n[see]({link})\n")
    assert build(tmp_path / "pages", tmp_path / "built") == 1
    assert link.partition("#")[2] or link in capfd.readouterr().err
