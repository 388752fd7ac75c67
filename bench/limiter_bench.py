"""The adaptive limit on real processes: two routes of one service, one of which burns CPU and is asked five times as often.

    .venv/bin/python bench/limiter_bench.py [--mode enforce|observe] [--json]

A service on asyncio (its heavy route waits and then burns CPU time, its light one answers at once), `sentinel-agent proxy`
with the agent beside it, which reads the service's CPU, and clients that send at a fixed pace, whatever comes back. The
service's CPU is read here too, from the kernel, so that the level is judged by what the limiter did and not by what it says.

What it shall show (`reference`: the adaptive limit's acceptance): limited within `hold` + 2 s of the step, 99.9 % of the
light route answered, the level within 5 % of the threshold after 10 s, everything let go 15 s after the step's end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SERVICE = """
import asyncio, sys, time
from aiohttp import web

async def heavy(request):
    await asyncio.sleep({wait})
    end = time.thread_time() + {burn}
    while time.thread_time() < end:
        pass
    return web.Response(text="done")

async def light(request):
    return web.Response(text="ok")

app = web.Application()
app.add_routes([web.get("/heavy", heavy), web.get("/light", light)])
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)
"""
CONFIG = """
listeners:
  - name: web
    address: 127.0.0.1:{port}
    routes:
      - {{name: heavy, match: {{prefix: /heavy}}, cluster: shop, timeout: 60s}}
      - {{name: light, cluster: shop, timeout: 60s}}
clusters: [{{name: shop, endpoints: [{{address: "127.0.0.1:{service}"}}]}}]
adaptive_limit: {{mode: {mode}, threshold: {threshold}, hold: {hold}, lag: 10s, metrics: [cpu]}}
"""
LINE = re.compile(rb"adaptive limit \((?:enforce|observe)\): route heavy (held|let go)")


@dataclass(frozen=True, slots=True)
class Plan:
    """Rates in requests a second, the rest in seconds (`burn` of CPU). Small figures: a shared machine must be able to give them."""

    mode: str = "enforce"
    threshold: float = 0.1
    hold: int = 5
    wait: float = 0.5
    burn: float = 0.003
    rate: float = 10.0
    step: float = 5.0
    before: float = 20.0
    during: float = 30.0
    after: float = 25.0


@dataclass(slots=True)
class Outcome:
    """What came of it; times in seconds after the step's begin, or end (`let_go`). `levels` are by second of the step."""

    limited: float | None = None
    let_go: float | None = None
    light: int = 0
    light_failed: int = 0
    heavy: dict[int, int] = field(default_factory=dict)
    levels: list[float] = field(default_factory=list)
    level_before: float = 0.0

    def steady(self) -> list[float]:
        """The levels from ten seconds after the limit on."""
        return self.levels[int((self.limited or 0) + 10) :]


async def run(plan: Plan, folder: Path) -> Outcome:
    """Play the plan."""
    outcome = Outcome()
    async with AsyncExitStack() as stack:
        port, service = _free_port(), _free_port()
        program = folder / "burning_shop.py"
        program.write_text(SERVICE.format(wait=plan.wait, burn=plan.burn))
        config = folder / "proxy.yaml"
        config.write_text(
            CONFIG.format(
                port=port, service=service, mode=plan.mode, threshold=plan.threshold, hold=plan.hold
            )
        )
        shop = await _start(stack, [sys.executable, str(program), str(service)])
        proxy = await _start(
            stack,
            [
                *(sys.executable, "-m", "sentinel_agent", "proxy", "--config", str(config), "--workers", "1"),
                *("--match", "burning_shop", "--data-dir", str(folder / "data"), "--listen", "off"),
            ],
        )
        assert proxy.stderr is not None
        events: list[tuple[float, str]] = []
        stack.push_async_callback(_end_task, asyncio.create_task(_follow(proxy.stderr, events)))
        await _listens(port)
        await _listens(service)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=60)
            )
        )
        clients = _Clients(session, f"http://127.0.0.1:{port}", plan, outcome)
        levels = [level async for level in clients.play(shop.pid)]
        outcome.level_before = statistics.mean(levels[2 : int(plan.before)])
        outcome.levels = levels[int(plan.before) : int(plan.before + plan.during)]
        held = [when - clients.begin for when, what in events if what == "held" and when > clients.begin]
        gone = [when - clients.end for when, what in events if what == "let go" and when > clients.end]
        outcome.limited = held[0] if held else None
        outcome.let_go = gone[-1] if gone else None
    return outcome


