"""Fault injection: some requests wait, some are answered with an error, so that it is known what happens then.

After MOSN's stream filter `fault`: first the delay, then the abort, each for its share of the requests whose headers fit.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from sentinel_agent.core.units import Duration
from sentinel_agent.proxy.config import HeaderMatch
from sentinel_agent.proxy.config_types import Percent
from sentinel_agent.proxy.filters import Hooks, Reply
from sentinel_agent.proxy.matching import header_test

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from sentinel_agent.proxy.filters import Request, Verdict


class Delay(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a share of the requests waits."""

    fixed: Annotated[Duration, Meta(gt=0, le=3600)]
    percent: Percent = 100.0


class Abort(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a share of the requests is answered."""

    status: Annotated[int, Meta(ge=200, le=599)]
    percent: Percent = 100.0


class FaultOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which requests get which fault."""

    delay: Delay | None = None
    abort: Abort | None = None
    headers: Annotated[
        tuple[HeaderMatch, ...], Meta(max_length=20, description="all must hold; none: every request")
    ] = ()
    max_active: Annotated[
        int, Meta(ge=1, le=100_000, description="requests delayed at once; others are not")
    ] = 1000
    seed: Annotated[int | None, Meta(description="makes the draws the same in every run")] = None


class Fault:
    """The filter `fault`."""

    Options = FaultOptions

    def __init__(self, options: FaultOptions) -> None:
        """Compile the conditions.

        Raises:
            ValueError: neither a delay nor an abort is given.
        """
        if options.delay is None and options.abort is None:
            raise ValueError("expected delay, abort or both")
        self.hooks = Hooks(request=self._request)
        self._options = options
        self._tests = [(each.name, header_test(each)) for each in options.headers]
        self._random = Random(options.seed)  # noqa: S311 - a share, no secret
        self._active = 0

    def _request(self, request: Request) -> Verdict | Awaitable[Verdict]:
        if not all(test(request.header(name)) for name, test in self._tests):
            return None
        delay = self._options.delay
        if delay is not None and self._draw(delay.percent):
            if self._active < self._options.max_active:
                return self._later(request, delay.fixed)
            request.count("fault.skipped")
        return self._abort(request)

    async def _later(self, request: Request, seconds: float) -> Verdict:
        request.count("fault.delayed")
        self._active += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self._active -= 1
        return self._abort(request)

    def _abort(self, request: Request) -> Verdict:
        abort = self._options.abort
        if abort is None or not self._draw(abort.percent):
            return None
        request.count("fault.aborted")
        return Reply(abort.status, b"fault injected\n")

    def _draw(self, percent: float) -> bool:
        return self._random.random() * 100 < percent
