"""What happens to the agent in its life as a container: killed, ended, started late, alone, and beside every pod of a node.

All but the first are run by `make interop`: together they take a minute.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sentinel_agent.target.identity import identify
from sentinel_agent.target.liveness import is_running
from tests.containers.bundle import Box, Container, running
from tests.containers.pod import AGENT, CONFIG, MEMORY, SERVICE, agent_box, ask, target
from tests.containers.storm import TOKEN, call, service_box
from tests.e2e.support import AgentProcess, free_port, started, until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(300)

HOG = """
import sys
open(sys.argv[1], "w").write("0")
kept = []
while True:
    kept.append(bytearray(b"x" * 2**20))
"""
ORPHANS = """
import os
for _ in range(20):
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.wait()
print("left", flush=True)
input()
"""


@contextmanager
def listening(
    image: Path, folder: Path, pod: int | None, **options: Any
) -> Iterator[tuple[AgentProcess, Container, str]]:
    """The agent as a sidecar, with the address of its HTTP API."""
    listen = f"127.0.0.1:{free_port()}"
    box = agent_box(image, folder, "sidecar", "--json", "--listen", listen, pod=pod, **options)
    box = replace(box, environment={**box.environment, "SENTINEL_API_CAPTURE_TOKENS": TOKEN})
    with running(box, folder) as container:
        yield AgentProcess(container.process), container, f"http://{listen}/api/v1"


def capture(url: str, pid: int, *kinds: str, duration: float | None = None) -> str:
    """Ask for an incident; the address of the job."""
    wanted = {"pid": pid, "captures": kinds, "duration": duration}
    status, job = call("POST", f"{url}/captures", wanted)
    assert status == 202, job
    return f"{url}/captures/{job['id']}"


def incidents(folder: Path) -> list[str]:
    return sorted(entry.name for entry in (folder / "data" / "incidents").iterdir())


@pytest.mark.containers
def test_the_window_outlives_the_agents_own_oom_kill(image: Path, rootfs: Path, tmp_path: Path) -> None:
    """The kernel kills the agent for its memory limit; the next one's first incident has the stacks from before."""
    with target(rootfs, tmp_path) as neighbour:
        pod = neighbour.container.pid
        with listening(image, tmp_path, pod) as (agent, container, _):
            agent.wait_for("target_appeared", seconds=60)
            time.sleep(2)
            neighbour.burn(2)
            assert neighbour.answer() == "done"
            spool = tmp_path / "data" / "recorder"
            size = sum(path.stat().st_size for path in spool.rglob("*.seg"))
            until(lambda: sum(p.stat().st_size for p in spool.rglob("*.seg")) > size, 20, "the spool")
            identity = identify(container.pid)
            Path(f"/proc/{container.pid}/oom_score_adj").write_text(
                "1000"
            )  # the agent, not who takes its memory
            group = container.cgroup("memory", "cgroup.procs")
            with started((sys.executable, "-c", HOG, str(group))):
                until(lambda: not is_running(identity), 60, "the agent to be killed")
                assert container.counted("memory.oom_control", "oom_kill") >= 1
            assert container.process.wait(60) == 128 + signal.SIGKILL
        with listening(image, tmp_path, pod) as (agent, _, url):
            found = agent.wait_for("target_appeared", seconds=60)["target"]
            job = capture(url, found["pid"], "stacks")
            until(lambda: call("GET", job)[1]["state"] != "running", 60, "the capture")
            incident = call("GET", job)[1]["incident"]
    shown = ask(
        agent_box(image, tmp_path, "incidents", "export", incident, "--format", "collapsed", "-o", "-"),
        tmp_path,
    )
    assert "burn_as_told" in shown, "it was only ever seen by the agent that was killed"


@pytest.mark.interop
def test_the_service_outlives_agents_that_are_killed(image: Path, rootfs: Path, tmp_path: Path) -> None:
    """It starts without one; while three of them come and are killed, it is the same process and answers every request."""
    with running(service_box(rootfs, "service", tasks=100), tmp_path) as service:
        assert service.process.stdout
        port = int(service.process.stdout.readline())
        identity = identify(service.pid)
        box = agent_box(image, tmp_path, "sidecar", "--json", "--listen", "off", pod=service.pid)
        stop, counts = threading.Event(), list[int]()
        asking = threading.Thread(target=lambda: counts.append(requests_until(stop, port)))
        asking.start()
        try:
            for _ in range(3):
                with running(box, tmp_path) as container:
                    AgentProcess(container.process).wait_for("target_appeared", seconds=60)
                    os.kill(container.pid, signal.SIGKILL)
                    assert container.process.wait(30) == 128 + signal.SIGKILL
        finally:
            stop.set()
            asking.join(30)
        assert counts[0] > 20, "all of them were answered"
        assert is_running(identity)


