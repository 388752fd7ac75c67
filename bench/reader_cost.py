"""CPU per stack sample, ours beside `py-spy record --nonblocking`, on the same target: `python bench/reader_cost.py [PYTHON...]`.

Three targets: `handlers`, an asyncio service whose handlers compute for 1 ms; `spike`, the same while one handler computes row after
row and lets nobody else run; and `saturated`, tests/cpython/busy_program.py, whose functions last about a microsecond. At each of
RATES both readers take ROUNDS turns of SECONDS. CPU microseconds per sample are of the whole process, waiting for the tick and system
time included; py-spy's start is taken off: it is the difference between a run of SECONDS + 1 and one of 1 second. Prints the medians
and their ratio, the shares of whole, partial and failed stacks (goal: 98 % whole of handlers and spike, 98 % whole and partial
together of saturated), and the cost of a task count.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from sentinel_agent.cpython.process import open_process
from sentinel_agent.target.doctor import find_py_spy

RATES = (19, 100)
SECONDS, ROUNDS = 5, 3
ROOT = Path(__file__).resolve().parent.parent
HANDLERS = """
import asyncio, os, time
async def handle(n):
    if n:
        return await handle(n - 1)
    until = time.perf_counter() + 0.001
    while time.perf_counter() < until:
        sum(range(50))
async def client(n):
    while True:
        await handle(5)
        await asyncio.sleep(0.001)
async def main():
    os.write(1, b'{}\\n')
    await asyncio.gather(*[client(n) for n in range(20)])
asyncio.run(main())
"""
SPIKE = HANDLERS.replace(
    "async def main",
    """def checksum(row):
    return sum(row) % 65521
async def report():
    rows = [list(range(number, number + 2000)) for number in range(50)]
    while True:
        for row in rows:
            checksum(row)
async def main""",
).replace("range(20)]", "range(20)], report()")
TARGETS = {
    "handlers": ["-c", HANDLERS],
    "spike": ["-c", SPIKE],
    "saturated": [str(ROOT / "tests" / "cpython" / "busy_program.py"), "asyncio", "600"],
}


def ours(pid: int, rate: int, kinds: Counter[str]) -> float:
    """CPU seconds per sample; the kinds of stacks are added to `kinds`."""
    reader = open_process(pid)
    for _ in range(20):
        reader.sample()
    started, cpu = time.perf_counter(), time.process_time()
    for tick in range(rate * SECONDS):
        time.sleep(max(0.0, started + tick / rate - time.perf_counter()))
        kinds.update(thread.stack.kind for thread in reader.sample())
    return (time.process_time() - cpu) / (rate * SECONDS)


def task_count(pid: int) -> float:
    """Seconds for one count of the target's tasks."""
    reader = open_process(pid)
    began = time.perf_counter()
    for _ in range(1000):
        reader.task_count()
    return (time.perf_counter() - began) / 1000


def py_spy_run(pid: int, rate: int, seconds: int) -> float:
    """CPU seconds of one run."""
    arguments = [
        "record",
        "--nonblocking",
        "-r",
        str(rate),
        "-d",
        str(seconds),
        "-f",
        "raw",
        "-o",
        os.devnull,
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([find_py_spy() or "py-spy", *arguments, "-p", str(pid)], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compare(pid: int, rate: int) -> str:
    kinds: Counter[str] = Counter()
    mine, other = [], []
    for _ in range(ROUNDS):
        mine.append(ours(pid, rate, kinds))
        start = py_spy_run(pid, rate, 1)
        other.append((py_spy_run(pid, rate, SECONDS + 1) - start) / (rate * SECONDS))
    our, their = statistics.median(mine), statistics.median(other)
    shares = ", ".join(f"{kind} {number / kinds.total():.1%}" for kind, number in kinds.most_common())
    return (
        f"{rate:3} Hz: ours {our * 1e6:.0f} us, py-spy {their * 1e6:.0f} us, ratio {our / their:.2f}, goal <= 0.5 "
        f"({min(mine) / max(other):.2f} to {max(mine) / min(other):.2f}); {shares}"
    )


def main(pythons: list[str]) -> None:
    for python in pythons:
        for name, arguments in TARGETS.items():
            target = subprocess.Popen([python, *arguments], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
            try:
                assert target.stdout
                target.stdout.readline()
                print(f"{python} {name}")
                for rate in RATES:
                    print("  " + compare(target.pid, rate), flush=True)
                print(f"  task count {task_count(target.pid) * 1e6:.1f} us")
            finally:
                target.kill()
                target.communicate()


if __name__ == "__main__":
    main(sys.argv[1:] or [sys.executable])
