"""A tree that looks like /proc, and real processes that say what they did: the material of the target tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PYTHON = (sys.executable, "-c")


class FakeProc:
    """A root folder with `/proc`; `add` and `remove` stand for starting and ending processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc").mkdir(parents=True, exist_ok=True)
        self._namespace = root / "namespace"
        self._namespace.touch()

    def add(
        self,
        pid: int,
        *,
        name: bytes = b"python3",
        state: bytes = b"S",
        parent: int = 1,
        flags: int = 0x400000,
        ticks: int = 0,
        threads: int = 1,
        start: int = 100,
        command: bytes = b"python3\0/srv/gateway.py\0",
        exe: str = "/usr/bin/python3.11",
        children: str = "",
        thread_group: int | None = None,
    ) -> Path:
        folder = self.root / "proc" / str(pid)
        task = folder / "task" / str(pid)
        task.mkdir(parents=True)
        fields = [b"%d (%s) %s %d" % (pid, name, state, parent), *[b"0"] * 48]
        for field, value in {9: flags, 14: ticks, 20: threads, 22: start}.items():
            fields[field - 4] = b"%d" % value
        (folder / "stat").write_bytes(b" ".join(fields))
        (folder / "cmdline").write_bytes(command)
        (folder / "status").write_text(
            f"Name:\tx\nTgid:\t{thread_group or pid}\nUid:\t0\t0\t0\t0\nCapEff:\t0000000000000000\n"
            "voluntary_ctxt_switches:\t1\nnonvoluntary_ctxt_switches:\t2\n"
        )
        (folder / "statm").write_text("100 50 10 1 0 10 0")
        (folder / "maps").write_text(f"00400000-00401000 r-xp 00000000 00:00 0 {exe}\n")
        (folder / "exe").symlink_to(exe)
        (folder / "ns").mkdir()
        (folder / "ns/pid").hardlink_to(self._namespace)
        (task / "children").write_text(children)
        return folder

    def remove(self, pid: int) -> None:
        shutil.rmtree(self.root / "proc" / str(pid))

    def children(self, pid: int, *children: int) -> None:
        (self.root / f"proc/{pid}/task/{pid}/children").write_text(" ".join(map(str, children)))


@contextmanager
def running(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A real Python that runs `code`; killed and reaped at the end."""
    with started([*PYTHON, code, *arguments]) as process:
        yield process


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A real program with pipes for its input and output; killed and reaped at the end."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    """The next line that the process prints."""
    assert process.stdout
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str], text: str = "") -> None:
    """Send the process a line."""
    assert process.stdin
    process.stdin.write(text + "\n")
    process.stdin.flush()


def executable(pid: int) -> Path:
    """The program that the process runs at this moment; a child is still its parent's until the exec is done."""
    return Path(f"/proc/{pid}/exe").readlink()


def wait_ended(pid: int) -> None:
    """Block until a child has ended, without reaping it."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
