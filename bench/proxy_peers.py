"""The embedded proxy beside other proxies written in Python: proxy.py, mitmproxy, and a gateway on aiohttp.

    .venv/bin/python -m bench.proxy_peers [--seconds 2] [--rounds 3]

As in `proxy_bench.py`: one worker each, the same upstream, wrk with 64 connections, rounds around all in turn. The peers
run in the environments of the end-to-end tests (`make e2e` makes them). proxy.py is a forward proxy here, since its
reverse mode loses the second request of a connection (2.4.10).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench.proxy_bench import Subject, cpu_seconds, free_port, report_throughput, running, subjects, wait_for

PROXIES = Path(__file__).resolve().parent.parent / ".cache" / "proxies"
GATEWAY = """
import sys, uvloop
from aiohttp import ClientSession, TCPConnector, web
port, upstream = int(sys.argv[1]), sys.argv[2]
HOP = {"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "content-encoding"}
async def handle(request):
    session = request.app["session"]
    headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP}
    headers["X-Forwarded-For"] = request.remote
    async with session.request(request.method, upstream + request.raw_path, headers=headers,
                               data=request.content if request.can_read_body else None, allow_redirects=False) as answer:
        body = await answer.read()
        kept = {k: v for k, v in answer.headers.items() if k.lower() not in HOP}
        return web.Response(status=answer.status, headers=kept, body=body)
async def main():
    app = web.Application()
    async def session(app):
        app["session"] = ClientSession(connector=TCPConnector(limit=256), auto_decompress=False)
        yield
        await app["session"].close()
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", handle)
    return app
uvloop.install()
web.run_app(main(), host="127.0.0.1", port=port, print=None, access_log=None)
"""
FORWARD = 'request = function() return wrk.format("GET", "http://127.0.0.1:{upstream}/rest") end\n'


def wrk(subject: Subject, seconds: float, script: Path | None) -> tuple[int, float]:
    """Requests that were answered, and how many a second."""
    extra = ("-s", str(script)) if script else ()
    done = subprocess.run(
        [
            "wrk",
            "-t1",
            "-c64",
            f"-d{max(1, round(seconds))}s",
            *extra,
            f"http://127.0.0.1:{subject.port}/rest",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    if "Non-2xx" in done:
        print(subject.name, done)
    requests = int(re.search(r"(\d+) requests in", done)[1])  # type: ignore[index]  # wrk's own format
    return requests, float(re.search(r"Requests/sec:\s+([\d.]+)", done)[1])  # type: ignore[index]


def tree_seconds(pid: int) -> float:
    """CPU time of a process and its descendants: proxy.py accepts and works in processes of their own."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return cpu_seconds(pid) + sum(tree_seconds(int(child)) for child in children)


def peers(stack: ExitStack, folder: Path, upstream: int) -> list[Subject]:
    """Those that are installed, started."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    (folder / "gateway.py").write_text(GATEWAY)
    ports = [free_port() for _ in range(3)]
    origin = f"http://127.0.0.1:{upstream}"
    commands = {
        "aiohttp, uvloop": (sys.executable, str(folder / "gateway.py"), str(ports[0]), origin),
        "proxy.py (forward)": (
            *(str(PROXIES / "proxypy/bin/python"), "-m", "proxy", "--hostname", "127.0.0.1"),
            *("--port", str(ports[1]), "--num-workers", "1", "--num-acceptors", "1", "--log-level", "ERROR"),
        ),
        "mitmproxy (reverse)": (
            *(str(PROXIES / "mitmproxy/bin/mitmdump"), "-q", "--set", f"confdir={folder}/mitm"),
            *("--listen-host", "127.0.0.1", "-p", str(ports[2]), "--mode", f"reverse:{origin}"),
        ),
    }
    found = []
    for (name, command), port in zip(commands.items(), ports, strict=True):
        if not Path(command[0]).exists():
            print(f"{name} is not installed: make e2e installs it")
            continue
        pid = stack.enter_context(running(*command, **quiet))
        wait_for(port)
        found.append(Subject(name, port, pid))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="proxy-peers-")))
        ours, upstream = subjects(stack, folder)
        found = [*ours, *peers(stack, folder, upstream)]
        forward = folder / "forward.lua"
        forward.write_text(FORWARD.format(upstream=upstream))
        scripts = {each.name: forward for each in found if "forward" in each.name}
        for turn in range(options.rounds + 1):  # the first one warms up
            for each in found:
                before = tree_seconds(each.pid)
                count, rate = wrk(each, options.seconds, scripts.get(each.name))
                if turn:
                    each.cpu.append((tree_seconds(each.pid) - before) / count * 1e6)
                    each.rate.append(rate)
        report_throughput(found)


if __name__ == "__main__":
    main()
