"""A token bucket: how long the next command has to wait so that a rate is kept."""

from __future__ import annotations


class Bucket:
    """`rate` tokens a second, of which `burst` may gather while nothing comes.

    A command takes its tokens at once and waits as long as the bucket is short of them: commands keep their order,
    and one that is larger than the burst waits rather than for ever.
    """

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._at = now

    def full(self, now: float) -> bool:
        """Say whether it is as one that nobody has taken from."""
        return self._tokens + (now - self._at) * self.rate >= self.burst

    def take(self, count: float, now: float) -> float:
        """Take `count` tokens; return the seconds until they are there."""
        self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate) - count
        self._at = now
        return max(0.0, -self._tokens / self.rate)
