"""Which processes are meant: a few facts of a process that the operator knows beforehand; all that are set must hold.

They are read from `/proc/PID` only (proc(5)); the environment is the one that the process was started with, and what
is not asked for in it is not kept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sentinel_agent.target.procfs import MAX_COMMAND, text
from sentinel_agent.target.remote import read_remote
from sentinel_agent.target.sockets import resolve_sockets

if TYPE_CHECKING:
    from sentinel_agent.target.procfs import ProcDir

_MAX_ENVIRONMENT = 128 * 1024
_MAX_DESCRIPTORS = 4096
_ENV_START = 50 - 3  # fields are counted from 1, and those behind the command's name begin with the third
_SOCKET = re.compile(r"socket:\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Criteria:
    """What a process must be like; None: no matter.

    `command` is searched in the command line, `container` in the process's cgroup paths, `user` is its effective user
    id, `environment` a variable that it was started with (`NAME`, or `NAME=value`), `port` a TCP port on which it listens.
    """

    command: re.Pattern[str] | None = None
    user: int | None = None
    container: re.Pattern[str] | None = None
    environment: str | None = None
    port: int | None = None

    def hold(self, proc: ProcDir) -> bool:
        """Whether they all hold for a process now; the cheap ones are looked at first.

        Raises:
            OSError: it has ended, or may not be looked at.
        """
        return (
            (self.command is None or self._named(proc, self.command))
            and (self.user is None or proc.status().uids[1] == self.user)
            and (self.container is None or bool(self.container.search(text(proc.read("cgroup")))))
            and (self.environment is None or self._marked(proc, self.environment))
            and (self.port is None or _listens(proc, self.port))
        )

    @staticmethod
    def _named(proc: ProcDir, pattern: re.Pattern[str]) -> bool:
        command = proc.command()
        return bool(command) and bool(pattern.search(" ".join(command)[:MAX_COMMAND]))

    @staticmethod
    def _marked(proc: ProcDir, marker: str) -> bool:
        name, equals, value = marker.partition("=")
        found = environment_of(proc, (name,)).get(name)
        return found is not None and (not equals or found == value)


def environment_of(proc: ProcDir, names: tuple[str, ...]) -> dict[str, str]:
    """Those of the variables `names` that the process was started with.

    Raises:
        OSError: it has ended, or may not be looked at.
    """
    wanted = {name.encode() for name in names}
    found: dict[str, str] = {}
    for entry in _environment(proc).split(b"\0"):
        name, equals, value = entry.partition(b"=")
        if equals and name in wanted:
            found.setdefault(text(name), text(value))  # the first one is the one that getenv(3) finds
    return found


def _environment(proc: ProcDir) -> bytes:
    """`environ` belongs to the process's user alone; who may trace the process can read the same bytes where they lie.

    `stat` says where that is (proc(5), fields 50 and 51).
    """
    try:
        return proc.read("environ", _MAX_ENVIRONMENT)
    except PermissionError:
        if not proc.real:
            raise
    fields = proc.read("stat").rpartition(b")")[2].split()
    start, end = int(fields[_ENV_START]), int(fields[_ENV_START + 1])
    if not 0 < start < end:
        raise PermissionError(f"the environment of process {proc.pid} may not be read")
    return read_remote(proc.pid, start, min(end - start, _MAX_ENVIRONMENT))


def _listens(proc: ProcDir, port: int) -> bool:
    inodes = set()
    for descriptor in proc.names("fd", _MAX_DESCRIPTORS):
        try:
            found = _SOCKET.fullmatch(proc.link(f"fd/{descriptor}"))
        except FileNotFoundError:  # closed since
            continue
        if found:
            inodes.add(int(found[1]))
    return any(
        facts.state == "listen" and facts.local.endswith(f":{port}")
        for facts in resolve_sockets(proc, inodes).values()
    )
