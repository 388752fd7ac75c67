"""What an exporter is, what it is given, and how it says that a backend did not take it.

An exporter is a class named by the entry point group `sentinel_agent.exporters`: a pure `encode` and a thin `send`.
It imports what is heavy only when it is made. Queues, retries, the spool and the counting are not its business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Protocol, get_args

import msgspec
from msgspec import Meta

from sentinel_agent.core.event import (
    IncidentLost,
    IncidentOpened,
    IncidentSealed,
    LimitReached,
    TargetAppeared,
    TargetGone,
)
from sentinel_agent.core.model import Target
from sentinel_agent.core.span import Span
from sentinel_agent.core.units import ByteSize, Duration
from sentinel_agent.errors import PeerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentinel_agent.clock import Clock

Signal = Literal["metrics", "spans", "events", "artifacts"]
SIGNALS: tuple[Signal, ...] = get_args(Signal)


class ReadingSet(msgspec.Struct, frozen=True):
    """What one tick read of one target: metric name -> value, in the unit of `core.metrics`. `time` since the epoch."""

    time: float
    target: Target
    values: dict[str, float]


class AgentReading(msgspec.Struct, frozen=True):
    """What the agent says of itself about once a second: name -> value, names as in its own metrics.

    `rules` is the state of each rule on each target: (rule, role key, state). `exports` counts what was lost:
    (exporter, signal, reason) -> items.
    """

    time: float
    values: dict[str, float]
    rules: tuple[tuple[str, str, str], ...] = ()
    exports: tuple[tuple[str, str, str, int], ...] = ()


DURATION_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Upper bounds of buckets in seconds: OpenTelemetry's for http.server.request.duration (semantic conventions 1.44)."""


class RequestDelta(msgspec.Struct, frozen=True):
    """Requests of one route of the embedded proxy that ended between `since` and `time` (seconds since the epoch).

    Those that went to one `cluster`; the empty one stands for those that were sent nowhere.
    `classes` counts them by the first digit of their status, 0 for none; `buckets` by `DURATION_BOUNDS`, the last
    being those beyond; `seconds` is their duration together, within 25 %.
    """

    time: float
    since: float
    service: str
    instance: str
    listener: str
    route: str
    classes: tuple[int, ...]
    buckets: tuple[int, ...]
    seconds: float
    cluster: str = ""


class ClusterReading(msgspec.Struct, frozen=True):
    """The servers of one cluster of the embedded proxy, as the worst of its workers sees them.

    `healthy` of `endpoints` are sent requests; in a `panic` all are. `servers` names the first of them: address, healthy.
    """

    time: float
    service: str
    instance: str
    cluster: str
    endpoints: int
    healthy: int
    panic: bool
    servers: tuple[tuple[str, bool], ...]


ExportedEvent = TargetAppeared | TargetGone | IncidentOpened | IncidentSealed | IncidentLost | LimitReached
"""The events that leave the house; what is about settings and our own troubles stays in the status."""

SpanGroup = tuple[Span, ...]
"""The spans of one request that ended together in one process; they stay together on their way."""

Item = ReadingSet | AgentReading | RequestDelta | ClusterReading | SpanGroup | ExportedEvent
"""What is queued. The signal `artifacts` carries `IncidentSealed`, whose folder holds the files."""


def weight(item: Item) -> int:
    """How many things an item holds, by which losses are counted: values, spans, events."""
    if isinstance(item, tuple):
        return len(item)
    return len(item.values) if isinstance(item, ReadingSet | AgentReading) else 1


def moment(item: Item) -> float:
    """When it happened, in seconds since the epoch."""
    if isinstance(item, tuple):
        return item[0].start / 1e9 if item else 0.0
    return item.time


Secret = Annotated[str, Meta(max_length=8192, extra={"unit": "secret"})]
"""Never shown. Written as it is, or as `env:NAME` or `file:PATH`, from which it is read when the agent starts."""


class ExporterOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What can be set for every exporter. An exporter's own options are a subclass."""

    kind: Annotated[str, Meta(description="which exporter; unset: the one that has this entry's name")] = ""
    signals: Annotated[
        tuple[Signal, ...] | None,
        Meta(description="what is sent, of what the exporter can take; unset: all of it"),
    ] = None
    interval: Annotated[
        Duration, Meta(ge=0.05, le=300, description="time in which items become one batch")
    ] = 1.0
    batch: Annotated[int, Meta(ge=1, le=10_000, description="items in one batch at most")] = 512
    queue: Annotated[
        int, Meta(ge=1, le=1_000_000, description="items of one signal that wait to be encoded at most")
    ] = 8192
    memory_bytes: Annotated[
        ByteSize,
        Meta(ge=65536, description="memory for encoded batches of one signal; beyond, they go to disk"),
    ] = 1024**2
    spool_bytes: Annotated[
        ByteSize, Meta(description="disk for batches of one signal while the backend is down; 0: none")
    ] = 64 * 1024**2
    max_age: Annotated[
        Duration, Meta(ge=1, description="a batch that could not be delivered for this long is dropped")
    ] = 3600.0
    timeout: Annotated[
        Duration, Meta(ge=0.1, le=300, description="how long the backend may take to answer")
    ] = 10.0


Blame = Literal["passing", "rejected", "refused"]
"""`passing`: the same batch may pass later. `rejected`: this batch never will, the next may. `refused`: nothing will
until somebody changes something (wrong path, no permission, a handler that is off)."""


class SendError(PeerError):
    """The backend did not take a batch. `retry_after` is what it asked for, in seconds.

    `lost` is set where it took the batch but for so many items (then `rejected`).
    """

    def __init__(
        self,
        message: str,
        blame: Blame = "passing",
        *,
        retry_after: float | None = None,
        lost: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.blame: Blame = blame
        self.retry_after = retry_after
        self.lost = lost


@dataclass(frozen=True, slots=True)
class ExporterContext:
    """Where an exporter runs: its entry's name, the agent's clock, version and host."""

    name: str
    clock: Clock
    version: str
    host: str


class Exporter(Protocol):
    """Sends batches to one backend. `send` and `close` run on the exporters' own loop."""

    Options: ClassVar[type[ExporterOptions]]
    signals: ClassVar[tuple[Signal, ...]]

    def encode(self, signal: Signal, items: Sequence[Item]) -> bytes | None:
        """The body of one request, None if nothing in `items` concerns this backend. Pure."""
        ...

    async def send(self, signal: Signal, body: bytes) -> str:
        """Deliver what `encode` made; what the backend answered, in a few words. Cancellation must end it at once.

        Raises:
            SendError: the backend did not take it.
        """
        ...

    async def close(self) -> None:
        """Give connections back."""
        ...


class View(Protocol):
    """An exporter that is asked, not one that sends: it keeps the newest and renders it on demand."""

    Options: ClassVar[type[ExporterOptions]]
    signals: ClassVar[tuple[Signal, ...]]

    def observe(self, item: Item) -> None:
        """Take note of an item. Runs on the agent's thread at each tick: it must take microseconds and never raise."""
        ...

    def render(self, accept: str | None) -> tuple[str, bytes]:
        """(content type, document) for the HTTP header `Accept`. Safe on any thread."""
        ...


class ExporterFactory(Protocol):
    """The class of an exporter or view."""

    Options: ClassVar[type[ExporterOptions]]
    signals: ClassVar[tuple[Signal, ...]]

    def __call__(self, options: ExporterOptions, context: ExporterContext) -> Exporter | View:
        """Make one.

        Raises:
            OperatorError: what it needs is not installed, or the options do not go together.
        """
        ...


class Loss(msgspec.Struct, frozen=True):
    """What was lost for one reason in one stretch: `since` and `until` are when it had happened, since the epoch."""

    reason: str
    items: int
    since: float
    until: float


LineState = Literal["idle", "delivering", "retrying", "refused"]


class LineStatus(msgspec.Struct, frozen=True):
    """One signal of one exporter as it is now. Times in seconds since the epoch; counts are of items (see `weight`).

    `queued` items wait to be encoded, `waiting` are encoded in `waiting_bytes`, of which `spooled_bytes` on disk.
    `lost` counts by reason since the start, `losses` are the newest stretches of it.
    """

    exporter: str
    kind: str
    signal: str
    state: LineState
    sent: int
    queued: int
    waiting: int
    waiting_bytes: int
    spooled_bytes: int
    lost: dict[str, int]
    losses: tuple[Loss, ...]
    last_success: float | None = None
    last_answer: str = ""
    last_error: str = ""
    last_error_time: float | None = None
    next_try: float | None = None


def lost_rows(statuses: Sequence[LineStatus]) -> tuple[tuple[str, str, str, int], ...]:
    """(exporter, signal, reason, items) of everything that was lost."""
    return tuple(
        (status.exporter, status.signal, reason, count)
        for status in statuses
        for reason, count in status.lost.items()
    )
