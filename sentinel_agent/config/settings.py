"""The agent's settings: every key, its type, its bounds and its default. How they are read is in `load`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from sentinel_agent.core.rule import Rule
from sentinel_agent.core.units import ByteSize, Duration

Regex = Annotated[str, Meta(min_length=1, max_length=1000, extra={"unit": "regex"})]


class TargetSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which processes are watched and what they are called."""

    match: Regex | None = None
    service: Annotated[str, Meta(min_length=1, max_length=100)] | None = None
    instance: Annotated[str, Meta(min_length=1, max_length=100)] | None = None
    children: bool = True
    max_targets: Annotated[int, Meta(ge=1, le=1000)] = 64
    scan_interval: Annotated[Duration, Meta(ge=0.1, le=60)] = 1.0


class SamplerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often targets are read and how much is remembered."""

    interval: Annotated[Duration, Meta(ge=0.05, le=60)] = 1.0
    history: Annotated[Duration, Meta(ge=10, le=86400)] = 900.0
    ring_bytes: Annotated[ByteSize, Meta(ge=16384, le=67108864)] = 512 * 1024


class LimitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Overrides for what is otherwise read from the cgroup: explicit beats detected (0: detect)."""

    cpu_cores: Annotated[float, Meta(ge=0)] = 0.0
    memory: ByteSize = 0


class CaptureSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The budget over all rules: what captures may cost, together."""

    concurrency: Annotated[int, Meta(ge=1, le=16)] = 2
    max_incidents_per_hour: Annotated[int, Meta(ge=1, le=10000)] = 60
    max_bytes_per_hour: Annotated[ByteSize, Meta(ge=65536)] = 256 * 1024**2
    max_bytes: Annotated[ByteSize, Meta(ge=65536)] = 16 * 1024**2
    timeout: Annotated[Duration, Meta(ge=1, le=300)] = 15.0
    profile_duration: Annotated[Duration, Meta(ge=0.1, le=60)] = 0.6
    profile_rate: Annotated[int, Meta(ge=1, le=1000)] = 100
    cpu_max: Annotated[float, Meta(ge=0)] = 0.0
    window_before: Annotated[Duration, Meta(ge=1, le=3600)] = 120.0
    redact: bool = True


class StoreSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where incidents are kept and for how long; whichever bound is reached first removes the oldest."""

    max_incidents: Annotated[int, Meta(ge=1)] = 500
    max_age: Annotated[Duration, Meta(ge=60)] = 30 * 86400.0
    max_bytes: Annotated[ByteSize, Meta(ge=1024**2)] = 256 * 1024**2
    min_free_bytes: ByteSize = 16 * 1024**2


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the agent says on stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be set. `rules` adds to the rule files and packs; a rule of the same name replaces it."""

    data_dir: Annotated[str, Meta(max_length=4096)] | None = None
    listen: Annotated[str, Meta(pattern=r"^.+:\d{1,5}$")] = "127.0.0.1:9477"
    target: TargetSettings = TargetSettings()
    sampler: SamplerSettings = SamplerSettings()
    limits: LimitSettings = LimitSettings()
    capture: CaptureSettings = CaptureSettings()
    store: StoreSettings = StoreSettings()
    log: LogSettings = LogSettings()
    rule_packs: tuple[str, ...] = ("default",)
    rule_files: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
