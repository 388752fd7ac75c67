"""The embedded proxy beside nginx: CPU per request, throughput, added latency, memory of idle connections.

    .venv/bin/python bench/proxy_bench.py [--seconds 2] [--rounds 5]

One worker each, the same upstream (nginx, 1 KiB answers), wrk with 64 keep-alive connections over loopback. Rounds go
around all of them in turn, so that a machine whose speed drifts is the same for all; a ratio is taken within a round,
and the median of rounds is printed. `cpu` is CPU time per request of the proxy's process alone, nginx's over ours: the
steadier figure, since load generator and upstream share the machine. Added latency is at a pace that the client, a small
program on asyncio, bears without queueing itself, against the same client straight to the upstream.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACE = 400.0
TICKS = os.sysconf("SC_CLK_TCK")
ROUTES = "".join(
    f"      - {{name: r{n}, match: {{prefix: /service{n}/}}, cluster: back}}\n" for n in range(20)
)
CONFIG = """
listeners:
  - name: full
    address: 127.0.0.1:{full}
    routes:
{routes}      - {{name: rest, cluster: back, rate_limit: {{rate: 1000000, burst: 100000}}}}
  - name: pass
    address: 127.0.0.1:{through}
    routes:
      - {{name: pass, cluster: back, trace: false, forwarded: false, request_id: false}}
clusters:
  - {{name: back, endpoints: [{{address: "127.0.0.1:{upstream}"}}]}}
