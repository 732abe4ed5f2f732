"""stdout is ours: what handlers print, from Python or from C, goes where messages go, to stderr."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

_STDOUT, _STDERR = 1, 2


class _Taken:
    """What stands for stdout while it is taken: our stream, and the descriptor that stdout had under number 1."""

    stream: TextIO | None = None
    descriptor: int | None = None


def stream() -> TextIO:
    """Return the stream of what we say: the real stdout, whether it was taken or not."""
    return _Taken.stream or sys.stdout


def see_to_descriptors() -> None:
    """Have stdin, stdout and stderr lead to nowhere where a process was started without them.

    Else the next file that is opened gets the number: a disk would take in what is written to stderr.
    """
    for number in (0, _STDOUT, _STDERR):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            os.set_inheritable(null, True)
    sys.stdout = sys.stdout or os.fdopen(_STDOUT, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(_STDERR, "w", closefd=False)


def descriptor() -> int | None:
    """Return what a child is to have as its stdout; None where it may inherit ours."""
    return _Taken.descriptor


def give_up() -> None:
    """Send what anybody writes to stdout to stderr from now on, for good: for processes that have nothing to say."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    _redirect()
    sys.stdout = _theirs()


@contextlib.contextmanager
def taken(*, restore: bool = True) -> Iterator[None]:
    """Keep stdout for `stream()`, and have everybody else's output go to stderr.

    Without `restore` the descriptor stays as it is: what a C library has buffered is written when the process ends.
    """
    before = sys.stdout
    kept = None
    ours = before
    if _is_at(before, _STDOUT):  # else a program that embeds us has put something there
        before.flush()
        kept = os.dup(_STDOUT)
        ours = os.fdopen(kept, "w", 1, before.encoding, before.errors, closefd=False)
        _redirect()
    _Taken.stream, _Taken.descriptor, sys.stdout = ours, kept, _theirs()
    try:
        yield
    finally:
        try:
            ours.flush()
        except BrokenPipeError:  # nobody is there to read the rest
            if kept is not None:
                _to_nowhere(kept)
        except OSError as error:
            error.filename = error.filename or "the output"  # that there is no room, say, could be of any file
            raise
        if restore:
            if kept is not None:
                os.dup2(kept, _STDOUT)
                os.close(kept)
            _Taken.stream, _Taken.descriptor, sys.stdout = None, None, before


def _theirs() -> TextIO:
    """Return what is sys.stdout to others: a stream of its own, whose close is not that of our stderr."""
    if not _is_at(sys.stderr, _STDERR):
        return sys.stderr
    return os.fdopen(_STDERR, "w", 1, sys.stderr.encoding, sys.stderr.errors, closefd=False)


def _is_at(candidate: TextIO, number: int) -> bool:
    try:
        return candidate.fileno() == number
    except (AttributeError, OSError, ValueError):
        return False


def _redirect() -> None:
    try:
        os.dup2(_STDERR, _STDOUT)
    except OSError:  # there is no stderr
        _to_nowhere(_STDOUT)


def _to_nowhere(number: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, number)
    os.close(null)
