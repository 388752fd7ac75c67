"""What the agent costs: CPU and memory of `attach` at default settings beside one busy asyncio service, nothing firing.

Run with `make bench`. Prints one line per round and the medians. CPU is the process's own (utime + stime of
/proc/PID/stat, children reaped included) over the round, in percent of one core; memory is Pss of smaps_rollup.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS, SECONDS, SETTLE = 5, 12.0, 45.0
GOAL, GOAL_PSS = 0.6, 35
BUSY = """
import asyncio
async def request():
    sum(range(3000))
    await asyncio.sleep(0)
async def main():
    while True:
        await asyncio.gather(*(request() for _ in range(20)))
        await asyncio.sleep(0.002)
asyncio.run(main())
"""
QUIET = "rule_packs: [default]\n"


def cpu_seconds(pid: int) -> float:
    """CPU seconds that a process and its reaped children have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def pss_mib(pid: int) -> float:
    """Proportional set size, in MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        target = subprocess.Popen([sys.executable, "-c", BUSY])
        agent = subprocess.Popen(
            [sys.executable, "-m", "sentinel_agent", "attach", str(target.pid), "--data-dir", folder],
            stdout=subprocess.DEVNULL,
        )
        try:
            # What the service does is new to the agent at first, and looked at more often than what it always does.
            time.sleep(SETTLE)
            shares = []
            for number in range(ROUNDS):
                before, target_before, began = (
                    cpu_seconds(agent.pid),
                    cpu_seconds(target.pid),
                    time.monotonic(),
                )
                time.sleep(SECONDS)
                elapsed = time.monotonic() - began
                share = 100 * (cpu_seconds(agent.pid) - before) / elapsed
                busy = 100 * (cpu_seconds(target.pid) - target_before) / elapsed
                shares.append(share)
                print(
                    f"round {number + 1}: agent {share:.2f} % of a core, target {busy:.0f} %, Pss {pss_mib(agent.pid):.1f} MiB"
                )
            print(
                f"median: agent {statistics.median(shares):.2f} % of a core (goal <= {GOAL}), "
                f"Pss {pss_mib(agent.pid):.1f} MiB (goal <= {GOAL_PSS})"
            )
        finally:
            for process in (agent, target):
                process.terminate()
                process.wait(10)


if __name__ == "__main__":
    main()