tracing: {{sampling: 1}}
{log}
"""
NGINX = """
worker_processes 1; daemon off; pid {folder}/{name}.pid; error_log {folder}/{name}.err;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 1000;
  client_body_temp_path {folder}/{name}1; proxy_temp_path {folder}/{name}2; fastcgi_temp_path {folder}/{name}3;
  uwsgi_temp_path {folder}/{name}4; scgi_temp_path {folder}/{name}5;
  upstream back {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{port} backlog=1024; {location} }}
}}
"""
ANSWER = f'location / {{ return 200 "{"x" * 1024}"; }}'
FORWARD = (
    "location / { proxy_pass http://back; proxy_http_version 1.1; proxy_set_header Connection ''; "
    "proxy_set_header X-Forwarded-For $remote_addr; }"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"nothing listens on port {port}")


@contextmanager
def running(*command: str, **options: object) -> Iterator[int]:
    process = subprocess.Popen(command, **options)  # type: ignore[call-overload]  # passed on as they are
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(10)


def child_of(pid: int) -> int:
    for _ in range(100):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.05)
    return pid


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(r"Pss:\s+(\d+)", text)[1]) / 1024  # type: ignore[index]  # the kernel always writes it


@dataclass
class Subject:
    name: str
    port: int
    pid: int
    cpu: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)


def wrk(port: int, seconds: float, scheme: str = "http") -> tuple[int, float]:
    done = subprocess.run(
        ["wrk", "-t1", "-c64", f"-d{max(1, round(seconds))}s", f"{scheme}://127.0.0.1:{port}/rest"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    requests = int(re.search(r"(\d+) requests in", done)[1])  # type: ignore[index]  # wrk's own format
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", done)[1])  # type: ignore[index]
    if "Non-2xx" in done or "Socket errors" in done:
        print(done)
    return requests, rate


async def paced(port: int, rate: float, seconds: float, connections: int = 8) -> float:
    """The 99th percentile of latency in ms at `rate` requests a second."""
    found: list[float] = []

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        gap = connections / rate
        start = time.monotonic() + gap * number / connections
        for turn in range(int(seconds / gap)):
            await asyncio.sleep(max(0.0, start + turn * gap - time.monotonic()))
            begin = time.perf_counter()
            writer.write(b"GET /rest HTTP/1.1\r\nHost: a\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(re.search(rb"(?i)content-length: (\d+)", head)[1]))  # type: ignore[index]
            found.append((time.perf_counter() - begin) * 1000)
        writer.close()

    await asyncio.gather(*(one(number) for number in range(connections)))
    return statistics.quantiles(found, n=100)[98]


def idle_memory(
    subject: Subject,
    count: int = 3000,
    secured: Callable[[socket.socket], socket.socket] = lambda plain: plain,
) -> tuple[float, float]:
    """MiB for 1,000 connections, of `count` to a process that has served none yet: nothing sent, and after one request each."""
    before = rss(subject.pid)
    clients = [secured(socket.create_connection(("127.0.0.1", subject.port))) for _ in range(count)]
    time.sleep(1)
    quiet = rss(subject.pid) - before
    for client in clients:
        client.sendall(b"GET /rest HTTP/1.1\r\nHost: a\r\n\r\n")
        client.settimeout(10)
        client.recv(65536)
    time.sleep(0.5)
    after = rss(subject.pid) - before
    for client in clients:
        client.close()
    return quiet * 1000 / count, after * 1000 / count


def subjects(stack: ExitStack, folder: Path) -> tuple[list[Subject], int]:
    upstream, through_nginx = free_port(), free_port()
    for name, port, location in (("up", upstream, ANSWER), ("nginx", through_nginx, FORWARD)):
        text = NGINX.format(folder=folder, name=name, upstream=upstream, port=port, location=location)
        (folder / f"{name}.conf").write_text(text)
    stack.enter_context(running("nginx", "-c", str(folder / "up.conf")))
    nginx = stack.enter_context(running("nginx", "-c", str(folder / "nginx.conf")))
    wait_for(upstream)
    wait_for(through_nginx)
    found = [Subject("nginx", through_nginx, child_of(nginx))]
    full, through = free_port(), free_port()
    for name, port, log in (
        ("full path, access log", full, f"access_log: {{path: {folder}/access.log}}"),
        ("pass-through", through, ""),
    ):
        path = folder / f"{port}.yaml"
        path.write_text(CONFIG.format(full=full, through=through, upstream=upstream, routes=ROUTES, log=log))
        arguments, descriptors = [], []
        for listener, number in (("full", full), ("pass", through)):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", number if number == port else 0))
            sock.listen(1024)
            stack.callback(sock.close)
            descriptors.append(sock.fileno())
            arguments += ["--listen", f"{listener}={sock.fileno()}"]
        command = (sys.executable, "-m", "sentinel_agent.proxy.process", "--config", str(path), *arguments)
        pid = stack.enter_context(running(*command, pass_fds=descriptors))
        wait_for(port)
        found.append(Subject(name, port, pid))
    return found, upstream


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip-latency", action="store_true")
    parser.add_argument("--skip-memory", action="store_true")
    options = parser.parse_args()
    for program in ("nginx", "wrk"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program} is not installed (tests/debian.txt)")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="proxy-bench-")))
        found, upstream = subjects(stack, folder)
        if not options.skip_memory:
            print("MiB per 1,000 idle connections: nothing sent, after one request each")
            for each in found:
                quiet, after = idle_memory(each)
                print(f"{each.name:24}{quiet:9.1f}{after:9.1f}   (PSS {rss(each.pid):.0f})")
        for subject in found:
            wrk(subject.port, 1)
        for _ in range(options.rounds):
            for subject in found:
                before = cpu_seconds(subject.pid)
                count, rate = wrk(subject.port, options.seconds)
                subject.cpu.append((cpu_seconds(subject.pid) - before) / count * 1e6)
                subject.rate.append(rate)
        report_throughput(found)
        if not options.skip_latency:
            report_latency(found, upstream, options.rounds, options.seconds)


def report_throughput(found: list[Subject]) -> None:
    nginx = found[0]
    print(f"{'':24}{'req/s':>9}{'vs nginx':>9}{'us/req':>8}{'cpu vs nginx (min-max)':>26}")
    for each in found:
        by_cpu = [one / other for one, other in zip(nginx.cpu, each.cpu, strict=True)]
        by_rate = [one / other for one, other in zip(each.rate, nginx.rate, strict=True)]
        print(
            f"{each.name:24}{statistics.median(each.rate):9.0f}{statistics.median(by_rate):9.2f}"
            f"{statistics.median(each.cpu):8.1f}{statistics.median(by_cpu):12.2f} ({min(by_cpu):.2f}-{max(by_cpu):.2f})"
        )


def report_latency(found: list[Subject], upstream: int, rounds: int, seconds: float) -> None:
    print(f"\np99 in ms at {PACE:.0f} requests a second, and what of it is added")
    straight = Subject("straight", upstream, 0)
    for _ in range(rounds):
        for each in (straight, *found):
            each.p99.append(asyncio.run(paced(each.port, PACE, seconds)))
    base = statistics.median(straight.p99)
    print(f"{'straight':24}{base:9.2f}")
    for each in found:
        print(f"{each.name:24}{statistics.median(each.p99):9.2f}{statistics.median(each.p99) - base:9.2f}")


if __name__ == "__main__":
    main()
