"""Captures that were asked for over HTTP: each is a job with an id of its own, until it has become an incident."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sentinel_agent.errors import SentinelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentinel_agent.api.live import Live
    from sentinel_agent.core.rule import CaptureSpec

_REMEMBERED = 100

log = logging.getLogger(__name__)


class AlreadyCapturingError(Exception):
    """This target is being captured already."""


@dataclass(slots=True)
class Job:
    """One capture: `state` is running, done, failed or cancelled; `incident` its id once it is saved."""

    id: str
    pid: int
    kinds: tuple[str, ...]
    state: str = "running"
    incident: str | None = None
    reason: str = ""
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    def document(self) -> dict[str, Any]:
        """What is told of it."""
        return {
            "id": self.id,
            "pid": self.pid,
            "captures": self.kinds,
            "state": self.state,
            "incident": self.incident,
            "reason": self.reason,
        }


class Jobs:
    """The running captures, one a target, and the last ones that ended."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._jobs: OrderedDict[str, Job] = OrderedDict()

    def start(self, pid: int, specs: Sequence[CaptureSpec]) -> Job:
        """Begin to capture.

        Raises:
            AlreadyCapturingError: the target's last one has not ended.
        """
        if any(job.state == "running" and job.pid == pid for job in self._jobs.values()):
            raise AlreadyCapturingError
        job = Job(secrets.token_hex(8), pid, tuple(spec.kind for spec in specs))
        job.task = asyncio.get_running_loop().create_task(self._run(job, specs))
        self._jobs[job.id] = job
        while len(self._jobs) > _REMEMBERED:
            ended = next((each.id for each in self._jobs.values() if each.state != "running"), None)
            if ended is None:
                break
            del self._jobs[ended]
        return job

    def get(self, job_id: str) -> Job | None:
        """A job that is remembered."""
        return self._jobs.get(job_id)

    async def cancel(self, job: Job) -> None:
        """End a capture; what it wrote is discarded. Does nothing to one that has ended."""
        if job.task is not None:
            job.task.cancel()
            await asyncio.wait((job.task,))

    async def close(self) -> None:
        """End all of them."""
        for job in self._jobs.values():
            await self.cancel(job)

    async def _run(self, job: Job, specs: Sequence[CaptureSpec]) -> None:
        try:
            found = await self._live.capture(job.pid, specs)
        except asyncio.CancelledError:
            job.state, job.reason = "cancelled", "it was ended before it was done"
            raise
        except SentinelError as error:
            job.state, job.reason = "failed", error.message
        except Exception as error:
            job.state, job.reason = (
                "failed",
                f"internal fault, please report it: {type(error).__name__}: {error}",
            )
            raise
        else:
            if isinstance(found, str):
                job.state, job.reason = "failed", found
            else:
                job.state, job.incident = "done", found.id
