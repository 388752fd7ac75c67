"""Real programs for the end-to-end tests: the agent's command line, proxies with an upstream, requests through them."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent
PROXIES = HERE.parent.parent / ".cache" / "proxies"
SENTINEL = (sys.executable, "-m", "sentinel_agent")

# What an operator would write; no hold, so that a spike is detected at the next tick.
RULE = """
rule_packs: []
rules:
  - name: cpu-spike
    metric: cpu
    trigger: {{min: 20, diff: 50, abs: 90}}
    baseline: {{kind: mean, window: 60s}}
    warmup: 5
    cooldown: 1m
    limit: {{count: 10, per: 1h, rearm_above: 100}}
    capture: {capture}
"""
# The tick may see only the begin of the spike: the stacks go on for half a second, which the profile before them takes anyway.
SPIKE = RULE.format(capture="[profile, {kind: stacks, duration: 500ms}, process]")


def interpreter(name: str) -> str:
    """The Python of one of the environments that `make` prepares; they are promised, so a missing one fails."""
    path = PROXIES / name / "bin" / "python"
    assert path.exists(), f"{path} is missing: run `make e2e`, which installs it"
    return str(path)


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Poll until `condition` answers something true; fails after `seconds`."""
    deadline = time.monotonic() + seconds  # noqa: TID251 - real processes take real time
    while time.monotonic() < deadline:  # noqa: TID251 - as above
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds:g} s in vain for {what}")


@contextmanager
def started(command: tuple[str, ...], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process group of its own that is gone when the context ends, however it ends."""
    process = subprocess.Popen(command, text=True, start_new_session=True, **options)
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(5)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def listening(port: int) -> bool:
    """Whether something accepts connections on the port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def get(url: str, proxy: int | None = None, seconds: float = 30) -> bytes:
    """The body of a GET, through a forward proxy on that port if one is given."""
    handler = urllib.request.ProxyHandler({"http": f"http://127.0.0.1:{proxy}"} if proxy else {})
    with urllib.request.build_opener(handler).open(url, timeout=seconds) as response:
        body: bytes = response.read()
        return body


class AgentProcess:
    """`sentinel-agent attach ... --json`: its events as they come."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        assert process.stdout is not None
        self._stdout = process.stdout
        os.set_blocking(self._stdout.fileno(), False)
        self._rest = ""

    def wait_for(
        self, kind: str, where: Callable[[dict[str, Any]], bool] = lambda _: True, seconds: float = 30
    ) -> dict[str, Any]:
        """The first event of that kind for which `where` is true, among those that came and those that will."""
        deadline = time.monotonic() + seconds  # noqa: TID251 - real processes take real time
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            while True:
                self.read()
                for event in self.events:
                    if event["type"] == kind and where(event):
                        return event
                left = deadline - time.monotonic()  # noqa: TID251 - as above
                assert left > 0, f"no {kind} within {seconds:g} s; there were {self.events}"
                selector.select(min(left, 0.5))

    def read(self) -> None:
        """Take in the events that have come."""
        try:
            chunk = os.read(self._stdout.fileno(), 1 << 20).decode()
        except BlockingIOError:
            return
        *lines, self._rest = (self._rest + chunk).split("\n")
        self.events += [json.loads(line) for line in lines if line]


@contextmanager
def attached(*arguments: str, data_dir: Path, config: str = SPIKE) -> Iterator[AgentProcess]:
    """An agent that watches, with its events read as JSON."""
    data_dir.mkdir(parents=True, exist_ok=True)
    path = data_dir / "sentinel.yaml"
    path.write_text(config)
    listen = (
        () if "--listen" in arguments else ("--listen", "off")
    )  # the usual address may be somebody else's
    command = (
        *SENTINEL,
        "attach",
        *arguments,
        *listen,
        "--json",
        "--data-dir",
        str(data_dir),
        "--config",
        str(path),
    )
    with started(command, stdout=subprocess.PIPE) as process:
        yield AgentProcess(process)


def sentinel(*arguments: str, check: int | None = 0) -> subprocess.CompletedProcess[str]:
    """One call of the command line; its exit status is checked unless `check` is None."""
    done = subprocess.run([*SENTINEL, *arguments], capture_output=True, text=True, timeout=60, check=False)
    if check is not None:
        assert done.returncode == check, (arguments, done.returncode, done.stdout, done.stderr)
    return done


def listed(data_dir: Path) -> list[dict[str, Any]]:
    """What `incidents list --json` says."""
    found: list[dict[str, Any]] = json.loads(
        sentinel("incidents", "list", "--json", "--data-dir", str(data_dir)).stdout
    )
    return found