def requests_until(stop: threading.Event, port: int) -> int:
    """How many requests over one connection were answered, one after the other, each within 5 s."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        for number in itertools.count():
            if stop.wait(0.02):
                return number
            connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
    raise AssertionError("unreachable")


@pytest.mark.interop
def test_sigterm_seals_what_is_nearly_done_and_discards_the_rest(
    image: Path, rootfs: Path, tmp_path: Path
) -> None:
    """Within the grace period of the pod, with nothing half-made on the volume."""
    with target(rootfs, tmp_path) as neighbour, target(rootfs, tmp_path, pod=neighbour.container.pid):
        with listening(image, tmp_path, neighbour.container.pid, memory=4 * MEMORY) as (
            agent,
            container,
            url,
        ):
            first = agent.wait_for("target_appeared", seconds=60)["target"]["pid"]
            second = agent.wait_for("target_appeared", lambda event: event["target"]["pid"] != first, 60)
            short = capture(url, first, "profile", duration=1.5)
            capture(url, second["target"]["pid"], "profile", duration=50)
            until(
                lambda: len(list((tmp_path / "data" / "incidents").glob(".*"))) == 2,
                30,
                "both to be under way",
            )
            began = time.monotonic()  # noqa: TID251 - a real grace period
            os.kill(container.pid, signal.SIGTERM)
            assert container.process.wait(30) == 0
            assert time.monotonic() - began < 30  # noqa: TID251 - as above
            agent.read()
        kept = incidents(tmp_path)
        assert len(kept) == 1, (kept, short)
        assert (
            json.loads((tmp_path / "data" / "incidents" / kept[0] / "incident.json").read_text())["target"][
                "pid"
            ]
            == first
        )
        ended = {event["type"] for event in agent.events}
        assert {"incident_sealed", "incident_lost"} <= ended


@pytest.mark.interop
def test_as_pid_1_it_leaves_no_zombies(image: Path, rootfs: Path, tmp_path: Path) -> None:
    """Orphans of a container that shares the agent's pid namespace become its children; none stays a zombie."""
    with listening(image, tmp_path, None) as (_, agent, _):
        box = Box(root=rootfs, command=("/usr/bin/python3", "-c", ORPHANS), uid=SERVICE, pod=agent.pid)
        with running(box, tmp_path) as container:
            assert container.process.stdout
            assert container.process.stdout.readline() == "left\n"
            assert len(zombies(agent.pid)) >= 20
            until(lambda: not zombies(agent.pid), 60, "the zombies to go")


def zombies(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] == "Z" and int(fields[1]) == parent:
            found.append(int(path.parent.name))
    return found


@pytest.mark.interop
def test_a_pod_without_an_agent_gets_one_later(image: Path, rootfs: Path, tmp_path: Path) -> None:
    """As an ephemeral container: it joins the pid namespace of a target that has run for a while, with no volume and no configuration."""
    with target(rootfs, tmp_path) as neighbour:
        neighbour.burn(1)
        assert neighbour.answer() == "done"
        box = Box(
            root=image,
            command=(
                "/opt/sentinel/bin/sentinel-agent",
                "attach",
                "--match",
                ".",
                "--data-dir",
                "/tmp/sentinel",
                "--json",
            ),
            uid=AGENT,
            capabilities=("CAP_SYS_PTRACE",),
            pod=neighbour.container.pid,
        )
        with running(box, tmp_path) as container:
            found = AgentProcess(container.process).wait_for("target_appeared", seconds=60)["target"]
            assert found["pid"] == 1
        box = replace(box, command=("/opt/sentinel/bin/sentinel-agent", "stacks", "1", "--json"))
        threads = json.loads(ask(box, tmp_path))["threads"]
        assert [frame["function"] for frame in threads[0]["frames"]][-2:] == ["main", "<module>"]


