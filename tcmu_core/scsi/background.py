"""Background: an operation on the whole medium that outlives its command, as the unit knows it."""

from __future__ import annotations

from tcmu_core.errors import CommandError, NotReady


class SanitizeFailed(CommandError):
    """The last sanitize operation failed; another one, or EXIT FAILURE MODE, ends this state."""

    sense_key, asc, ascq = 0x3, 0x31, 0x03  # MEDIUM ERROR, SANITIZE COMMAND FAILED


class FormatCorrupted(CommandError):
    """The last FORMAT UNIT failed; one that succeeds, or a sanitize operation, ends this state (SBC-4 5.4)."""

    sense_key, asc, ascq = 0x3, 0x31, 0x00  # MEDIUM ERROR, MEDIUM FORMAT CORRUPTED


class Background:
    """An operation under way, or one that failed and keeps others off the medium until that is over."""

    def __init__(
        self, kind: type[NotReady], failure: type[CommandError], what: str, total: int, *, restricted: bool = False
    ) -> None:
        self._kind = kind
        self._failure = failure
        self.what = what  # for people
        self.total = max(total, 1)  # blocks that are written, on all passes
        self.done = 0
        self.failed = False
        self.restricted = restricted  # once it has failed, nothing but one that succeeds ends that (SBC-4 5.30: AUSE)

    def not_ready(self) -> CommandError:
        """Return what every command that needs the medium is answered, with the progress in 65536ths."""
        if self.failed:
            return self._failure()
        return self._kind(progress=min(self.done * 65536 // self.total, 65535))

    @property
    def is_failed_sanitize(self) -> bool:
        """Return whether it is a sanitize operation that failed, which a SANITIZE command alone ends (SBC-4 5.30)."""
        return self.failed and self._failure is SanitizeFailed
