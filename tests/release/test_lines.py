"""The command lines of each document work as they stand there, one after another."""

from __future__ import annotations

import pytest

from tests.release.interpreters import ROOT
from tests.release.lines import commands
from tests.release.scripts import SCRIPTS
from tests.release.session import Session
from tests.test_docs import elsewhere

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("name", SCRIPTS)
def test_its_command_lines_work(name: str) -> None:
    script = SCRIPTS[name]
    with Session() as session:
        for line in script.first:
            session.type(line)
        for line in commands(ROOT / name):
            if elsewhere(line):
                continue
            for beginning, lines in script.before.items():
                for more in lines if line.startswith(beginning) else ():
                    session.type(more)
            fails = [said for beginning, said in script.fails.items() if line.startswith(beginning)]
            for word, meaning in script.words.items():
                line = line.replace(word, meaning)
            session.type(line, *fails)
