"""TLS at the proxy beside nginx, and changes of a proxy under load.

    .venv/bin/python -m bench.proxy_tls [--seconds 2] [--rounds 5] [--connections 1000] [--changes 30]

Memory of idle TLS 1.3 connections (PSS of the worker, nothing sent, and after one request each), CPU and throughput with 64
keep-alive connections as in `proxy_bench`. Then, for `--changes` seconds, wrk with connections that are kept and wrk with one
for each request, while the configuration is reloaded every two seconds and another supervisor takes over in the middle.
"""

from __future__ import annotations

import argparse
import signal
import socket
import ssl
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import trustme

from bench.proxy_bench import (
    ANSWER,
    FORWARD,
    NGINX,
    Subject,
    child_of,
    cpu_seconds,
    free_port,
    idle_memory,
    rss,
    running,
    wait_for,
    wrk,
)
from tests.e2e.support import until
from tests.e2e.test_proxy_changes import CLOSE, UPSTREAM, Place, failures

if TYPE_CHECKING:
    import subprocess

CONFIG = """
listeners:
  - name: web
    address: 127.0.0.1:{port}
    tls: {{certificates: [{{cert: {folder}/cert.pem, key: {folder}/key.pem}}], min_version: TLSv1.3{more}}}
    routes: [{{name: rest, cluster: back}}]
clusters:
  - {{name: back, endpoints: [{{address: "127.0.0.1:{upstream}"}}]}}
"""
SECURE = "ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem; ssl_protocols TLSv1.3; "


def subjects(stack: ExitStack, folder: Path) -> list[Subject]:
    upstream, port = free_port(), free_port()
    (folder / "up.conf").write_text(
        NGINX.format(folder=folder, name="up", upstream=upstream, port=upstream, location=ANSWER)
    )
    text = NGINX.format(
        folder=folder,
        name="nginx",
        upstream=upstream,
        port=port,
        location=SECURE.format(folder=folder) + FORWARD,
    )
    (folder / "nginx.conf").write_text(text.replace("backlog=1024", "ssl backlog=1024"))
    stack.enter_context(running("nginx", "-c", str(folder / "up.conf")))
    nginx = stack.enter_context(running("nginx", "-c", str(folder / "nginx.conf")))
    wait_for(upstream)
    wait_for(port)
    found = [Subject("nginx", port, child_of(nginx))]
    for name, more in (("full path", ""), ("full path, plaintext too", ", allow_plaintext: true")):
        port = free_port()
        path = folder / f"{port}.yaml"
        path.write_text(CONFIG.format(port=port, folder=folder, upstream=upstream, more=more))
        sock = socket.create_server(("127.0.0.1", port), backlog=1024)
        stack.callback(sock.close)
        words = ("--config", str(path), "--listen", f"web={sock.fileno()}")
        command = (sys.executable, "-m", "sentinel_agent.proxy.process", *words)
        found.append(Subject(name, port, stack.enter_context(running(*command, pass_fds=[sock.fileno()]))))
        wait_for(port)
    return found


def changes(seconds: int) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="proxy-changes-")))
        back = free_port()
        stack.enter_context(running(sys.executable, "-c", UPSTREAM, str(back)))
        wait_for(back)
        place = Place(folder, back)
        place.write("first")
        current: subprocess.Popen[str] = stack.enter_context(place.run())
        until(place.serves, 30, "the proxy")
        loads = {"kept": place.load(seconds), "one for each request": place.load(seconds, *CLOSE)}
        end = time.monotonic() + seconds - 2
        for turn in range(seconds):
            if time.monotonic() > end:
                break
            if turn == seconds // 6:
                current = stack.enter_context(place.run("--upgrade"))
                until(lambda: place.said().count("listens on") == 2, 30, "the upgrade")
                time.sleep(3)
            place.write(f"word{turn}")
            current.send_signal(signal.SIGHUP)
            time.sleep(2)
        taken = place.said().count("was taken in")
        print(f"\n{taken} reloads and an upgrade in {seconds} s")
        for name, load in loads.items():
            made, failed = failures(load)
            print(f"{name:24}{made:9} requests {failed:6} failed")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--changes", type=int, default=30, help="seconds; 0: leave that out")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="proxy-bench-")))
        authority = trustme.CA()
        pair = authority.issue_cert("a.example")
        (folder / "cert.pem").write_bytes(b"".join(each.bytes() for each in pair.cert_chain_pems))
        (folder / "key.pem").write_bytes(pair.private_key_pem.bytes())
        context = ssl.create_default_context()
        authority.configure_trust(context)
        found = subjects(stack, folder)
        print("MiB per 1,000 idle TLS connections: nothing sent, after one request each")
        for each in found:
            quiet, after = idle_memory(
                each,
                options.connections,
                lambda plain: context.wrap_socket(plain, server_hostname="a.example"),
            )
            print(f"{each.name:28}{quiet:9.1f}{after:9.1f}   (PSS {rss(each.pid):.0f})")
        for _ in range(options.rounds):
            for subject in found:
                before = cpu_seconds(subject.pid)
                count, rate = wrk(subject.port, options.seconds, scheme="https")
                subject.cpu.append((cpu_seconds(subject.pid) - before) / count * 1e6)
                subject.rate.append(rate)
        print(f"\n{'':28}{'req/s':>9}{'us/req':>8}{'cpu vs nginx (min-max)':>26}")
        for each in found:
            ratios = [one / other for one, other in zip(found[0].cpu, each.cpu, strict=True)]
            print(
                f"{each.name:28}{statistics.median(each.rate):9.0f}{statistics.median(each.cpu):8.1f}"
                f"{statistics.median(ratios):12.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            )
    if options.changes:
        changes(options.changes)


if __name__ == "__main__":
    main()
