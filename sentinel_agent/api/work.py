"""The API's own threads, so that no answer holds up a tick: a few for short reads, one for merging, and a bounded queue before it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_P = ParamSpec("_P")
_T = TypeVar("_T")

WAITING_AT_MOST = 16


class BusyError(Exception):
    """More is asked for than is done at once."""


class Workers:
    """Threads that are made when they are needed."""

    def __init__(self) -> None:
        self._reading = ThreadPoolExecutor(max_workers=2, thread_name_prefix="sentinel-api-read")
        self._merging = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sentinel-api-merge")
        self._waiting = 0

    async def read(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """A short look at the store.

        Raises:
            BusyError: too many wait already.
        """
        return await self._submit(self._reading, work, *args, **kwargs)

    async def merge(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Something that may take a second; one after the other."""
        return await self._submit(self._merging, work, *args, **kwargs)

    async def _submit(
        self, executor: ThreadPoolExecutor, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        if self._waiting >= WAITING_AT_MOST:
            raise BusyError
        self._waiting += 1
        try:
            return await asyncio.wrap_future(executor.submit(work, *args, **kwargs))
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Let what has begun finish, and nothing else."""
        for executor in (self._reading, self._merging):
            executor.shutdown(wait=True, cancel_futures=True)
