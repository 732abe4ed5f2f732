"""The signals that stop a program, heard on a thread of their own: a handler that hangs must not keep them from us."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator

PATIENCE = 1.0  # seconds from the first signal until the person is told what is waited for
TOGETHER = 0.3  # seconds in which signals count as one: timeout(1) and terminals send two
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# These would end the process as well, and without a flush: a timer's, those for a program's own use, Ctrl-\.
ENDING = (
    signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGXCPU,
    signal.SIGPWR, signal.SIGIO,
)  # fmt: skip


class Stopped(KeyboardInterrupt):
    """A signal has ended what was begun; it has been undone."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def stop_signals() -> list[signal.Signals]:
    """Return the signals that stop a program: SIGHUP does not, where nohup(1) has it outlive the terminal.

    Nor do those that a handler has a use for.
    """
    asked = [one for one in STOP_SIGNALS if one != signal.SIGHUP or signal.getsignal(one) is not signal.SIG_IGN]
    return asked + [one for one in ENDING if signal.getsignal(one) is signal.SIG_DFL]


@contextlib.contextmanager
def interrupting(*, patient: bool = False) -> Iterator[Callable[[], None]]:
    """Have each of them raise `KeyboardInterrupt` in what is begun here, so that it undoes what is half made.

    With `patient` the first one is left to the function that this yields, which raises where nothing is half done.

    Raises:
        Stopped: one has come; whatever was made of that on the way, a handler's error perhaps.
    """
    heard: list[int] = []
    first = 0.0

    def interrupt(number: int, _frame: object) -> None:
        nonlocal first
        heard.append(number)
        first = first or time.monotonic()
        if not patient or time.monotonic() - first > TOGETHER:
            raise KeyboardInterrupt

    def check() -> None:
        if heard:
            raise Stopped(heard[0])

    if threading.current_thread() is not threading.main_thread():
        yield check  # signals are the business of the program that this is a part of
        return
    old = {number: signal.signal(number, interrupt) for number in stop_signals()}
    try:
        yield check
    except BaseException:
        if heard:
            raise Stopped(heard[0]) from None
        raise
    finally:
        for number, handler in old.items():
            if number in STOP_SIGNALS or signal.getsignal(number) is interrupt:
                signal.signal(number, handler)
    check()


class StopSignals:
    """Calls `stop(number)`, on this thread, for the first of these signals; a later one ends the process at once.

    What ends late says on standard error what `waiting()` returns. Made on the main thread, after the loop's signals.
    """

    def __init__(
        self, numbers: Iterable[signal.Signals], stop: Callable[[signal.Signals], object], waiting: Callable[[], str]
    ) -> None:
        self._stop = stop
        self._waiting = waiting
        self._done = threading.Event()
        self._ended = False  # there is nothing left to stop
        self._next = "a second signal"  # what would end it at once
        self._numbers = tuple(numbers)
        self._heard, self._told = socket.socketpair()
        self._told.setblocking(False)
        self._old = {number: signal.signal(number, _ignore) for number in self._numbers}
        self._old_fd = signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="tcmu-signals", daemon=True)
        self._thread.start()

    def retake(self) -> None:
        """Hear again what a handler has had ignored meanwhile; on the main thread, now and then."""
        for number in self._numbers:
            if number in STOP_SIGNALS and signal.getsignal(number) in (signal.SIG_IGN, signal.SIG_DFL):
                signal.signal(number, _ignore)

    def begun(self) -> None:
        """A stop has begun without a signal: what ends late is told, and the first signal ends it at once."""
        with contextlib.suppress(BlockingIOError):
            self._told.send(bytes(1))

    def _listen(self) -> None:
        first = 0.0
        while True:
            self._heard.settimeout(max(0.0, first + PATIENCE - time.monotonic()) if first else None)
            try:
                said = self._heard.recv(64)
            except TimeoutError:
                self._tell()
                self._heard.settimeout(None)
                said = self._heard.recv(64)
            if not said or self._done.is_set():
                return
            for number in said:
                if not number:
                    first, self._next = first or time.monotonic(), "a signal"
                if number not in self._numbers or (number in ENDING and signal.getsignal(number) is not _ignore):
                    continue
                if not first and not self._ended:
                    first = time.monotonic()
                    self._stop(signal.Signals(number))
                elif not first or time.monotonic() - first > TOGETHER:
                    os._exit(128 + number)

    def _tell(self) -> None:
        if not self._done.is_set():
            print(f"tcmu: waiting for {self._waiting()}; {self._next} ends it at once", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Hear no more, for the process ends now; while threads of a handler keep it, a signal ends it at once."""
        self._ended = True
        if any(thread is not threading.main_thread() and not thread.daemon for thread in threading.enumerate()):
            atexit.register(self._close)  # which comes when they have ended
        else:
            self._close()

    def _close(self) -> None:
        """From here on another signal changes nothing: the process ends with the status that it has."""
        self._done.set()
        signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)
        signal.set_wakeup_fd(self._old_fd)
        self._told.close()
        self._thread.join()
        self._heard.close()


def _ignore(_number: int, _frame: object) -> None:
    pass
