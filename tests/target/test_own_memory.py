"""The room that a process has below the memory limit of its own cgroup, against real cgroups."""

from __future__ import annotations

import subprocess
import sys

from sentinel_agent.target.own_memory import OwnMemory, give_back
from tests.target.cgroups import below, own

LIMIT = 64 * 1024**2
HOLDS = """
import sys
kept = []
for line in sys.stdin:
    kept.append(bytearray(b"x" * int(line)))
    print("done", flush=True)
"""


def test_what_is_left_shrinks_by_what_is_used() -> None:
    """A process that takes 20 MiB more has 20 MiB less, give or take what the kernel counts in batches."""
    memory = own("memory")
    command = [sys.executable, "-c", HOLDS]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
        below(memory, process.pid, limit=LIMIT),
    ):
        try:
            assert process.stdin
            assert process.stdout

            def take(size: int) -> int:
                process.stdin.write(f"{size}\n")  # type: ignore[union-attr]  # a pipe, see above
                process.stdin.flush()  # type: ignore[union-attr]
                assert process.stdout.readline() == "done\n"  # type: ignore[union-attr]
                left = OwnMemory(pid=process.pid).left()
                assert left is not None
                return left

            before = take(1)
            assert OwnMemory(pid=process.pid).limit() == LIMIT
            assert before <= LIMIT
            taken = before - take(20 * 1024**2)
            assert 18 * 1024**2 < taken < 24 * 1024**2
        finally:
            process.kill()


def test_giving_back_is_harmless() -> None:
    """It may be called at any time, whatever C library there is."""
    give_back()
