"""The real cgroup file system of this machine: limits are set, a child is put in, limits and throttling are read."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psutil
import pytest

from sentinel_agent.probes.base import Moment
from sentinel_agent.probes.registry import build_probes, load_registry
from sentinel_agent.target.cgroup import host_of, read_limits
from sentinel_agent.target.procfs import ProcDir
from tests.probes.subjects import target_of
from tests.target.cgroups import below, own
from tests.target.fakeproc import line, running, tell

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e

MEMORY = 64 * 1024**2
QUOTA = {1: (("cpu.cfs_period_us", "20000"), ("cpu.cfs_quota_us", "5000")), 2: (("cpu.max", "5000 20000"),)}


def test_real_limits_throttling_and_memory_events() -> None:
    """A child limited to 0.25 cores and 64 MiB: limits, throttled periods, hits and kills are the kernel's."""
    code = (
        "import os, time\n"
        "print('up', flush=True); input()\n"
        "end = time.monotonic() + 0.5\n"
        "while time.monotonic() < end: pass\n"
        "print('burnt', flush=True); input()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    open('/proc/self/oom_score_adj', 'w').write('1000')\n"
        "    os._exit(len(b'x' * 2**20 * 128) > 0)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True); input()\n"
    )
    cpu, memory = own("cpu"), own("memory")
    with (
        running(code) as child,
        below(cpu, child.pid) as quota,
        below(memory, child.pid, limit=MEMORY),
        build_probes(target_of(child.pid), load_registry([])) as probes,
    ):
        line(child)
        for name, value in QUOTA[cpu.version]:
            (quota / name).write_text(value)
        with ProcDir(child.pid) as proc:
            limits = read_limits(proc, host_of(child.pid))
        assert (limits.cpu_cores, limits.memory) == (0.25, MEMORY)
        assert limits.cpu_source.startswith(f"cgroup v{cpu.version}: ")
        assert limits.cpu_source.endswith(quota.name)

        def read() -> dict[str, float]:
            now = Moment(0.0, time.clock_gettime(time.CLOCK_MONOTONIC))
            readings = [reading for probe in probes.probes for reading in probe.read(now)]
            return {reading.metric: reading.value for reading in readings if reading.value is not None}

        before = _throttled(quota)
        assert "throttled" not in read()
        tell(child)
        assert line(child) == "burnt"
        periods, throttled = (now - then for now, then in zip(_throttled(quota), before, strict=True))
        values = read()
        assert throttled > 5
        assert values["throttled"] == pytest.approx(100 * throttled / periods, abs=20)
        assert values["cpu"] == pytest.approx(25, abs=8)
        assert values["cpu_limit"] == pytest.approx(values["cpu"] / 0.25)
        assert values["rss_limit"] == pytest.approx(
            100 * psutil.Process(child.pid).memory_info().rss / MEMORY, abs=2
        )
        assert values["oom_kills"] == 0
        tell(child)
        assert line(child) == "-9"  # the kernel killed the child's child, which wanted 128 MiB
        values = read()
        assert values["oom_kills"] == 1
        assert values["memory_events"] > 0


def _throttled(folder: Path) -> tuple[int, int]:
    lines = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
    return int(lines["nr_periods"]), int(lines["nr_throttled"])
