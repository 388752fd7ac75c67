"""Find the processes to watch: by pid, by what they are like, and the children of those."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sentinel_agent.core.model import Role, Target, TargetId
from sentinel_agent.errors import NoSuchTargetError, NotPermittedError, TargetError
from sentinel_agent.target.identity import Python, identity_of, python_of, service_name
from sentinel_agent.target.labels import NO_LABELS, Labels, labels_of
from sentinel_agent.target.procfs import (
    ROOT,
    ProcDir,
    ProcFormatError,
    Stat,
    parse_stat,
    read_bounded,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sentinel_agent.target.criteria import Criteria

MAX_DESCENDANTS = 1024
MAX_THREADS = 256
_MAX_DEPTH = 64
_OURSELVES = {"sentinel-agent", "sentinel_agent"}

ACCESS_HINT = (
    "run the agent as the same user as the process, or as root, or give it CAP_SYS_PTRACE "
    "(container: securityContext.capabilities.add: [SYS_PTRACE], and shareProcessNamespace)"
)


@dataclass(frozen=True, slots=True)
class Process:
    """A process as it was seen at one moment. `python` is None for a program that runs no CPython."""

    id: TargetId
    name: str
    command: tuple[str, ...]
    parent_pid: int
    python: Python | None
    labels: Labels = NO_LABELS

    def target(self, role: Role, command: tuple[str, ...]) -> Target:
        """The target to watch; `command` is the command line with its secrets redacted."""
        return Target(
            pid=self.id.pid,
            start_time=self.id.start_time,
            pid_namespace=self.id.pid_namespace,
            service=role.service,
            instance=role.instance,
            worker=role.worker,
            name=self.name,
            command=command,
            parent_pid=self.parent_pid,
            python=self.python.version if self.python else None,
        )


def resolve(pid: int, root: Path = ROOT, *, allow_non_python: bool = False) -> Process:
    """The process with this pid, if it can be watched.

    Raises:
        NoSuchTargetError: it is not there, a zombie, a thread, or a thread of the kernel.
        NotPermittedError: it is there and may not be looked at; the hint names the remedy.
        TargetError: it is not Python, and `allow_non_python` is not set.
    """
    try:
        with ProcDir(pid, root) as proc:
            _refuse_what_is_no_program(proc)
            process = describe(proc)
    except (ProcessLookupError, FileNotFoundError):  # a process that ends while it is read loses `exe` first
        raise _absent(pid, root) from None
    except PermissionError:
        raise NotPermittedError(
            f"process {pid} is there, but this user may not look into it", hint=ACCESS_HINT
        ) from None
    if process.python is None and not allow_non_python:
        raise TargetError(
            f"process {pid} ({process.name}) is not Python: neither its program nor its libraries are CPython's",
            hint="give the pid of the Python process itself; a shell or a supervisor is often its parent",
        )
    return process


def describe(proc: ProcDir) -> Process:
    """What the files of a process say about it.

    Raises:
        OSError: it has ended or may not be looked at.
        ProcFormatError: its stat cannot be understood.
    """
    stat = proc.stat()
    return Process(
        identity_of(proc), stat.name, proc.command(), stat.parent_pid, python_of(proc), labels_of(proc)
    )


class Excluded:
    """The processes that a pattern never means: the agent's own line, up and down.

    As pid 1 of a container the agent becomes the parent of every orphan; then its children are not left out.
    """

    def __init__(self, root: Path = ROOT, own_pid: int | None = None) -> None:
        self._root = root
        self._own = os.getpid() if own_pid is None else own_pid
        self.pids = frozenset((self._own, *ancestors(self._own, root)))

    def covers(self, process: Process) -> bool:
        """Whether a process that matched is one of ours after all, or another agent."""
        return (
            process.id.pid in self.pids
            or service_name(process.command) in _OURSELVES
            or (self._own != 1 and self._own in ancestors(process.id.pid, self._root))
        )


def pids(root: Path = ROOT) -> list[int]:
    """The pids that /proc lists, in ascending order."""
    return sorted(int(entry.name) for entry in os.scandir(root / "proc") if entry.name.isdigit())


def ancestors(pid: int, root: Path = ROOT) -> Iterator[int]:
    """The parent, its parent, and so on, as far as they can be seen."""
    for _ in range(_MAX_DEPTH):
        stat = glance(pid, root)
        if stat is None or stat.parent_pid <= 0 or stat.parent_pid == pid:
            return
        pid = stat.parent_pid
        yield pid


def children(pid: int, root: Path = ROOT, *, limit: int = MAX_DESCENDANTS) -> list[int]:
    """The pids of the process's children, their children and so on; parents come before their children."""
    found: dict[int, None] = {}
    waiting = [pid]
    while waiting and len(found) < limit:
        for child in direct_children(waiting.pop(0), root):
            if child not in found and child != pid:
                found[child] = None
                waiting.append(child)
    return list(found)[:limit]


