"""A token bucket. Pure: the time is given."""

from __future__ import annotations


class TokenBucket:
    """`rate` tokens a second, at most `burst` at once; begins full."""

    __slots__ = ("_burst", "_rate", "_time", "_tokens")

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._time = now

    def take(self, now: float) -> bool:
        """Take one token, if there is one."""
        tokens = min(self._burst, self._tokens + (now - self._time) * self._rate)
        self._time = now
        if tokens < 1:
            self._tokens = tokens
            return False
        self._tokens = tokens - 1
        return True

    def wait(self) -> float:
        """Seconds until there is a token."""
        return max(0.0, (1 - self._tokens) / self._rate)
