"""`python -m tools.site DIRECTORY`: build the site there; a warning fails it."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.site.reference import PAGES

ROOT = Path(__file__).parents[2]
CONFIGURATION = Path(__file__).with_name("mkdocs.yml")
# The repository's own pages keep their places, so that the links between them hold in the site too.
PAGES_OF_THE_REPOSITORY = [
    *("*.md", "LICENSE", "conf/*", "docs/**/*", "plugins/*/README.md", "examples/*/README.md"),
    *("packages/*/README.md", "packages/image/*", "benchmarks/*.md", "benchmarks/*.svg", "tests/vm/README.md"),
]


def gather(goal: Path) -> None:
    """Put all pages into `goal`, the generated ones into `reference`."""
    for pattern in PAGES_OF_THE_REPOSITORY:
        for file in ROOT.glob(pattern):
            if file.is_file() and "__pycache__" not in file.parts:
                place = goal / file.relative_to(ROOT)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)
    (goal / "reference").mkdir()
    for name, page in PAGES.items():
        (goal / "reference" / name).write_text(page() + "\n", "utf-8")


def build(pages: Path, directory: Path) -> int:
    """Have MkDocs build a site of `pages`; returns its exit status, which a warning makes 1."""
    shutil.copyfile(CONFIGURATION, pages.parent / "mkdocs.yml")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(directory)]
    return subprocess.run(words, cwd=pages.parent, check=False).returncode


def main() -> int:
    """Gather the pages and build the site."""
    parser = argparse.ArgumentParser("python -m tools.site", description="Build the documentation as a site.")
    parser.add_argument("directory", type=Path, help="where to; what is there is replaced")
    directory = parser.parse_args().directory.resolve()
    with tempfile.TemporaryDirectory(prefix="tcmu-site-") as name:
        pages = Path(name) / "pages"
        gather(pages)
        return build(pages, directory)


if __name__ == "__main__":
    sys.exit(main())
