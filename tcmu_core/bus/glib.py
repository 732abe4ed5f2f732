"""A thread with a GLib main context of its own, beside the runner's epoll loop."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from gi.repository import GLib

log = logging.getLogger("tcmu.bus")


class GLibThread:
    """Dispatches what belongs to its context, and what `post` hands it, on one daemon thread.

    The context is private, so the process's default one stays free for whoever wants it. `iteration` is called rather
    than `GLib.MainLoop.run`, which PyGObject extends with handling of SIGINT and of the signal wake-up descriptor.
    """

    def __init__(self, name: str) -> None:
        self._context = GLib.MainContext.new()
        self._posted: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._running = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._running = True
        self._thread.start()

    def post(self, fn: Callable[..., object], *args: Any) -> None:
        """Call `fn(*args)` on the thread, soon; safe from any thread."""
        self._posted.append((fn, args))
        self._context.wakeup()

    def call_later(self, seconds: float, fn: Callable[..., object], *args: Any) -> Callable[[], None]:
        """Call `fn(*args)` after `seconds`; on this thread only. Returns what cancels the call."""
        source = GLib.timeout_source_new(int(seconds * 1000))

        def due(*_: object) -> bool:
            self._call(fn, args)
            return False

        source.set_callback(due)
        source.attach(self._context)
        cancel: Callable[[], None] = source.destroy
        return cancel

    def stop(self, seconds: float) -> bool:
        """End the thread after what was posted; returns whether it ended within `seconds`."""
        self.post(self._stop)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _stop(self) -> None:
        self._running = False

    def _run(self) -> None:
        self._context.push_thread_default()
        try:
            while self._running:
                for _ in range(len(self._posted)):
                    fn, args = self._posted.popleft()
                    self._call(fn, args)
                if self._running:
                    self._context.iteration(not self._posted)
            while self._context.iteration(False):  # a source that waits in the context would hold its connection
                pass
        finally:
            self._context.pop_thread_default()

    @staticmethod
    def _call(fn: Callable[..., object], args: tuple[Any, ...]) -> None:
        try:
            fn(*args)
        except Exception:
            log.exception("a call on the D-Bus thread failed")
