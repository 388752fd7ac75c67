"""At 92% of a memory limit nothing is run in a target, whichever version of cgroups tells the limit; the real one is in tests/e2e."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from sentinel_agent.capture.registry import load_captures
from sentinel_agent.core.guard import skip_reason
from sentinel_agent.errors import TargetError
from sentinel_agent.probes.base import Moment
from sentinel_agent.probes.memory import MemoryProbe
from sentinel_agent.target.procfs import PAGE_SIZE, ProcDir
from tests.inject.targets import plan_of
from tests.target.test_cgroup import GIB, FakeCgroups

if TYPE_CHECKING:
    from pathlib import Path

INJECTED = ("gc", "memray", "tracemalloc")


@dataclass(frozen=True)
class Version:
    """How a version says that a GiB is the limit."""

    mount: tuple[str, str, str]
    member: str
    folder: str
    file: str


VERSIONS = (
    Version(
        ("/sys/fs/cgroup/memory", "cgroup", "rw,memory"),
        "4:memory:/pod",
        "memory/pod",
        "memory__limit_in_bytes",
    ),
    Version(("/sys/fs/cgroup", "cgroup2", "rw"), "0::/pod", "pod", "memory__max"),
)


@pytest.mark.parametrize("version", VERSIONS, ids=["v1", "v2"])
async def test_what_would_run_code_is_skipped_and_refused(version: Version, tmp_path: Path) -> None:
    """The guard names the reading, and where a rule has a guard of its own the capture refuses by itself."""
    machine = FakeCgroups(tmp_path)
    machine.mount(*version.mount)
    machine.member(version.member)
    machine.write(f"/sys/fs/cgroup/{version.folder}", **{version.file: f"{GIB}\n"})
    (machine.process / "statm").write_text(f"500000 {int(0.92 * GIB) // PAGE_SIZE} 10 1 0 1000 0\n")
    with ProcDir(7, tmp_path) as proc:
        subject = SimpleNamespace(proc=proc, limits=lambda _: machine.limits())
        readings = MemoryProbe(cast(Any, subject)).read(Moment(0.0, 0.0))
    (share,) = [reading.value for reading in readings if reading.metric == "rss_limit"]
    assert share is not None
    assert share == pytest.approx(92, abs=0.1)
    captures: dict[str, Any] = load_captures(plugs=[]).captures
    for kind in INJECTED:
        assert "rss_limit is 92" in (
            skip_reason(captures[kind].skip_when, {"cpu": 1.0, "rss_limit": share}) or ""
        )
        with pytest.raises(TargetError, match="92% of its memory limit"):
            await captures[kind].capture(plan_of(kind, 7, tmp_path, 1.0, share))
