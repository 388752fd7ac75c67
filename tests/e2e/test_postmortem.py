"""A target that dies leaves its scene, without any rule: how it ended, and what it did up to the end."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from sentinel_agent.profile import speedscope
from tests.e2e.support import HERE, attached, listed, sentinel, started, until
from tests.target.cgroups import below, own

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sentinel_agent.profile.record import ProfileRecord
    from tests.e2e.support import AgentProcess

pytestmark = pytest.mark.e2e

NO_RULES = "rule_packs: []\n"
SPIKE = """
rule_packs: []
sampler: {interval: 200ms}
rules:
  - {name: cpu-spike, metric: cpu, trigger: {abs: 50}, capture: [stacks, {kind: profile, duration: 20s}]}
"""


@dataclass
class Mortal:
    """A running `mortal.py`."""

    process: subprocess.Popen[str]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def tell(self, words: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{words}\n")
        self.process.stdin.flush()

    def burnt_until(self) -> float:
        """The last time that it wrote down while it burnt, in seconds since the epoch."""
        found: float = struct.unpack("=d", self.log.read_bytes())[0]
        return found


@contextmanager
def mortal(folder: Path) -> Iterator[Mortal]:
    log = folder / "burnt"
    command = (sys.executable, str(HERE / "mortal.py"), str(log))
    with started(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Mortal(process, log)


def recorded(data_dir: Path, pid: int) -> bool:
    """Whether the recorder has brought something to the disk: then it has looked for two seconds."""
    return any(data_dir.glob("recorder/*/*.seg"))


def timeline(data_dir: Path, incident: dict[str, Any]) -> ProfileRecord:
    """What was recorded, sample by sample."""
    return speedscope.decode(
        (data_dir / "incidents" / str(incident["id"]) / "stacks.speedscope.json").read_bytes()
    )


def sealed(agent: AgentProcess, rule: str) -> dict[str, Any]:
    """The incident of a rule, once it is whole."""
    event = agent.wait_for("incident_sealed", lambda found: bool(found["incident"]["rule"] == rule))
    incident: dict[str, Any] = event["incident"]
    return incident


def seen(record: ProfileRecord, function: str) -> list[tuple[float, float]]:
    """When a function was seen, from and to in seconds since the epoch."""
    return [
        (record.start + sample.offset, record.start + sample.offset + sample.weight)
        for sample in record.samples
        if any(record.frames[number].function.endswith(function) for number in sample.stack)
    ]


def test_killed_in_the_middle_of_a_spike_it_leaves_its_stacks_up_to_the_end(tmp_path: Path) -> None:
    """The rule's incident is sealed although its captures are cut off; the post-mortem names the burning function
    to within a sampling period of the moment that the target itself wrote down last."""
    data = tmp_path / "data"
    with mortal(tmp_path) as target, attached(str(target.pid), data_dir=data, config=SPIKE) as agent:
        until(lambda: recorded(data, target.pid), 30, "a recording")
        target.tell("spike")
        agent.wait_for("incident_opened", lambda event: event["rule"] == "cpu-spike")
        time.sleep(1.5)
        target.process.kill()
        target.process.wait(10)
        last = target.burnt_until()
        gone = agent.wait_for("target_gone")
        assert gone["how"] == "killed by SIGKILL"
        spike, died = sealed(agent, "cpu-spike"), sealed(agent, "target-died")
        assert agent.process.wait(20) == 0
    reports = {report["kind"]: report for report in spike["captures"]}
    assert reports["stacks"]["status"] == "ok"
    assert reports["series"]["status"] == "ok"
    assert died["reason"] == "signal"
    assert died["summary"].startswith("killed by SIGKILL; last seen with cpu ")
    assert {artifact["name"] for artifact in died["artifacts"]} >= {
        "stacks.json",
        "stacks.pb.gz",
        "stacks.speedscope.json",
        "stacks.cpu.pb.gz",
        "stacks.during.pb.gz",
        "series.json",
    }
    record = timeline(data, died)
    end = max(to for _, to in seen(record, "burn_until_the_end"))
    # A sample stands for the time to the next one, so the end is at most a period after the last look; on a loaded
    # machine a look may be late, and so may what the target writes.
    assert abs(end - last) < record.period + 1.0
    shown = sentinel("incidents", "show", died["id"], "--data-dir", str(data)).stdout
    assert "burn_until_the_end" in shown
    assert "killed by SIGKILL" in shown
    assert {row["rule"] for row in listed(data)} == {"cpu-spike", "target-died"}


@pytest.mark.parametrize(
    ("words", "reason", "how"),
    [("crash", "signal", "killed by SIGSEGV"), ("exit 3", "nonzero", "ended with exit status 3")],
)
def test_a_crash_and_a_failure_are_told_in_words(tmp_path: Path, words: str, reason: str, how: str) -> None:
    """A segmentation fault and an exit status, of a process that is no child of the agent."""
    data = tmp_path / "data"
    with mortal(tmp_path) as target, attached(str(target.pid), data_dir=data, config=NO_RULES) as agent:
        until(lambda: recorded(data, target.pid), 30, "a recording")
        target.tell(words)
        assert agent.wait_for("target_gone")["how"] == how
        incident = agent.wait_for("incident_sealed")["incident"]
        assert (incident["rule"], incident["reason"]) == ("target-died", reason)
        assert incident["summary"].startswith(how)
        assert "stacks.pb.gz" in {artifact["name"] for artifact in incident["artifacts"]}


def test_a_service_that_is_stopped_is_no_incident(tmp_path: Path) -> None:
    """SIGTERM, exit status 0, and the end of the agent itself with its target alive."""
    for number, end in enumerate((signal.SIGTERM, "exit 0", None)):
        data = tmp_path / str(number)
        with mortal(tmp_path) as target, attached(str(target.pid), data_dir=data, config=NO_RULES) as agent:
            agent.wait_for("target_appeared")
            if end is None:
                agent.process.terminate()
            elif isinstance(end, str):
                target.tell(end)
            else:
                target.process.send_signal(end)
            assert agent.process.wait(20) == 0
            assert listed(data) == []


def test_a_kill_for_memory_is_told_from_other_kills(tmp_path: Path) -> None:
    """A real cgroup with 64 MiB: the kernel kills the target, and the incident says that it was the kernel."""
    memory = own("memory")
    data = tmp_path / "data"
    with mortal(tmp_path) as target, below(memory, target.pid, limit=64 * 1024**2):
        with attached(str(target.pid), data_dir=data, config=NO_RULES) as agent:
            until(lambda: recorded(data, target.pid), 30, "a recording")
            target.tell("grow")
            incident = agent.wait_for("incident_sealed", seconds=60)["incident"]
        assert target.process.wait(10) == -signal.SIGKILL
        assert (incident["rule"], incident["reason"]) == ("target-died", "oom")
        assert "killed by SIGKILL, by the kernel's OOM killer" in incident["summary"]


def test_the_window_from_before_outlives_the_agent_and_the_target(tmp_path: Path) -> None:
    """The agent is killed, another one takes its place, the target dies: the incident has both halves."""
    data = tmp_path / "data"
    with mortal(tmp_path) as target:
        target.tell("morning")
        with attached(str(target.pid), data_dir=data, config=NO_RULES) as agent:
            until(lambda: recorded(data, target.pid), 30, "a recording")
            time.sleep(2.5)
            os.kill(agent.process.pid, signal.SIGKILL)
            agent.process.wait(10)
            killed = time.time()  # noqa: TID251 - compared with the stamps of another process
        target.tell("spike")
        time.sleep(0.2)
        before = len(list(data.glob("recorder/*/*.seg")))
        with attached(str(target.pid), data_dir=data, config=NO_RULES) as agent:
            until(lambda: len(list(data.glob("recorder/*/*.seg"))) > before, 30, "a second recording")
            target.process.kill()
            incident = agent.wait_for("incident_sealed")["incident"]
        record = timeline(data, incident)
        morning, spike = seen(record, "burn_in_the_morning"), seen(record, "burn_until_the_end")
        assert max(to for _, to in morning) < killed + 0.1
        assert killed - max(to for _, to in morning) < 3.0  # what waits for the disk at most, and a bit
        assert sum(to - since for since, to in morning) > 2.0
        assert min(since for since, _ in spike) > killed


def test_a_crash_loop_fills_no_store(tmp_path: Path) -> None:
    """The same role dies three times: the first is an incident, the next say why they are none, also to a new agent."""
    data = tmp_path / "data"
    notes = []
    for _ in range(3):
        with mortal(tmp_path) as target, attached(str(target.pid), data_dir=data, config=NO_RULES) as agent:
            agent.wait_for("target_appeared")
            target.tell("exit 3")
            notes.append(agent.wait_for("target_gone")["note"])
            assert agent.process.wait(20) == 0
    assert len(listed(data)) == 1
    assert notes[0] == ""
    assert all("postmortem.cooldown" in note for note in notes[1:])
