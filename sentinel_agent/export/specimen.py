"""One small item of each signal, for trying an exporter out: clearly a test, and harmless where it ends up."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

import msgspec

from sentinel_agent.core.event import IncidentSealed
from sentinel_agent.core.model import Artifact, Incident, Target, Window
from sentinel_agent.core.span import Span
from sentinel_agent.export.base import ReadingSet

if TYPE_CHECKING:
    from pathlib import Path

    from sentinel_agent.export.base import Item, Signal

SERVICE = "sentinel-agent-test"


def specimens(now: float, host: str, version: str, folder: Path, profile: bytes) -> dict[Signal, Item]:
    """By signal. `folder` gets the files of an incident; `profile` is a pprof."""
    target = Target(
        pid=os.getpid(),
        start_time=0,
        pid_namespace=0,
        service=SERVICE,
        instance=host,
        worker="main",
        name="sentinel-agent",
        command=("sentinel-agent", "exporters", "test"),
    )
    incident = Incident(
        id=f"exporter-test-{secrets.token_hex(4)}",
        rule="exporter-test",
        target=target,
        reason="manual",
        summary="somebody tries an exporter out; nothing happened",
        metric="cpu",
        unit="percent",
        value=1.0,
        baseline=None,
        thresholds={},
        time=now,
        sealed_time=now,
        window=Window(now - 1, now),
        artifacts=(Artifact("stacks.pb.gz", "stacks", "pprof", len(profile), ""),),
        captures=(),
        lost_samples=0,
        longest_pause_us=0,
        agent_version=version,
        host=host,
    )
    (folder / "stacks.pb.gz").write_bytes(profile)
    (folder / "incident.json").write_bytes(msgspec.json.encode(incident))
    sealed = IncidentSealed(now, incident, str(folder))
    span = Span(
        trace_id=secrets.token_hex(16),
        span_id=secrets.token_hex(8),
        name="exporter test",
        kind="server",
        start=int(now * 1e9),
        duration=1_000_000,
        service=SERVICE,
        instance=host,
    )
    return {
        "metrics": ReadingSet(now, target, {"cpu": 1.0, "rss": 1.0}),
        "spans": (span,),
        "events": sealed,
        "artifacts": sealed,
    }
