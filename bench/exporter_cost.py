"""What sending costs: CPU for each span and reading, beside OpenTelemetry's Zipkin exporter and SkyWalking's own agent.

Run with `make bench-exporters`, which makes the two environments that are compared with. Every worker is a process that
makes its spans first, then measures its own CPU (user and system, all threads) from the first span handed over until the
last is delivered to a sink in another process: ours through queue, batches and thread as in the agent, OpenTelemetry's
through its BatchSpanProcessor, SkyWalking's through its reporter. Workers take turns; medians of the rounds are printed.
Memory is what the process's RSS grows by when an exporter is made and has sent once, in an agent's process.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROUNDS, SPANS, READINGS = 5, 20_000, 20_000
ALL_MIB = 25
"""What all exporters together may add: 60 MiB with them less 35 without."""

OURS = """
import random, sys, tempfile, time
from pathlib import Path
sys.path[:0] = [{root!r}, {root!r} + "/exporters"]
from sentinel_agent.clock import SystemClock
from sentinel_agent.core.model import Role, TargetId
from sentinel_agent.core.span import Endpoint, Span
from sentinel_agent.export.base import ExporterContext, ReadingSet
from sentinel_agent.export.hub import Hub
from sentinel_agent.export.registry import installed, make
from sentinel_agent.testing import make_target
import msgspec
kind, signal, place, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
clock = SystemClock()
now = clock.wall()
factory = installed()[kind]
given = {{"url": "http://" + place}} if kind != "skywalking" else {{"address": place}}
options = msgspec.convert({{**given, "queue": 10**6, "memory_bytes": 2**28, "interval": 0.05}}, factory.Options)
made = make(kind, options, ExporterContext(kind, clock, "0", "host"), {{kind: factory}})
hub = Hub([made], Path(tempfile.mkdtemp()), clock)
attributes = {{"http.request.method": "GET", "http.response.status_code": 200, "url.path": "/orders", "url.scheme": "http",
              "server.address": "gateway", "user_agent.original": "curl/8", "network.protocol.version": "1.1", "client.address": "10.0.0.1"}}
def span(number, **more):
    return Span(trace_id=f"{{number:032x}}", name="GET /orders", start=int(now * 1e9), duration=10**6, service="gateway",
                instance="host", attributes=attributes, **more)
