"""Who holds memory, by the shapes of mappings: made-up ones, any text, and a live process whose arenas are known."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.target.mappings import KINDS, parse, totals

SMAPS = """\
55d0c0000000-55d0c0100000 r-xp 00000000 08:01 1234                       /usr/bin/python3.11
Rss:                 512 kB
55d0c1000000-55d0c1200000 rw-p 00000000 00:00 0                          [heap]
Size:               2048 kB
Rss:                1024 kB
7f0000000000-7f0000021000 rw-p 00000000 00:00 0
Rss:                 100 kB
7f0000021000-7f0004000000 ---p 00000000 00:00 0
Rss:                   0 kB
7f0004000000-7f0008000000 rw-p 00000000 00:00 0
Rss:                  10 kB
7f0010000000-7f0010001000 ---p 00000000 00:00 0
7f0010001000-7f0010801000 rw-p 00000000 00:00 0
Rss:                  12 kB
7f0020000000-7f0020100000 rw-p 00000000 00:00 0
Rss:                1024 kB
7f0030000000-7f0030100000 rw-s 00000000 00:01 99                         /dev/shm/x (deleted)
Rss:                   4 kB
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
Rss:                  20 kB
7ffd00100000-7ffd00102000 r-xp 00000000 00:00 0                          [vdso]
"""


def test_each_shape_is_one_kind() -> None:
    """An arena with room and a full one, a stack above its guard, a block of Python's: each is counted where it belongs."""
    found = {
        kind: (each.count, each.resident_bytes // 1024)
        for kind, each in totals(parse(SMAPS.splitlines())).items()
    }
    assert found == {
        "main_heap": (1, 1024),
        "malloc_arenas": (2, 110),
        "thread_stacks": (2, 32),
        "anonymous": (1, 1024),
        "shared": (1, 4),
        "files": (2, 512),
    }


@given(st.lists(st.one_of(st.text(max_size=80), st.sampled_from(SMAPS.splitlines())), max_size=60))
def test_any_lines_are_parsed(lines: list[str]) -> None:
    """What is no mapping is passed over, and sums are never negative."""
    found = totals(parse(lines))
    assert tuple(found) == KINDS
    assert all(min(each.count, each.bytes, each.resident_bytes) >= 0 for each in found.values())


THREADS = """
import ctypes, threading
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
ready = threading.Barrier(4)
def hold():
    block = libc.malloc(100_000)
    ctypes.memset(block, 1, 100_000)
    ready.wait()
    threading.Event().wait()
for _ in range(3): threading.Thread(target=hold, daemon=True).start()
ready.wait()
print("ready", flush=True)
input()
"""


def test_three_threads_have_an_arena_and_a_stack_each() -> None:
    """A live process on glibc: each thread's first malloc makes an arena of its own."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("arenas are glibc's")
    process = subprocess.Popen(
        [sys.executable, "-c", THREADS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"MALLOC_ARENA_MAX": "8"},
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        found = totals(parse(Path(f"/proc/{process.pid}/smaps").read_text().splitlines()))
        status = Path(f"/proc/{process.pid}/statm").read_text().split()
    finally:
        process.kill()
        process.communicate()
    assert found["malloc_arenas"].count == 3
    assert found["malloc_arenas"].resident_bytes > 300_000
    assert found["thread_stacks"].count == 4
    resident = sum(each.resident_bytes for each in found.values())
    assert resident == pytest.approx(int(status[1]) * 4096, rel=0.2)
