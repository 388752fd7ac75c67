"""The agent's settings: every key, its type, its bounds, its default and its meaning. How they are read is in `load`.

A key's `description` is the only place where its meaning is written: `config schema` and `docs/configuration.md` take
it from here.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from sentinel_agent.core.ending import EndingKind
from sentinel_agent.core.rule import Rule
from sentinel_agent.core.units import ByteSize, Duration
from sentinel_agent.export.base import ExporterOptions

Regex = Annotated[str, Meta(min_length=1, max_length=1000, extra={"unit": "regex"})]
Label = Annotated[str, Meta(min_length=1, max_length=100)]
Names = Annotated[tuple[str, ...], Meta(max_length=100)]


class TargetSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which processes are watched and what they are called."""

    match: Annotated[
        Regex | None, Meta(description="watch the processes whose command line matches this; unset: none")
    ] = None
    user: Annotated[
        Annotated[int, Meta(ge=0, le=2**32 - 2)] | None,
        Meta(description="watch only processes of this effective user id; unset: of any"),
    ] = None
    container: Annotated[
        Regex | None,
        Meta(
            description="watch only processes whose cgroup path matches this (a container or pod id); unset: all"
        ),
    ] = None
    environment: Annotated[
        Label | None,
        Meta(
            description="watch only processes started with this variable, `NAME` or `NAME=value`; unset: all"
        ),
    ] = None
    port: Annotated[
        Annotated[int, Meta(ge=1, le=65535)] | None,
        Meta(description="watch only processes that listen on this TCP port; unset: all"),
    ] = None
    service: Annotated[
        Label | None,
        Meta(
            description="name of the service; unset: the target's `OTEL_SERVICE_NAME`, else guessed from its command line"
        ),
    ] = None
    instance: Annotated[
        Label | None,
        Meta(
            description="name of this instance; unset: the host name, that of its pod for a target in another container"
        ),
    ] = None
    children: Annotated[bool, Meta(description="also watch a target's child processes (workers)")] = True
    max_targets: Annotated[int, Meta(ge=1, le=1000, description="how many processes are watched at most")] = (
        64
    )
    scan_interval: Annotated[
        Duration, Meta(ge=0.1, le=60, description="time between two looks for new processes")
    ] = 1.0


class SamplerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often targets are read and how much is remembered."""

    interval: Annotated[Duration, Meta(ge=0.05, le=60, description="time between two readings")] = 1.0
    history: Annotated[
        Duration, Meta(ge=10, le=86400, description="how far back readings are remembered")
    ] = 900.0
    ring_bytes: Annotated[
        ByteSize, Meta(ge=16384, le=67108864, description="memory for the readings of one target")
    ] = 512 * 1024


class RecorderSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The flight recorder: the stacks of the last minutes, always on."""

    enabled: Annotated[bool, Meta(description="whether stacks are recorded at all")] = True
    window: Annotated[Duration, Meta(ge=5, le=3600, description="how far back stacks are kept")] = 120.0
    ring_bytes: Annotated[
        ByteSize,
        Meta(
            ge=1024**2, le=64 * 1024**2, description="memory for the stacks of one target; bytes win over age"
        ),
    ] = 10 * 1024**2
    max_bytes: Annotated[
        ByteSize,
        Meta(
            ge=1024**2,
            description="memory for the stacks of all targets, at most an eighth of the agent's own memory limit; each has an equal share of it, 1 MiB at least",
        ),
    ] = 128 * 1024**2
    spool: Annotated[
        bool, Meta(description="whether stacks also go to disk, so that they outlive the agent")
    ] = True
    spool_bytes: Annotated[
        ByteSize, Meta(ge=1024**2, description="disk space for the stacks of all targets")
    ] = 64 * 1024**2


class OverheadSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the agent may cost."""

    cpu: Annotated[
        float,
        Meta(
            ge=0.05,
            le=100,
            description="percent of one core for the whole agent; 0.6 of it while no target does more than usual",
        ),
    ] = 1.0


class LimitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Overrides for what is otherwise read from the cgroup: explicit beats detected (0: detect)."""

    cpu_cores: Annotated[
        float, Meta(ge=0, description="CPU limit that `cpu_limit` is a percentage of, in cores; 0: detected")
    ] = 0.0
    memory: Annotated[
        ByteSize, Meta(description="memory limit that `rss_limit` is a percentage of; 0: detected")
    ] = 0


class CaptureSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The budget over all rules: what captures may cost, together."""

    concurrency: Annotated[int, Meta(ge=1, le=16, description="captures that run at the same time")] = 2
    max_incidents_per_hour: Annotated[
        int, Meta(ge=1, le=10000, description="incidents an hour, over all rules and targets")
    ] = 60
    max_bytes_per_hour: Annotated[
        ByteSize, Meta(ge=65536, description="bytes of artifacts an hour, over all rules and targets")
    ] = 256 * 1024**2
    max_bytes: Annotated[
        ByteSize, Meta(ge=65536, description="largest size of one capture that names no `max_bytes` itself")
    ] = 16 * 1024**2
    timeout: Annotated[
        Duration,
        Meta(ge=1, le=300, description="a capture that takes longer than this and its duration is ended"),
    ] = 15.0
    profile_duration: Annotated[
        Duration, Meta(ge=0.1, le=60, description="length of a profile that names no `duration` itself")
    ] = 0.6
    profile_rate: Annotated[
        int, Meta(ge=1, le=1000, description="samples a second of a profile that names no `rate` itself")
    ] = 100
    max_pause: Annotated[
        Duration,
        Meta(
            gt=0,
            le=5,
            description="longest time that a capture with `pause: true` may stop its target at once, or one that runs code in it may hold its GIL",
        ),
    ] = 0.1
    cpu_max: Annotated[
        float, Meta(ge=0, description="no rule fires while `cpu` is at or over this many percent; 0: off")
    ] = 0.0
    window_before: Annotated[
        Duration, Meta(ge=1, le=3600, description="how much of the time before the trigger an incident keeps")
    ] = 120.0
    allow_injection: Annotated[
        bool,
        Meta(
            description="whether captures that need it (`tracemalloc`, `memray`, `gc`) may run a small piece of code in the target; all others only read"
        ),
    ] = False
    redact: Annotated[bool, Meta(description="hide secrets in captured command lines and environments")] = (
        True
    )


class PostmortemSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The incident `target-died`, which is made without a rule when a target ends."""

    enabled: Annotated[bool, Meta(description="whether a target that died is an incident")] = True
    on: Annotated[
        tuple[EndingKind, ...],
        Meta(
            max_length=5,
            description="ends that count: `oom`, another `signal`, a `nonzero` exit status, `unknown` where the kernel "
            "does not tell, `stopped` for exit status 0, SIGTERM, SIGINT and SIGHUP",
        ),
    ] = ("oom", "signal", "nonzero", "unknown")
    cooldown: Annotated[
        Duration, Meta(le=86400, description="time from one such incident of a role to the next")
    ] = 60.0
    max_incidents_per_hour: Annotated[
        int, Meta(ge=1, le=10000, description="such incidents of one role an hour, however often it dies")
    ] = 5


class StoreSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where incidents are kept and for how long; whichever bound is reached first removes the oldest."""

    max_incidents: Annotated[int, Meta(ge=1, description="incidents kept")] = 500
    max_age: Annotated[Duration, Meta(ge=60, description="how long an incident is kept")] = 30 * 86400.0
    max_bytes: Annotated[ByteSize, Meta(ge=1024**2, description="bytes kept in all")] = 256 * 1024**2
    min_free_bytes: Annotated[
        ByteSize, Meta(description="nothing is saved while the disk has less free space than this")
    ] = 16 * 1024**2


PeerUrl = Annotated[str, Meta(pattern=r"^https?://[^\s/?#@]+(/[^\s?#,]*)?$", max_length=2000)]


class ApiSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who may use the HTTP interface: tokens of 16 characters or more, needed where other machines reach it. And whose data it answers with."""

    read_tokens: Annotated[Names, Meta(description="tokens with which everything may be read over HTTP")] = ()
    capture_tokens: Annotated[
        Names, Meta(description="tokens with which captures may be asked for and incidents deleted, too")
    ] = ()
    peers: Annotated[
        Annotated[tuple[PeerUrl, ...], Meta(max_length=32)],
        Meta(description="other agents, by URL, whose incidents and recorders Grafana sees through this one"),
    ] = ()
    peer_token: Annotated[str | None, Meta(description="sent to the peers; one of their `read_tokens`")] = (
        None
    )


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the agent says on stderr."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="the least severe message shown")
    ] = "info"
    format: Annotated[Literal["text", "json"], Meta(description="for people, or one JSON object a line")] = (
        "text"
    )


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be set. `exporters` are read as their kinds have it (`export`). `rules` adds to the rule files and packs; a rule of the same name replaces it."""

    data_dir: Annotated[
        Annotated[str, Meta(max_length=4096)] | None,
        Meta(description="where incidents are kept; unset: `$XDG_STATE_HOME/sentinel-agent`"),
    ] = None
    listen: Annotated[
        str,
        Meta(
            pattern=r"^(off|.+:\d{1,5})$",
            extra={"unit": "address"},
            description="address of the HTTP interface and the web page; `off`: none",
        ),
    ] = "127.0.0.1:9477"
    target: TargetSettings = TargetSettings()
    sampler: SamplerSettings = SamplerSettings()
    recorder: RecorderSettings = RecorderSettings()
    overhead: OverheadSettings = OverheadSettings()
    limits: LimitSettings = LimitSettings()
    capture: CaptureSettings = CaptureSettings()
    postmortem: PostmortemSettings = PostmortemSettings()
    store: StoreSettings = StoreSettings()
    api: ApiSettings = ApiSettings()
    log: LogSettings = LogSettings()
    rule_packs: Annotated[Names, Meta(description="installed rule packs to use, by name")] = ("default",)
    rule_files: Annotated[
        Names, Meta(description="files with more rules; a relative path starts at the configuration file")
    ] = ()
    rules: tuple[Rule, ...] = ()
    exporters: Annotated[
        dict[str, ExporterOptions],
        Meta(description="where readings, spans, events and artifacts are sent, by a name of your choice"),
    ] = {}