def direct_children(pid: int, root: Path) -> list[int]:
    """From /proc/PID/task/TID/children (a child belongs to the thread that made it), else by everyone's parent.

    The list of children is only whole if no child ends while it is read (proc(5)); one that is missed is
    found at the next scan.
    """
    try:
        with ProcDir(pid, root) as proc:
            lists = [proc.read(f"task/{thread}/children") for thread in proc.threads(MAX_THREADS)]
        return [int(child) for found in lists for child in found.split()]
    except ProcessLookupError:
        return []
    except (OSError, ValueError):  # a kernel without CONFIG_PROC_CHILDREN
        return [other for other in pids(root) if (stat := glance(other, root)) and stat.parent_pid == pid]


def glance(pid: int, root: Path = ROOT) -> Stat | None:
    """The `stat` of whatever has this pid at this moment; None if nothing has."""
    try:
        return parse_stat(read_bounded(root / "proc" / str(pid) / "stat"))
    except (OSError, ProcFormatError):
        return None


def matching(pid: int, criteria: Criteria, root: Path = ROOT) -> Process | None:
    """The process if it is meant and is Python.

    None also when it has ended by now, and when /proc hides its command line (hidepid): what it is cannot be
    known then.

    Raises:
        PermissionError: as far as can be seen it is meant, but it may not be looked at.
    """
    try:
        proc = ProcDir(pid, root)
    except OSError:
        return None
    with proc:
        try:
            command = proc.command()
        except OSError:
            return None
        try:
            process = describe(proc) if command and criteria.hold(proc) else None
        except (ProcessLookupError, FileNotFoundError, ProcFormatError):
            return None
    return process if process and process.python else None


def _refuse_what_is_no_program(proc: ProcDir) -> None:
    stat, pid = proc.stat(), proc.pid
    if stat.kernel_thread:
        raise NoSuchTargetError(
            f"process {pid} ({stat.name}) is a thread of the kernel; it runs no program that could be watched"
        )
    if stat.ended:
        raise NoSuchTargetError(
            f"process {pid} ({stat.name}) is a zombie: it has ended and waits for process {stat.parent_pid} to take notice"
        )
    leader = proc.status().thread_group
    if leader != pid:
        raise NoSuchTargetError(
            f"{pid} is a thread of process {leader} and no process of its own", hint=f"watch process {leader}"
        )


def _absent(pid: int, root: Path) -> TargetError:
    """Tell `not there` from `hidden`: signal 0 asks the kernel without sending anything (kill(2))."""
    if root == ROOT and 0 < pid < 2**31:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            pass
        except PermissionError:
            return NotPermittedError(
                f"process {pid} is there, but /proc is mounted so that this user cannot see it (hidepid)",
                hint=ACCESS_HINT,
            )
    return NoSuchTargetError(
        f"there is no process {pid}",
        hint="in a container, pids differ from the host's: see ps or pgrep -af python",
    )