if signal == "spans":
    items = [(span(n, span_id=f"{{n:016x}}", kind="server", remote=Endpoint("", "10.0.0.1", 5)),
              span(n, span_id=f"{{n + 2**40:016x}}", parent_id=f"{{n:016x}}", kind="client", remote=Endpoint("", "10.0.0.7", 80)))
             for n in range(1, count // 2 + 1)]
else:
    target = make_target(TargetId(1, 1), Role("gateway", "host"))
    names = ["cpu", "rss", "threads", "fds", "tasks", "io_read", "io_write", "ctx_voluntary", "ctx_involuntary", "throttled"]
    items = [ReadingSet(now + n, target, {{name: float(n) for name in names}}) for n in range(count // 10)]
hub.start()
time.sleep(0.2)
before = time.process_time()
for item in items:
    hub.offer(signal, item)
end = time.monotonic() + 60
while time.monotonic() < end and hub.statistics()[[line.signal for line in hub.lines].index(signal)].sent < count:
    time.sleep(0.1)
used = time.process_time() - before
(line,) = [each for each in hub.statistics() if each.signal == signal]
assert line.sent == count, line
hub.stop()
print(used / count * 1e6)
"""

OTEL = """
import sys, time
from opentelemetry.exporter.zipkin.json import ZipkinExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
place, count = sys.argv[3], int(sys.argv[4])
attributes = {"http.request.method": "GET", "http.response.status_code": 200, "url.path": "/orders", "url.scheme": "http",
              "server.address": "gateway", "user_agent.original": "curl/8", "network.protocol.version": "1.1", "client.address": "10.0.0.1"}
resource = Resource({"service.name": "gateway", "service.instance.id": "host"})
now = time.time_ns()
def span(number, id, parent, kind):
    context = SpanContext(number, id, False, TraceFlags(1))
    return ReadableSpan("GET /orders", context, parent, resource, attributes, kind=kind, start_time=now, end_time=now + 10**6)
spans = []
for n in range(1, count // 2 + 1):
    server = span(n, n, None, SpanKind.SERVER)
    spans += [server, span(n, n + 2**40, server.context, SpanKind.CLIENT)]
exporter = ZipkinExporter(endpoint="http://" + place + "/api/v2/spans")
processor = BatchSpanProcessor(exporter, max_queue_size=count + 1, max_export_batch_size=512, schedule_delay_millis=50)
time.sleep(0.2)
before = time.process_time()
for each in spans:
    processor.on_end(each)
processor.force_flush(60000)
used = time.process_time() - before
processor.shutdown()
print(used / count * 1e6)
"""

SKYWALKING = """
import logging, queue, sys, time
from skywalking import Component, Kind, Layer, config
place, count = sys.argv[3], int(sys.argv[4])
config.init(agent_collector_backend_services=place, agent_name="gateway", agent_instance_name="host")
from skywalking.agent.protocol.grpc import GrpcProtocol
from skywalking.trace.segment import Segment
from skywalking.trace.span import EntrySpan, ExitSpan
from skywalking.trace.tags import Tag
class Named(Tag):
    def __init__(self, key, val):
        self.key = key
        super().__init__(val)
    key = ""
tags = {"http.method": "GET", "http.status_code": "200", "url": "/orders", "url.scheme": "http", "server.address": "gateway",
        "user_agent.original": "curl/8", "network.protocol.version": "1.1", "client.address": "10.0.0.1"}
protocol = GrpcProtocol()
now = int(time.time() * 1000)
waiting = queue.Queue()
for _ in range(count // 2):
    segment = Segment()
    for number, (kind, peer) in enumerate(((EntrySpan, "10.0.0.1:5"), (ExitSpan, "10.0.0.7:80"))):
        span = kind(None, number, number - 1, "GET /orders", peer, Component.General, Layer.Http)
        span.start_time, span.end_time = now, now + 1
        for key, value in tags.items():
            span.tag(Named(key, value))
        segment.archive(span)
    waiting.put(segment)
time.sleep(0.5)
before = time.process_time()
while not waiting.empty():
    protocol.report_segment(waiting, block=False)
used = time.process_time() - before
print(used / count * 1e6)
"""

MEMORY = """
import asyncio, socket, sys, tempfile
from pathlib import Path
sys.path[:0] = [{root!r}, {root!r} + "/exporters"]
import sentinel_agent.agent
import msgspec
from sentinel_agent.clock import SystemClock
from sentinel_agent.export.base import ExporterContext
from sentinel_agent.export.hub import Hub, try_out
from sentinel_agent.export.registry import installed, make, as_view
from sentinel_agent.export.specimen import specimens
def rss():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
kinds = sys.argv[1].split(",")
context = ExporterContext("x", SystemClock(), "0", "host")
folder = Path(tempfile.mkdtemp())
items = specimens(context.clock.wall(), "host", "0", folder, b"")
place = sys.argv[2]
known = installed()
before = rss()
async def main():
    for kind in kinds:
        given = {{"address": "127.0.0.1:1"}} if kind == "skywalking" else {{"url": "s3://bucket", "endpoint": "http://" + place, "access_key": "a", "secret_key": "b"}} if kind == "s3" else {{}} if kind == "prometheus" else {{"url": "http://" + place}}
        made = make(kind, msgspec.convert(given, known[kind].Options), context, known)
        assert made.exporter is not None, made.fault
        view = as_view(made)
        if view is not None:
            view.render(None)
            continue
        for signal in made.signals:
            await try_out(made.exporter, signal, items[signal], 5)
        await made.exporter.close()
asyncio.run(main())
print(rss() - before)
"""


class Sink:
    """An HTTP/1.1 server that reads everything and says 202."""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or b"0")
                await reader.readexactly(length)
                writer.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _main(self) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**20)
        self.port = server.sockets[0].getsockname()[1]
        self.ready.set()
        await server.serve_forever()

    def __init__(self) -> None:
        self.ready = threading.Event()
        self.port = 0
        threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True).start()
        self.ready.wait(10)


def run(python: Path | str, program: str, *arguments: str) -> float:
    """What a worker prints."""
    done = subprocess.run(
        [str(python), "-c", program, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        sys.exit(f"a worker failed:\n{done.stderr[-3000:]}")
    return float(done.stdout.strip().splitlines()[-1])


def judge(what: str, figure: float, goal: float) -> None:
    """A figure beside what it should be at most."""
    verdict = "met" if figure <= goal else "MISSED"
    print(f"{figure:7.2f} {what} (goal: at most {goal:g}) {verdict}")


def main() -> None:
    """Measure and print."""
    http = f"127.0.0.1:{Sink().port}"
    oracle, otel = (ROOT / ".cache" / name / "bin" / "python" for name in ("oracle", "otel"))
    script = ROOT / "tests" / "exporters" / "oracle_env" / "skywalking_oracle.py"
    grpc_server = subprocess.Popen([oracle, script, "serve", "quiet"], stdin=-1, stdout=-1, text=True)
    assert grpc_server.stdout is not None
    grpc = f"127.0.0.1:{int(grpc_server.stdout.readline())}"
    ours = OURS.format(root=str(ROOT))
    workers: dict[str, tuple[Path | str, ...]] = {
        "ours, zipkin, a span": (sys.executable, ours, "zipkin", "spans", http, str(SPANS)),
        "OpenTelemetry SDK's zipkin, a span": (otel, OTEL, "", "", http, str(SPANS)),
        "ours, otlp, a span": (sys.executable, ours, "otlp", "spans", http, str(SPANS)),
        "ours, skywalking, a span": (sys.executable, ours, "skywalking", "spans", grpc, str(SPANS)),
        "apache-skywalking 1.2.0, a span": (oracle, SKYWALKING, "", "", grpc, str(SPANS)),
        "ours, otlp, a reading": (sys.executable, ours, "otlp", "metrics", http, str(READINGS)),
        "ours, skywalking, a reading": (sys.executable, ours, "skywalking", "metrics", grpc, str(READINGS)),
    }
    found: dict[str, list[float]] = {name: [] for name in workers}
    try:
        for number in range(ROUNDS):
            for name, command in workers.items():
                found[name].append(run(command[0], *map(str, command[1:])))
            print(f"round {number + 1} of {ROUNDS}", file=sys.stderr)
            time.sleep(0.5)
        medians = {name: statistics.median(each) for name, each in found.items()}
        for name, each in found.items():
            print(f"{medians[name]:7.1f} us CPU ({min(each):.1f} to {max(each):.1f})  {name}")
        zipkin, theirs = medians["ours, zipkin, a span"], medians["OpenTelemetry SDK's zipkin, a span"]
        judge("of OpenTelemetry's Zipkin exporter", zipkin / theirs, 1.0)
        native, official = medians["ours, skywalking, a span"], medians["apache-skywalking 1.2.0, a span"]
        judge("of apache-skywalking", native / official, 1.0)
        memory = MEMORY.format(root=str(ROOT))
        for kinds in ("prometheus", "zipkin", "otlp", "skywalking", "webhook", "pyroscope", "s3",
                      "prometheus,zipkin,otlp,skywalking,webhook,pyroscope,s3"):  # fmt: skip
            grown = statistics.median(run(sys.executable, memory, kinds, http) for _ in range(3))
            if "," in kinds:
                judge(f"MiB RSS  {kinds}", grown, ALL_MIB)
            else:
                print(f"{grown:7.1f} MiB RSS  {kinds}")
    finally:
        grpc_server.kill()
        grpc_server.wait()
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
