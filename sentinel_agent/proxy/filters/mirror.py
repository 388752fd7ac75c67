"""Mirror: a copy of a share of the requests goes to another cluster, whose answers nobody sees.

A copy is sent when its request is whole, so that half a request is never copied. The copies of a route that are under way
and the bytes of each are bounded; what is over that is not copied, and counted. Nothing here makes the request wait.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from sentinel_agent.core.units import ByteSize, Duration
from sentinel_agent.proxy.config_types import Name, Percent
from sentinel_agent.proxy.filters import Hooks

if TYPE_CHECKING:
    from sentinel_agent.proxy.filters import Request


class MirrorOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where copies go, of which share of the requests, and how much of it at once."""

    cluster: Name
    percent: Percent = 100.0
    amplification: Annotated[int, Meta(ge=1, le=100, description="copies of each request")] = 1
    max_pending: Annotated[int, Meta(ge=1, le=10_000, description="copies under way at once")] = 64
    max_body: Annotated[ByteSize, Meta(ge=0, le=16777216, description="a larger body is not copied")] = (
        64 * 1024
    )
    timeout: Annotated[Duration, Meta(gt=0, le=3600, description="of a copy")] = 15.0


class Mirror:
    """The filter `mirror`."""

    Options = MirrorOptions

    def __init__(self, options: MirrorOptions) -> None:
        self.hooks = Hooks(request=self._request, clusters=(options.cluster,))
        self._options = options
        self._random = Random()  # noqa: S311 - a share, no secret
        self._pending = 0

    def _request(self, request: Request) -> None:
        options = self._options
        if self._random.random() * 100 >= options.percent or request.header("upgrade") is not None:
            return
        if self._pending + options.amplification > options.max_pending:
            request.count("mirror.dropped")
            return
        request.watch_body(_Copy(self, request).piece)

    def send(self, request: Request, message: bytes) -> None:
        """The request is whole: its copies go out."""
        options = self._options
        for _ in range(options.amplification):
            if self._pending >= options.max_pending:
                request.count("mirror.dropped")
            else:
                self._pending += 1
                request.beside(self._send(request, message), f"mirror {options.cluster}")

    async def _send(self, request: Request, message: bytes) -> None:
        try:
            await request.call(self._options.cluster, message, timeout=self._options.timeout)
            request.count("mirror.sent")
        except OSError:  # TimeoutError is one
            request.count("mirror.failed")
        finally:
            self._pending -= 1

    @property
    def max_body(self) -> int:
        """Bytes of a body that are held for its copy."""
        return self._options.max_body

    @property
    def cluster(self) -> str:
        """Where copies go."""
        return self._options.cluster


class _Copy:
    """One request that is being copied."""

    def __init__(self, mirror: Mirror, request: Request) -> None:
        self._mirror = mirror
        self._request = request
        self._pieces: list[bytes] | None = []
        self._bytes = 0

    def piece(self, data: bytes, last: bool) -> None:
        pieces = self._pieces
        if pieces is None:
            return
        self._bytes += len(data)
        if self._bytes > self._mirror.max_body:
            self._request.count("mirror.dropped")
            self._pieces = None
            return
        pieces.append(data)
        if last:
            self._pieces = None
            head = self._request.head(self._mirror.cluster)
            if head:
                self._mirror.send(self._request, b"".join((head, *pieces)))
