"""What each capture costs its target: throughput while it runs as a ratio, and the longest pause. Prints the table of docs/captures.md.

The target is an asyncio service that is always busy: requests of some 50 us, each with allocations, and a heap of 200,000 objects. It
counts its requests and the longest time between two of them in memory that it shares with us. Each capture is run between two
stretches without one, in turns, so that what else the machine does falls on all alike. Throughput is requests per second of the
target's CPU time, which a busy machine does not change; a stop is not in it, but in the gap. The pause is seen from inside: the longest gap
during the capture, beside the longest of as many seconds without one.

python bench/capture_cost.py [--rounds 4] [--python PYTHON]     some 55 seconds a round
"""

from __future__ import annotations

import argparse
import asyncio
import mmap
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from sentinel_agent.capture.base import CapturePlan, CaptureResult, Series, SeriesWindow
from sentinel_agent.capture.registry import load_captures
from sentinel_agent.config.settings import CaptureSettings
from sentinel_agent.core.model import Target
from sentinel_agent.core.rule import CaptureSpec
from sentinel_agent.errors import SentinelError
from sentinel_agent.target.identity import identify

TARGET = """
import asyncio, mmap, struct, sys, time
with open(sys.argv[1], "r+b") as file:
    shared = mmap.mmap(file.fileno(), 16)
heap = [[number] for number in range(200_000)]
def request():
    words = [str(number) for number in range(120)]
    return {"body": ",".join(words)}
async def main():
    done, last, clock = 0, time.perf_counter(), time.perf_counter
    print("ready", flush=True)
    while True:
        request()
        done += 1
        now = clock()
        longest = struct.unpack_from("d", shared, 8)[0]
        struct.pack_into("qd", shared, 0, done, max(longest, now - last))
        last = now
        await asyncio.sleep(0)
asyncio.run(main())
"""
CASES = {
    "stacks": CaptureSpec("stacks"),
    "stacks, pause: true": CaptureSpec("stacks", pause=True),
    "profile": CaptureSpec("profile", duration=2.0, rate=100),
    "tasks": CaptureSpec("tasks"),
    "process": CaptureSpec("process"),
    "heap": CaptureSpec("heap", duration=2.0),
    "gc": CaptureSpec("gc", duration=2.0),
    "tracemalloc": CaptureSpec("tracemalloc", duration=2.0),
    "memray": CaptureSpec("memray", duration=2.0),
}
SHORTEST = 1.5  # seconds of a stretch


@dataclass
class Seen:
    """What was seen of one capture, one figure a round."""

    ratio: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)
    usual: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    pause: list[int] = field(default_factory=list)
    hold: list[int] = field(default_factory=list)
    failed: str = ""


class Shared:
    """The target's counters."""

    def __init__(self, path: Path) -> None:
        self.pid = 0
        path.write_bytes(bytes(16))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 16)

    def begin(self) -> tuple[float, int]:
        struct.pack_into("d", self._map, 8, 0.0)
        return self._cpu(), self._done()

    def end(self, begun: tuple[float, int]) -> tuple[float, float]:
        """Requests a second of CPU time, and the longest gap in seconds."""
        (longest,) = struct.unpack_from("d", self._map, 8)
        return (self._done() - begun[1]) / max(self._cpu() - begun[0], 1e-3), longest

    def _done(self) -> int:
        """Requests so far; read again where the target was just writing."""
        while True:
            first, second = (struct.unpack_from("q", self._map)[0] for _ in range(2))
            if 0 <= second - first < 1000:
                return int(second)

    def _cpu(self) -> float:
        """Nanoseconds precise: the first field of `/proc/PID/schedstat`."""
        return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[0]) / 1e9


async def _capture(pid: int, spec: CaptureSpec) -> CaptureResult:
    window = SeriesWindow(0.0, 1.0, 1.0, {"rss_limit": Series("percent", [1.0], [10.0])})
    identity = identify(pid)
    target = Target(
        identity.pid, identity.start_time, identity.pid_namespace, "bench", "here", "main", "bench", ()
    )
    capture = load_captures().captures[spec.kind]
    with tempfile.TemporaryDirectory() as folder:
        plan = CapturePlan(
            target=target,
            folder=Path(folder),
            trigger_time=time.time(),
            spec=spec,
            deadline=30.0,
            max_bytes=2**26,
            series=lambda: window,
            max_pause=CaptureSettings().max_pause,
            allow_injection=True,
        )
        return await capture.capture(plan)


def _one(shared: Shared, pid: int, spec: CaptureSpec, seen: Seen) -> None:
    begun = shared.begin()
    time.sleep(SHORTEST)
    before, usual = shared.end(begun)
    begun, began = shared.begin(), time.perf_counter()
    try:
        result = asyncio.run(_capture(pid, spec))
    except SentinelError as error:
        seen.failed = error.message
        return
    seen.seconds.append(time.perf_counter() - began)
    during, gap = shared.end(begun)
    begun = shared.begin()
    time.sleep(SHORTEST)
    after, also_usual = shared.end(begun)
    seen.ratio.append(during / ((before + after) / 2))
    seen.gap.append(gap)
    seen.usual.append(max(usual, also_usual))
    seen.pause.append(result.pause_us)
    seen.hold.append(result.gil_hold_us)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    found = {name: Seen() for name in CASES}
    with tempfile.TemporaryDirectory() as folder:
        shared = Shared(Path(folder, "shared"))
        command = [options.python, "-c", TARGET, str(Path(folder, "shared"))]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout
                process.stdout.readline()
                shared.pid = process.pid
                for _ in range(options.rounds):
                    for name, spec in CASES.items():
                        _one(shared, process.pid, spec, found[name])
                        print(".", end="", file=sys.stderr, flush=True)
            finally:
                process.kill()
    print(
        "| capture | takes | throughput meanwhile | longest gap in the target | usual gap | reported pause | reported GIL hold |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, seen in found.items():
        if not seen.ratio:
            print(f"| `{name}` | not measured: {seen.failed} | | | | | |")
            continue
        low, high = min(seen.ratio), max(seen.ratio)
        print(
            f"| `{name}` | {statistics.median(seen.seconds):.2f} s | {statistics.median(seen.ratio):.2f} ({low:.2f} to {high:.2f}) "
            f"| {max(seen.gap) * 1e3:.0f} ms | {statistics.median(seen.usual) * 1e3:.0f} ms "
            f"| {max(seen.pause) / 1e3:.1f} ms | {max(seen.hold) / 1e3:.1f} ms |"
        )


if __name__ == "__main__":
    main()
