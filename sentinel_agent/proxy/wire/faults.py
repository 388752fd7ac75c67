"""What can be wrong with a message, and the answer it gets."""

from __future__ import annotations

from dataclasses import dataclass

from sentinel_agent.errors import PeerError


class WireError(PeerError):
    """A message that is refused. `status` is what a client is answered; the connection is closed after it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on a message head: bytes of all of it, of the request target, and the number of header lines."""

    head: int = 64 * 1024
    target: int = 8 * 1024
    headers: int = 100
