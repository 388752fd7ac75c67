"""A storm of captures: several services in a pod, and incidents of all of them asked for faster than they can be made."""

from __future__ import annotations

import asyncio
import contextlib
import json
import urllib.error
import urllib.request
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sentinel_agent.clock import SystemClock
from tests.containers.bundle import Box, Container, running
from tests.containers.pod import MEMORY, SERVICE, agent_box
from tests.e2e.support import AgentProcess, free_port, until

HERE = Path(__file__).parent
TOKEN = "a-token-of-this-storm"
CAPTURES = ("stacks", "tasks", "process", "profile")
CONFIG = "rule_packs: []\nrules: []\n"


@dataclass(slots=True)
class Outcome:
    """Every answer, and what the agent's cgroup counted. Bytes; `rest` and `resident` are without page
    cache: before the storm, and the highest that was seen. `disk` is the most that the data directory held."""

    answers: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    captures: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    listed: int = 0
    peak: int = 0
    rest: int = 0
    resident: int = 0
    disk: int = 0
    oom_kills: int = 0
    cpu_seconds: float = 0.0


def call(method: str, url: str, document: Any = None) -> tuple[int, Any]:
    """Status and JSON of an answer of the agent."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    body = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(url, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def service_box(rootfs: Path, name: str, *, tasks: int = 0, pod: int | None = None) -> Box:
    """An asyncio service in a container of its own, in the pid namespace of `pod`; it prints its port."""
    return Box(
        root=rootfs,
        command=("/usr/bin/python3", "/srv/service.py", str(tasks)),
        uid=SERVICE,
        binds={"/srv": HERE},
        environment={"OTEL_SERVICE_NAME": name, "HOSTNAME": "pod-7"},
        pod=pod,
    )


async def traffic(ports: list[int], stop: asyncio.Event) -> None:
    """Requests to every service, some 50 a second each."""

    async def one(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while not stop.is_set():
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))
            await asyncio.sleep(0.02)
        writer.close()

    await asyncio.gather(*(one(port) for port in ports))


def storm(
    image: Path,
    rootfs: Path,
    folder: Path,
    *,
    asked: int,
    seconds: float,
    targets: int = 4,
    tasks: int = 500,
    memory: int = MEMORY,
    warm: float = 5.0,
    config: str = CONFIG,
) -> Outcome:
    """Ask for `asked` incidents in `seconds`, in turn of each of `targets`, after `warm` seconds of recording; account for each."""
    services: dict[str, int] = {}
    outcome = Outcome()
    with ExitStack() as stack:
        pod = None
        for name in (f"service-{number}" for number in range(targets)):
            container = stack.enter_context(running(service_box(rootfs, name, tasks=tasks, pod=pod), folder))
            assert container.process.stdout
            services[name] = int(container.process.stdout.readline())
            pod = pod or container.pid
        listen = f"127.0.0.1:{free_port()}"
        box = agent_box(image, folder, "sidecar", "--json", "--listen", listen, pod=pod, memory=memory)
        (folder / "config" / "sentinel.yaml").write_text(config)
        box.environment["SENTINEL_API_CAPTURE_TOKENS"] = TOKEN  # type: ignore[index]  # ours, made just now
        agent = stack.enter_context(running(box, folder))
        asyncio.run(_storm(agent, folder / "data", listen, services, asked, seconds, warm, outcome))
        outcome.peak = agent.memory("memory.max_usage_in_bytes")
        outcome.oom_kills = agent.counted("memory.oom_control", "oom_kill")
        assert agent.process.poll() is None, f"the agent ended with {agent.process.returncode}"
    return outcome


async def _storm(
    container: Container,
    data: Path,
    listen: str,
    services: dict[str, int],
    asked: int,
    seconds: float,
    warm: float,
    outcome: Outcome,
) -> None:
    url = f"http://{listen}/api/v1"
    agent = AgentProcess(container.process)
    pids = await asyncio.to_thread(_appeared, agent, list(services))
    stop = asyncio.Event()
    load = asyncio.create_task(traffic(list(services.values()), stop))
    watch = asyncio.create_task(_watch(container, data, outcome))
    drain = asyncio.create_task(_listen(agent))
    try:
        await asyncio.sleep(warm)
        before = container.cpu_seconds()
        outcome.rest = container.counted("memory.stat", "total_rss")
        jobs: list[str] = []
        clock = SystemClock()
        began = clock.monotonic()
        for number in range(asked):
            await asyncio.sleep(max(0.0, began + number * seconds / asked - clock.monotonic()))
            wanted = {"pid": pids[number % len(pids)], "captures": CAPTURES}
            status, answer = await asyncio.to_thread(call, "POST", f"{url}/captures", wanted)
            if status == 202:
                jobs.append(answer["id"])
            else:
                outcome.answers[f"{status} {answer['error']['code']}"] += 1
        await asyncio.to_thread(until, lambda: _ended(url, jobs), 120, "all captures to end")
        outcome.cpu_seconds = container.cpu_seconds() - before
        await asyncio.to_thread(_account, url, jobs, outcome)
    finally:
        stop.set()
        watch.cancel()
        drain.cancel()
        await asyncio.gather(load, watch, drain, return_exceptions=True)


def _appeared(agent: AgentProcess, names: list[str]) -> list[int]:
    """The pids of the services, as the agent numbers them."""

    def pid(name: str) -> int:
        event = agent.wait_for("target_appeared", lambda event: event["target"]["service"] == name, 60)
        return int(event["target"]["pid"])

    return [pid(name) for name in names]


def _ended(url: str, jobs: list[str]) -> bool:
    return all(call("GET", f"{url}/captures/{job}")[1]["state"] != "running" for job in jobs)


def _account(url: str, jobs: list[str], outcome: Outcome) -> None:
    for job in jobs:
        document = call("GET", f"{url}/captures/{job}")[1]
        if document["incident"] is None:
            outcome.answers[document["state"]] += 1
            outcome.refusals[document["reason"].partition(":")[0]] += 1
            continue
        status, incident = call("GET", f"{url}/incidents/{document['incident']}")
        if status != 200:
            outcome.answers["sealed, removed since"] += 1
            continue
        outcome.answers["sealed"] += 1
        for report in incident["captures"]:
            outcome.captures[f"{report['kind']} {report['status']}"] += 1
            if report["status"] != "ok":
                outcome.skipped[f"{report['kind']}: {report['reason'][:70]}"] += 1
    outcome.listed = len(call("GET", f"{url}/incidents?limit=500")[1])


async def _watch(container: Container, data: Path, outcome: Outcome) -> None:
    while True:
        outcome.disk = max(outcome.disk, await asyncio.to_thread(_bytes_in, data))
        outcome.resident = max(outcome.resident, container.counted("memory.stat", "total_rss"))
        await asyncio.sleep(0.05)


def _bytes_in(folder: Path) -> int:
    """What the files have; those that are removed while it is counted are left out."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


async def _listen(agent: AgentProcess) -> None:
    """The pipe must not fill up: then the agent would wait for us."""
    while True:
        agent.read()
        await asyncio.sleep(0.2)