class _Clients:
    """Send at a fixed pace; `begin` and `end` of the step are on the monotonic clock."""

    def __init__(self, session: aiohttp.ClientSession, url: str, plan: Plan, outcome: Outcome) -> None:
        self._session = session
        self._url = url
        self._plan = plan
        self._outcome = outcome
        self.begin = self.end = 0.0

    async def play(self, pid: int) -> AsyncIterator[float]:
        """Yields the service's CPU of each second, as a share of a core."""
        plan, tasks = self._plan, set()
        phases = ((plan.before, 1.0), (plan.during, plan.step), (plan.after, 1.0))
        owed = owed_light = 0.0
        started = before = time.monotonic()
        cpu, second = _cpu(pid), 1
        self.begin = started + plan.before
        self.end = self.begin + plan.during
        while before < self.end + plan.after:
            await asyncio.sleep(0.01)
            now = time.monotonic()
            passed, factor = 0.0, 1.0
            for seconds, times in phases:
                if now - started >= passed:
                    factor = times
                passed += seconds
            owed += (now - before) * plan.rate * factor
            owed_light += (now - before) * 20
            before = now
            while owed >= 1:
                owed -= 1
                tasks.add(asyncio.create_task(self._ask("/heavy")))
            while owed_light >= 1:
                owed_light -= 1
                tasks.add(asyncio.create_task(self._ask("/light")))
            tasks = {task for task in tasks if not task.done()}
            if now - started >= second:
                used = _cpu(pid)
                yield used - cpu
                cpu, second = used, second + 1
        await asyncio.wait(tasks, timeout=30)

    async def _ask(self, path: str) -> None:
        status = 0
        try:
            async with self._session.get(self._url + path) as response:
                await response.read()
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError):
            pass
        outcome = self._outcome
        if path == "/light":
            outcome.light += 1
            outcome.light_failed += status != 200
        else:
            outcome.heavy[status] = outcome.heavy.get(status, 0) + 1


def _cpu(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


async def _follow(stream: asyncio.StreamReader, events: list[tuple[float, str]]) -> None:
    while line := await stream.readline():
        found = LINE.search(line)
        if found is not None:
            events.append((time.monotonic(), found[1].decode()))


async def _start(stack: AsyncExitStack, command: list[str]) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    stack.push_async_callback(_end, process)
    return process


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(20):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def _end_task(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _listens(port: int) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.1)
                continue
            writer.close()
            return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mode", choices=["enforce", "observe"], default="enforce")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    plan = Plan(mode=options.mode)
    with tempfile.TemporaryDirectory() as folder:
        outcome = asyncio.run(run(plan, Path(folder)))
    if options.json:
        print(json.dumps(asdict(outcome)))
        return
    steady = outcome.steady()
    print(f"level before           {outcome.level_before:.2f}, threshold {plan.threshold}")
    print(f"limited after          {outcome.limited} s (reach: {plan.hold + 2})")
    print(
        f"light answered         {1 - outcome.light_failed / outcome.light:.4%} of {outcome.light} (reach: 99.9 %)"
    )
    if steady:
        most = plan.threshold * 1.05
        print(
            f"level after 10 s       mean {statistics.mean(steady):.3f}, highest {max(steady):.3f} (reach: {most:.3f})"
        )
    print(f"let go after           {outcome.let_go} s (reach: 15)")
    print(f"heavy by status        {outcome.heavy}")
    print("levels", " ".join(f"{level:.2f}" for level in outcome.levels))


if __name__ == "__main__":
    main()
