"""CPU per stack sample, ours beside `py-spy record --nonblocking`, on the same target: `python bench/reader_cost.py [PYTHON...]`.

Two targets: `handlers`, an asyncio service whose handlers compute for 1 ms, and `saturated`, tests/cpython/busy_program.py, whose
functions last about a microsecond. Both readers run at RATE for SECONDS, one after the other. Prints CPU microseconds per
sample (system time included), the shares of whole, partial and failed stacks, and the cost of a task count.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from sentinel_agent.cpython.process import open_process
from sentinel_agent.target.doctor import find_py_spy

RATE = 100
SECONDS = 10
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
TARGETS = {
    "handlers": ["-c", HANDLERS],
    "saturated": [str(ROOT / "tests" / "cpython" / "busy_program.py"), "asyncio", "600"],
}


def ours(pid: int) -> str:
    reader = open_process(pid)
    kinds: Counter[str] = Counter()
    started, cpu = time.perf_counter(), time.process_time()
    for tick in range(RATE * SECONDS):
        time.sleep(max(0.0, started + tick / RATE - time.perf_counter()))
        kinds.update(thread.stack.kind for thread in reader.sample())
    each = (time.process_time() - cpu) / (RATE * SECONDS)
    counted = time.perf_counter()
    for _ in range(1000):
        reader.task_count()
    count = (time.perf_counter() - counted) / 1000
    shares = ", ".join(f"{kind} {number / kinds.total():.1%}" for kind, number in kinds.most_common())
    return f"{each * 1e6:.0f} us a sample ({shares}), task count {count * 1e6:.1f} us"


def py_spy(pid: int) -> str:
    command = [
        find_py_spy() or "py-spy",
        "record",
        "--nonblocking",
        "-r",
        str(RATE),
        "-d",
        str(SECONDS),
        "-f",
        "raw",
        "-o",
        os.devnull,
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*command, "-p", str(pid)], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return f"{cpu / (RATE * SECONDS) * 1e6:.0f} us a sample, start included"


def main(pythons: list[str]) -> None:
    for python in pythons:
        for name, arguments in TARGETS.items():
            target = subprocess.Popen([python, *arguments], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
            try:
                assert target.stdout
                target.stdout.readline()
                print(
                    f"{python} {name}\n  ours:   {ours(target.pid)}\n  py-spy: {py_spy(target.pid)}",
                    flush=True,
                )
            finally:
                target.kill()
                target.communicate()


if __name__ == "__main__":
    main(sys.argv[1:] or [sys.executable])
