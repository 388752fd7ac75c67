"""What the store's tests share: an incident to save, and a way to save it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from sentinel_agent.config.settings import StoreSettings
from sentinel_agent.core.model import Artifact, Incident, Role, TargetId, Window
from sentinel_agent.testing import make_target

if TYPE_CHECKING:
    from pathlib import Path

    from sentinel_agent.store.store import Store

SETTINGS = StoreSettings(min_free_bytes=0)
START = 1_700_000_000.0  # 2023-11-14T22:13:20Z, where the fake clock begins
FILES = {"stacks.json": b'{"threads":[]}', "profile.pb.gz": b"\x1f\x8b" + bytes(1000)}


def incident_of(incident_id: str, artifacts: tuple[Artifact, ...] = (), **changes: Any) -> Incident:
    """A CPU spike of a gateway, with `changes`."""
    incident = Incident(
        id=incident_id,
        rule="cpu-spike",
        target=make_target(
            TargetId(4711, 123),
            Role("gateway", "host-a"),
            command=("python", "gateway.py"),
            parent_pid=1,
            python="3.11",
        ),
        reason="above_abs",
        summary="CPU 95.0 % is above 90 %",
        metric="cpu",
        unit="percent",
        value=95.0,
        baseline=20.0,
        thresholds={"abs": 90.0},
        time=START,
        sealed_time=START + 0.3,
        window=Window(START - 120, START),
        artifacts=artifacts,
        captures=(),
        lost_samples=0,
        longest_pause_us=0,
        agent_version="0.1.0",
        host="host-a",
        cooldown_until=START + 60,
    )
    return msgspec.structs.replace(incident, **changes)


def save(
    store: Store,
    time: float = START,
    *,
    files: dict[str, bytes] = FILES,
    incident_id: str = "",
    **changes: Any,
) -> str:
    """Save an incident of that time with these files; its id."""
    incident_id = incident_id or store.new_id(time)
    with store.begin(incident_id) as writer:
        for name, content in files.items():
            (writer.folder / name).write_bytes(content)
            writer.add(writer.folder / name, "test", "json")
        store.seal(writer, incident_of(incident_id, writer.artifacts, time=time, **changes))
    return incident_id


def names(folder: Path) -> list[str]:
    """What lies in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())