@pytest.mark.interop
def test_one_agent_of_the_node_sees_the_pods(image: Path, rootfs: Path, tmp_path: Path) -> None:
    """From the host's pid namespace: each target by its own pod, threads by the ids of this side, doctor by those of the other."""
    with target(rootfs, tmp_path, watched=True) as one, target(rootfs, tmp_path) as other:
        box = agent_box(image, tmp_path, "sidecar", "--json", host_pids=True)
        box = replace(
            box,
            environment={**box.environment, "SENTINEL_TARGET_ENVIRONMENT": "SENTINEL_WATCH=true"},
            uid=SERVICE,
        )
        os.chown(tmp_path / "data", SERVICE, SERVICE)
        with running(box, tmp_path) as container:
            agent = AgentProcess(container.process)
            found = agent.wait_for("target_appeared", seconds=60)["target"]
            assert (found["pid"], found["instance"]) == (one.container.pid, "pod-7")
            time.sleep(2)
            agent.read()
            assert other.container.pid not in {
                event["target"]["pid"] for event in agent.events if event["type"] == "target_appeared"
            }
        one.burn(5)
        verb = replace(box, command=(*box.command[:1], "stacks", str(one.container.pid), "--json"))
        (thread,) = json.loads(ask(verb, tmp_path))["threads"]
        assert thread["native_id"] == one.container.pid, "its own id is 1"
        assert thread["state"] == "running"
        verb = replace(box, command=(*box.command[:1], "doctor", str(one.container.pid), "--json"))
        checks = {check["name"]: check for check in json.loads(ask(verb, tmp_path))}
        assert checks["pid namespace"]["found"].endswith("there it is pid 1")


@pytest.mark.interop
def test_rules_of_a_configmap_are_taken_up_live(image: Path, rootfs: Path, tmp_path: Path) -> None:
    """The kubelet swaps a link of the mounted folder; the rules count without a restart, and a faulty set is refused."""
    with target(rootfs, tmp_path) as neighbour:
        box = agent_box(image, tmp_path, "sidecar", "--json", pod=neighbour.container.pid)
        config = tmp_path / "config"
        (config / "sentinel.yaml").unlink()
        swap(config, CONFIG)
        (config / "sentinel.yaml").symlink_to("..data/sentinel.yaml")
        with running(box, tmp_path) as container:
            agent = AgentProcess(container.process)
            agent.wait_for("target_appeared", seconds=60)
            swap(config, CONFIG.replace("cpu-spike", "other-spike"))
            assert "other-spike" in str(agent.wait_for("settings_reloaded", seconds=60))
            swap(config, "rules: [{name: broken}]\n")
            agent.wait_for("settings_refused", seconds=60)


def swap(folder: Path, text: str) -> None:
    """As the kubelet's atomic writer does it (pkg/volume/util/atomic_writer.go): a new folder, then one link renamed over another."""
    made = folder / f"..{time.time_ns()}"
    made.mkdir()
    (made / "sentinel.yaml").write_text(text)
    (folder / "..data_tmp").symlink_to(made.name)
    (folder / "..data_tmp").rename(folder / "..data")


@pytest.mark.interop
@pytest.mark.usefixtures("rootfs")
def test_the_health_check_fails_for_an_agent_that_hangs(image: Path, tmp_path: Path) -> None:
    """It passes while the agent answers and where it does not listen, and fails while it is stopped."""
    with listening(image, tmp_path, None) as (_, container, url):
        address = url.split("/")[2]
        box = agent_box(image, tmp_path, pod=container.pid)
        probe = replace(
            box,
            command=("/opt/sentinel/bin/healthcheck",),
            environment={**box.environment, "SENTINEL_LISTEN": address},
        )

        def probed(**environment: str) -> tuple[int, str]:
            with running(replace(probe, environment={**probe.environment, **environment}), tmp_path) as found:
                said, _ = found.process.communicate(timeout=60)
                return found.process.returncode, said

        until(lambda: probed() == (0, "HTTP/1.1 200 OK\n"), 60, "the agent to answer")
        status, said = probed(SENTINEL_LISTEN=f"127.0.0.1:{free_port()}")
        assert (status, "does not listen" in said) == (0, True)
        os.kill(container.pid, signal.SIGSTOP)
        try:
            assert probed()[0] == 1
        finally:
            os.kill(container.pid, signal.SIGCONT)
