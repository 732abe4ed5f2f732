"""check_handler: every promise checked, within a time limit; what could not be checked is listed with its reason."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import monotonic

from tcmu_core.errors import text_of
from tcmu_core.testing import harness
from tcmu_core.testing.failures import check_flush_errors, check_read_errors, check_write_errors
from tcmu_core.testing.harness import Hangs, Latest, OpenDevice, PromiseBroken
from tcmu_core.testing.lives import (
    check_block_size,
    check_crash,
    check_failing_open,
    check_far_offsets,
    check_leaks,
    check_persistence,
    check_read_only,
    check_reopening,
    check_resizing,
    check_size,
    check_sizes,
)
from tcmu_core.testing.promises import (
    Maker,
    Promise,
    check_buffers,
    check_ends,
    check_extents,
    check_flush,
    check_geometry,
    check_giving_back,
    check_reading,
    check_zeros,
)
from tcmu_core.testing.through import THROUGH, reached
from tcmu_core.testing.together import EXAMPLES, check_model, check_together
from tcmu_core.testing.ways import WAYS

PROMISES: tuple[Promise, ...] = (
    check_geometry,
    check_size,
    check_reading,
    check_ends,
    check_buffers,
    check_flush,
    check_giving_back,
    check_zeros,
    check_extents,
    check_together,
    check_sizes,
    check_resizing,
    check_reopening,
    check_leaks,
    check_failing_open,
    check_block_size,
    check_read_only,
    check_write_errors,
    check_read_errors,
    check_flush_errors,
)
STAYING: tuple[Promise, ...] = (
    check_persistence,
    check_crash,
)  # where what is written is there again when it is opened
LAST: tuple[Promise, ...] = (check_far_offsets,)  # leaves another size behind

# What a handler may say of itself that it does not do, and the promises that are left out for it.
CLAIMS = {
    "own size": ("check_size", "check_far_offsets"),
    "own block size": ("check_block_size",),
    "fixed size": ("check_resizing",),
    "not crash-safe": ("check_crash",),
    "not forked": ("check_crash",),
    "not told of errors": ("check_write_errors", "check_read_errors", "check_flush_errors"),
}
SHARE = 5  # of the random sequences, one in so many goes through each way in
LIMIT = 20  # times as long as one call may take, all the calls of one promise may
SILENCE = 1.2  # times as long as one call may take, it may last until the next begins: the call itself notices first


@dataclass(frozen=True, slots=True)
class Report:
    """What `check_handler` did: the promises that were checked, and those that were left out, with the reason."""

    checked: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        """Return a line for each promise that was left out, and one for all that were checked."""
        lines = [f"left out: {name}: {reason}" for name, reason in self.left_out]
        return "\n".join([f"checked: {', '.join(self.checked)}", *lines])


def check_handler(
    make: Maker,
    *,
    persistent: bool = False,
    examples: int = EXAMPLES,
    claims: Iterable[str] = (),
    ways: Iterable[str] = tuple(WAYS),
) -> Report:
    """Check every promise of a handler; `make` opens a device of at least 64 blocks each time it is called.

    `persistent`: what was written is there again when the device is opened again. `claims` are keys of `CLAIMS`: what
    the handler says that it does not do. `examples` is how many random sequences of operations are tried; each opens
    the device once. `ways` are keys of `WAYS`, the ways in: what can be seen by commands is checked again through each
    of them, after it was by the hooks alone. What was left out is printed, and in the report.

    Raises:
        PromiseBroken: a promise is not kept; the message names it, the call, its offset, and what was found.
        TcmuError, OSError: the device can't be opened.
    """
    claimed = {name: claim for claim in claims for name in CLAIMS[claim]}

    def model(make: Maker) -> str | None:
        return check_model(make, examples=examples)

    model.__name__ = check_model.__name__
    checked: list[str] = []
    left_out: list[tuple[str, str]] = []

    def check(promise: Promise) -> None:
        name = promise.__name__
        if name in claimed:
            reason: str | None = f"claimed: {claimed[name]}"
        elif promise in STAYING and not persistent:
            reason = "it is not said to be persistent"
        else:
            reason = _run(promise, make)
        if reason is None:
            checked.append(name)
        else:
            left_out.append((name, reason))

    for promise in (*PROMISES, model, *STAYING):
        check(promise)
    for way in ways:
        _check_way(way, make, max(1, examples // SHARE), {*claimed, *dict(left_out)}, checked)
    for promise in LAST:
        check(promise)
    report = Report(tuple(checked), tuple(left_out))
    print(report)
    return report


def _check_way(way: str, make: Maker, examples: int, left_out: set[str], checked: list[str]) -> None:
    """Check through a way in what can be seen by commands, but for what there is nothing to check of."""

    def through() -> AbstractContextManager[OpenDevice]:
        return reached(way, make)

    def model(make: Maker) -> str | None:
        return check_model(make, examples=examples)

    model.__name__ = check_model.__name__
    for promise in (*THROUGH, model):
        name = promise.__name__
        if name not in left_out and _run(promise, through, f"{name} through the {way}") is None:
            checked.append(f"{name} through the {way}")


def _run(promise: Promise, make: Maker, name: str = "") -> str | None:
    """Check one promise on a thread of its own, so that a call that never returns is noticed."""
    name = name or promise.__name__
    reasons: list[str | None] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            reasons.append(promise(make))
        except BaseException as error:
            errors.append(error)

    Latest.device, Latest.since = None, monotonic()
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    until = monotonic() + LIMIT * harness.TIMEOUT
    while thread.is_alive() and (now := monotonic()) < min(until, Latest.since + SILENCE * harness.TIMEOUT):
        thread.join(min(until, Latest.since + SILENCE * harness.TIMEOUT) - now)
    disk = Latest.now()
    doing = disk.doing if disk is not None else "open"
    if thread.is_alive():
        raise Hangs(f"{name}: {doing}: it has not returned")
    if not errors:
        return reasons[0]
    error = errors[0]
    if isinstance(error, PromiseBroken):
        raise type(error)(f"{name}: {error}") from error
    if disk is None and isinstance(error, Exception):
        raise error
    # What is no Exception comes from a hook too: a person's Ctrl-C comes to the main thread.
    kind, text = type(error).__name__, text_of(error)
    said = text if text.startswith(kind) else f"{kind}: {text}"
    raise PromiseBroken(f"{name}: {doing}: it raised {said}") from error
