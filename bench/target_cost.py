"""What the agent costs the target: CPU per request of a saturated asyncio service, with and without: `python bench/target_cost.py [ROUNDS]`.

The service answers HTTP over loopback, with 0.3 ms of work each so that it is the bottleneck, and is pinned to one processor;
the load (keep-alive connections that never pause) and the agent share another. The agent has settled, with the captures of its first
minute done, before anything is measured; "without" is with the agent stopped (SIGSTOP). A round is three turns of SECONDS: without,
without, with. Printed is the ratio with / without, its median and range, the noise band: the ratios of the two turns
without it, and what the agent itself used. A ratio within that band cannot be told from 1. Where the two processors are
threads of one core, whatever runs on the other slows the service down, the agent no more than anything else.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

SECONDS, ROUNDS, CONNECTIONS, SETTLE = 5.0, 6, 16, 45.0
SERVICE = """
import asyncio, os
os.sched_setaffinity(0, {0})
async def work():
    return str(sum(i * i for i in range(500)))
async def serve(reader, writer):
    try:
        while await reader.readuntil(b"\\r\\n\\r\\n"):
            body = "".join([await work() for _ in range(8)]).encode()
            writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
    except asyncio.IncompleteReadError:
        writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


def cpu_seconds(pid: int) -> float:
    """CPU seconds that the only thread of a process has used, in nanoseconds' resolution."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


async def load(port: int, seconds: float) -> int:
    """Requests answered in so many seconds."""
    answered = 0
    until = time.monotonic() + seconds

    async def one() -> None:
        nonlocal answered
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.monotonic() < until:
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))
            answered += 1
        writer.close()

    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
    return answered


def turn(pid: int, port: int) -> float:
    """CPU seconds of the service per request."""
    before = cpu_seconds(pid)
    requests = asyncio.run(load(port, SECONDS))
    return (cpu_seconds(pid) - before) / requests


def band(ratios: list[float]) -> str:
    """The median and the range."""
    return f"{statistics.median(ratios):.4f} ({min(ratios):.4f} to {max(ratios):.4f})"


def main(rounds: int) -> None:
    """Measure and print."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("two processors are needed: one for the service, one for load and agent")
    os.sched_setaffinity(0, {cores[1]})
    service = subprocess.Popen(
        [sys.executable, "-c", SERVICE.replace("{0}", f"{{{cores[0]}}}")], stdout=subprocess.PIPE
    )
    without, with_agent, noise, shares = [], [], [], []
    with tempfile.TemporaryDirectory(prefix="sentinel-target-cost-") as folder:
        command = [sys.executable, "-m", "sentinel_agent", "attach", str(service.pid), "--data-dir", folder]
        agent = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            assert service.stdout
            port = int(service.stdout.readline())
            asyncio.run(load(port, SETTLE))
            for number in range(rounds):
                agent.send_signal(signal.SIGSTOP)
                first = turn(service.pid, port)
                without.append(turn(service.pid, port))
                noise.append(without[-1] / first)
                agent.send_signal(signal.SIGCONT)
                asyncio.run(load(port, 1.0))
                before = cpu_seconds(agent.pid)
                with_agent.append(turn(service.pid, port))
                shares.append(100 * (cpu_seconds(agent.pid) - before) / SECONDS)
                print(
                    f"round {number + 1}: without {without[-1] * 1e6:.1f}, with {with_agent[-1] * 1e6:.1f} us a request, "
                    f"agent's main thread {shares[-1]:.2f} % of a core",
                    flush=True,
                )
        finally:
            agent.send_signal(signal.SIGCONT)
            for process in (agent, service):
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(15)
    ratios = [one / other for one, other in zip(with_agent, without, strict=True)]
    print(f"with / without {band(ratios)}; two turns without {band(noise)}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
