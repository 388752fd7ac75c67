"""A target at 92% of a real memory limit: the captures that could kill it are skipped, the light evidence is saved, it lives on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.support import SENTINEL
from tests.target.cgroups import below, own

pytestmark = pytest.mark.e2e

LIMIT = 96 * 1024**2
FILLS = """
import asyncio, sys
kept = []
def share():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * 4096 / int(sys.argv[1])
async def main():
    while share() < 0.92:
        kept.append(bytearray(b"x" * 2**18))
    print("ready", flush=True)
    while True:
        await asyncio.sleep(0.01)
sys.stdin.readline()
asyncio.run(main())
"""


def test_at_92_percent_of_its_limit_no_capture_kills_the_target(tmp_path: Path) -> None:
    """Everything is asked for and allowed; what was not done says why, and the process goes on."""
    memory = own("memory")
    command = [sys.executable, "-c", FILLS, str(LIMIT)]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as target,
        below(memory, target.pid, limit=LIMIT),
    ):
        try:
            assert target.stdin
            assert target.stdout
            target.stdin.write("\n")
            target.stdin.flush()
            assert target.stdout.readline() == "ready\n"
            kinds = "stacks,tasks,process,heap,profile,tracemalloc,memray,gc"
            done = subprocess.run(
                [
                    *(*SENTINEL, "dump", str(target.pid), "--capture", kinds, "--duration", "1s"),
                    *("--allow-injection", "--json", "--data-dir", str(tmp_path)),
                ],
                capture_output=True,
                text=True,
                timeout=90,
                check=True,
            )
            reports = {each["kind"]: each for each in json.loads(done.stdout)["captures"]}
            for heavy in (reports.pop(kind) for kind in ("tracemalloc", "memray", "gc")):
                assert heavy["status"] == "skipped"
                assert "rss_limit > 85" in heavy["reason"]
                assert "rss_limit is 9" in heavy["reason"]
            assert {each["status"] for each in reports.values()} == {"ok"}
            used = int(Path(f"/proc/{target.pid}/statm").read_text().split()[1]) * 4096 / LIMIT
            assert used > 0.88
            time.sleep(0.5)
            assert target.poll() is None
        finally:
            target.kill()
