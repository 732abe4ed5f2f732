"""The version of what a handler's author writes against, and the range of it that a handler says it was written for."""

from __future__ import annotations

from tcmu_core.errors import HandlerError

API = (
    1  # counted up when a handler that is right today would not be right any more; a new optional hook is no such thing
)
ATTRIBUTE = "tcmu_api"


def check_api(factory: object) -> None:
    """Look at the `tcmu_api` of a class or a module: a number, or (lowest, highest); without one it is for any.

    Raises:
        HandlerError: it was written for another version, or says something else; the message says what to do.
    """
    said = getattr(factory, ATTRIBUTE, None)
    if said is None:
        return
    both = (said, said) if isinstance(said, int) else said
    if not isinstance(both, tuple) or len(both) != 2 or not all(_is_version(one) for one in both) or both[0] > both[1]:
        raise HandlerError(
            f"{ATTRIBUTE} is {said!r}: write the version that it was written for, {ATTRIBUTE} = {API}, "
            f"or the lowest and the highest, {ATTRIBUTE} = ({API}, {API})"
        )
    low, high = both
    written = f"it was written for version {low}" if low == high else f"it was written for versions {low} to {high}"
    problem = f"{written} of the handler API, and this tcmu-core has {API}"
    if high < API:
        raise HandlerError(f"{problem}: install a newer version of it, or an older tcmu-core")
    if low > API:
        raise HandlerError(f"{problem}: `pip install --upgrade tcmu-core`")


def _is_version(one: object) -> bool:
    return isinstance(one, int) and not isinstance(one, bool) and one > 0
