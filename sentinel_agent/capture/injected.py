"""What all captures share that run code of ours in the target: when it is refused, what is sent, what is kept of it.

None is begun without `capture.allow_injection`, nor near the memory limit: all of them take memory in the target.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec
from msgspec import Meta

from sentinel_agent.clock import SystemClock
from sentinel_agent.errors import NotAllowedError, PeerError, TargetError
from sentinel_agent.inject.deliver import deliver

if TYPE_CHECKING:
    from sentinel_agent.capture.base import CapturePlan
    from sentinel_agent.clock import Clock

SKIP_WHEN = "cpu > 80 || rss_limit > 85"
"""The guard of steps that name none: what is injected makes the target slower and larger."""
SECONDS = 3.0
"""How long steps that do not say so may take in the target."""
MOST_RSS_LIMIT = 85.0
MOST_BYTES = 64 * 1024**2
"""Of memory that what is injected may take in the target."""
_KEEP = 10.0
_GRACE = 6.0
_FUTURE = "from __future__ import annotations\n"

Natural = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0, le=3600)]
Holds = dict[Annotated[str, Meta(max_length=20)], Seconds]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a payload says; it comes out of the target, so it may be anything. `holds`: for how long calls held the GIL."""

    error: Annotated[str, Meta(max_length=1000)] = ""
    seconds: Seconds = 0.0
    ended_by: Annotated[str, Meta(max_length=20)] = "time"
    holds: Holds = {}


class Injection(msgspec.Struct, frozen=True):
    """What was run in the target: how it came there, its digest and length, and how long the main thread was stopped for it.

    `holds_us`: the longest time that each call held the GIL.
    """

    way: str
    sha256: str
    bytes: int
    stops_us: tuple[int, ...]
    holds_us: dict[str, int] = {}

    @property
    def pause_us(self) -> int:
        """The longest time that the target's main thread was stopped at once."""
        return max(self.stops_us, default=0)

    @property
    def gil_hold_us(self) -> int:
        """The longest time that the GIL was held at once."""
        return max(self.holds_us.values(), default=0)


_A = TypeVar("_A", bound=Answer)


class InjectedCapture:
    """What such captures are to the runner, whatever they run."""

    attaches = True
    duration = SECONDS
    skip_when = SKIP_WHEN

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()


def refuse(plan: CapturePlan) -> None:
    """Return if code of ours may be run in the target.

    Raises:
        NotAllowedError: the settings do not allow it.
        TargetError: it is near its memory limit, or how near is not known.
    """
    if not plan.allow_injection:
        raise NotAllowedError(
            "running code in the target is not allowed",
            hint="set capture.allow_injection: true, or use --allow-injection",
        )
    share = plan.series().metrics.get("rss_limit")
    if share is None or not share.values:
        raise TargetError("how near the target is to its memory limit is not known, so nothing is run in it")
    if share.values[-1] >= MOST_RSS_LIMIT:
        raise TargetError(
            f"the target uses {share.values[-1]:.0f}% of its memory limit: over {MOST_RSS_LIMIT:.0f}% what is run in it, which takes memory itself, could kill it"
        )


async def inject(
    plan: CapturePlan, job: str, arguments: dict[str, object], form: type[_A], clock: Clock
) -> tuple[_A, Injection]:
    """Run the payload `job` for `plan.duration` seconds; what it answered.

    Raises:
        TargetError: the target is not fit for it, it failed there, or did not answer in time.
        PeerError: hypno is missing or failed, or the answer is nonsense.
    """
    delivered = await deliver(
        plan.target.id,
        payload(job),
        job,
        arguments | {"seconds": plan.duration, "most_hold": plan.max_pause},
        keep=_KEEP,
        seconds=plan.duration + _GRACE,
        clock=clock,
    )
    try:
        answer = msgspec.json.decode(delivered.answer, type=form)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PeerError(f"what came back from the target is not usable: {error}") from error
    if answer.error:
        raise TargetError(f"{job} did not work in the target: {answer.error}")
    holds = {name: round(seconds * 1e6) for name, seconds in answer.holds.items()}
    stops = tuple(round(stop * 1e6) for stop in delivered.stops)
    return answer, Injection(delivered.way, delivered.sha256, delivered.size, stops, holds)


def payload(job: str) -> str:
    """The source that is sent: the common part and that of the job, one after the other."""
    folder = resources.files("sentinel_agent.inject.payload")
    parts = [folder.joinpath(f"{name}.py").read_text() for name in ("common", job)]
    return _FUTURE + "\n".join(part.replace(_FUTURE, "") for part in parts)


ENDINGS = {
    "hold": "ended early, before it would have held the GIL for too long",
    "load": "ended early, because the target had no CPU left: it makes allocations dearer",
    "memory": "ended early, because it took much memory",
}
"""Why a payload ended before its time, in words."""
