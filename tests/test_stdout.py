"""stdout is ours: who else writes there is heard on stderr, from Python, from C, and from children."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

NOISE = "import ctypes, os; print('python'); os.write(1, b'descriptor\\n'); os.system('echo child')\n"
NOISE += "libc = ctypes.CDLL(None); libc.puts(b'C')\n"  # in the C library's buffer until the process ends


def run(code: str, shell: str = "{}") -> subprocess.CompletedProcess[str]:
    words = f'{sys.executable} -c "$0"'
    return subprocess.run(
        ["sh", "-c", shell.format(words), f"import sys\nfrom tcmu_core import stdout\n{code}"],
        capture_output=True,
        text=True,
        check=False,
    )


def lines(text: str) -> set[str]:
    return set(text.split())


def test_what_is_said_goes_to_stdout_and_the_rest_to_stderr():
    said = "with stdout.taken(restore=False):\n  print('said', file=stdout.stream())\n"
    done = run(said + textwrap.indent(NOISE, "  "))
    assert (done.returncode, done.stdout) == (0, "said\n"), done.stderr
    assert lines(done.stderr) == {"python", "descriptor", "child", "C"}


@pytest.mark.parametrize("take", ["stdout.give_up()", "stdout.taken(restore=False).__enter__()"])
def test_who_closes_stdout_leaves_stderr_open(take):
    done = run(f"{take}\nprint('noise')\nsys.stdout.close()\nprint('said', file=sys.stderr)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "noise\nsaid\n")


def test_everything_is_as_before_when_it_is_given_back():
    done = run("with stdout.taken():\n  print('noise')\nprint('after', stdout.descriptor())")
    assert (done.stdout, done.stderr) == ("after None\n", "noise\n")


def test_a_process_that_says_nothing_gives_it_up():
    done = run(f"stdout.give_up()\n{NOISE}")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert lines(done.stderr) == {"python", "descriptor", "child", "C"}


def test_a_child_may_have_the_real_one():
    code = "import subprocess\nwith stdout.taken():\n  subprocess.run(['echo', 'child'], stdout=stdout.descriptor())"
    assert run(code).stdout == "child\n"


def test_without_a_stderr_nothing_is_heard():
    done = run("with stdout.taken(restore=False):\n  print('said', file=stdout.stream())\n  print('noise')", "{} 2>&-")
    assert done.stdout == "said\n"


def test_a_reader_that_has_gone_is_no_noise():
    done = run("with stdout.taken(restore=False):\n  stdout.stream().write('x' * 200000)", "{} | true")
    assert "Exception ignored" not in done.stderr


def test_in_a_program_that_has_put_something_else_there_that_is_ours(capsys: pytest.CaptureFixture[str]):
    from tcmu_core import stdout

    with stdout.taken():
        print("noise")
        print("said", file=stdout.stream())
    assert capsys.readouterr() == ("said\n", "noise\n")


def test_what_is_missing_of_the_three_descriptors_leads_to_nowhere():
    code = "stdout.see_to_descriptors()\nprint('to nowhere')\nprint('to nowhere', file=sys.stderr)\n"
    code += "with stdout.taken(), open(sys.argv[1], 'w') as disk:\n  print('noise')\n  assert disk.fileno() > 2\n"
    done = run(
        code + "with stdout.taken(restore=False):\n  print('said', file=stdout.stream())", "{} /dev/null <&- >&- 2>&-"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
