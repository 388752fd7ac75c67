"""`process`: what `/proc` says about the target, once, as `process.json`.

Every part is read by itself and bounded; a part that cannot be read is named under `errors`. Formats: proc(5),
cgroups(7). Secrets in the command line, the environment and the links are redacted unless the settings say raw.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import msgspec

from sentinel_agent.capture.base import CapturedFile, CapturePlan, CaptureResult
from sentinel_agent.clock import Clock, SystemClock
from sentinel_agent.core.redact import redact_command, redact_environment, redact_text
from sentinel_agent.errors import NoSuchTargetError
from sentinel_agent.target.identity import identity_of
from sentinel_agent.target.mappings import Total, parse, totals
from sentinel_agent.target.procfs import (
    CLOCK_TICKS,
    ROOT,
    ProcDir,
    ProcFormatError,
    parse_keyed,
    read_bounded,
    text,
)
from sentinel_agent.target.sockets import SocketFacts, resolve_sockets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sentinel_agent.core.model import TargetId

MAX_FDS = 2000
MAX_THREADS = 2000
_MAX_ENVIRONMENT = 256 * 1024
_MAX_SMAPS = 8 * 1024**2  # some 10,000 mappings
_CGROUP_FILES = {
    # v2; the names of v1's controllers follow
    "": (
        "cpu.max cpu.stat cpu.pressure memory.max memory.high memory.current memory.events memory.pressure "
        "memory.swap.current pids.max pids.current io.stat cgroup.freeze"
    ),
    "cpu": "cpu.cfs_quota_us cpu.cfs_period_us cpu.shares cpu.stat",
    "memory": "memory.limit_in_bytes memory.usage_in_bytes memory.max_usage_in_bytes memory.failcnt memory.oom_control",
    "pids": "pids.max pids.current",
    "freezer": "freezer.state",
}


class ProcessCapture:
    """The snapshot of the target's `/proc` entry; `root` is `/` or a made-up tree."""

    kind = "process"
    attaches = False

    def __init__(self, *, clock: Clock | None = None, root: Path = ROOT) -> None:
        self._clock = clock or SystemClock()
        self._root = root

    async def capture(self, plan: CapturePlan) -> CaptureResult:
        """Write `process.json`.

        Raises:
            NoSuchTargetError: the target has ended.
        """
        errors = await asyncio.to_thread(self._write, plan)
        return CaptureResult(
            files=(CapturedFile("process.json", "process", "json"),),
            note=f"not readable: {', '.join(errors)}" if errors else "",
        )

    def _write(self, plan: CapturePlan) -> list[str]:
        document = snapshot(plan.target.id, now=self._clock.wall(), redact=plan.redact, root=self._root)
        (plan.folder / "process.json").write_bytes(msgspec.json.encode(document))
        return list(document["errors"])


def snapshot(target: TargetId, *, now: float, redact: bool, root: Path = ROOT) -> dict[str, Any]:
    """The document of `process.json`; memory in bytes, CPU time in seconds.

    Raises:
        NoSuchTargetError: the process has ended, or its pid is another's.
    """
    gone = NoSuchTargetError(f"process {target.pid} has ended")
    try:
        proc = ProcDir(target.pid, root)
    except OSError as error:
        raise gone from error
    with proc:
        try:
            if identity_of(proc).start_time != target.start_time:
                raise gone
        except (OSError, ProcFormatError) as error:
            raise gone from error
        clean = _Redaction(on=redact)
        parts: dict[str, Callable[[], Any]] = {
            "command": lambda: clean.command(proc),
            "environment": lambda: clean.environment(proc),
            "links": lambda: {name: clean.text(proc.link(name)) for name in ("exe", "cwd", "root")},
            "status": lambda: _status(proc),
            "memory": lambda: _memory(proc),
            "mappings": lambda: _mappings(proc),
            "io": lambda: parse_keyed(proc.read("io"), b":"),
            "limits": lambda: list(_limits(proc.read("limits"))),
            "threads": lambda: _threads(proc),
            "files": lambda: _files(proc, clean),
            "cgroup": lambda: _cgroup(proc, root),
        }
        document: dict[str, Any] = {"pid": target.pid, "time": now, "redacted": redact}
        errors: dict[str, str] = {}
        for name, read in parts.items():
            try:
                document[name] = read()
            except (OSError, ProcFormatError) as error:
                errors[name] = getattr(error, "strerror", None) or str(error)
        return document | {"errors": errors}


class _Redaction:
    """Redacts, or does not; reads what is redacted as a whole."""

    def __init__(self, *, on: bool) -> None:
        self._on = on

    def text(self, words: str) -> str:
        return redact_text(words) if self._on else words

    def command(self, proc: ProcDir) -> list[str]:
        command = proc.command()
        return list(redact_command(command) if self._on else command)

    def environment(self, proc: ProcDir) -> dict[str, str]:
        entries = (text(entry) for entry in proc.read("environ", _MAX_ENVIRONMENT).split(b"\0") if entry)
        pairs = (entry.partition("=") for entry in entries)
        environment = {name: value for name, _, value in pairs}
        return redact_environment(environment) if self._on else environment


def _status(proc: ProcDir) -> dict[str, str]:
    lines = (line.partition(":") for line in text(proc.read("status")).splitlines())
    return {name: " ".join(value.split()) for name, _, value in lines}


def _memory(proc: ProcDir) -> dict[str, int]:
    """`smaps_rollup`: lines of `Pss:   1234 kB` after one with the address range."""
    values = {}
    for line in text(proc.read("smaps_rollup")).splitlines():
        words = line.split()
        if len(words) == 3 and words[2] == "kB" and words[1].isdecimal():
            values[words[0].rstrip(":").lower()] = int(words[1]) * 1024
    return values


def _mappings(proc: ProcDir) -> dict[str, Total]:
    """Who holds it, as far as the shapes of the mappings tell; of very many mappings the first ones."""
    return totals(parse(text(proc.read("smaps", _MAX_SMAPS)).splitlines()))


def _limits(raw: bytes) -> Iterator[dict[str, str]]:
    """Columns at fixed places, named by the first line."""
    head, *lines = text(raw).splitlines() or [""]
    soft, hard, units = (head.find(name) for name in ("Soft Limit", "Hard Limit", "Units"))
    if min(soft, hard, units) < 0:
        raise ProcFormatError("a limits file has no line of headings")
    for line in lines:
        yield {
            "name": line[:soft].strip(),
            "soft": line[soft:hard].strip(),
            "hard": line[hard:units].strip(),
            "unit": line[units:].strip(),
        }


def _threads(proc: ProcDir) -> dict[str, Any]:
    known = proc.threads(MAX_THREADS)
    listed = []
    for thread in known:
        try:
            stat = proc.stat(thread)
        except (OSError, ProcFormatError):  # it ended meanwhile
            continue
        listed.append(
            {
                "native_id": thread,
                "name": stat.name,
                "state": stat.state,
                "cpu_seconds": stat.cpu_ticks / CLOCK_TICKS,
            }
        )
    return {"total": max(proc.stat().threads, len(listed)), "listed": listed}


def _files(proc: ProcDir, clean: _Redaction) -> dict[str, Any]:
    """Open descriptors: counts by kind over all that were looked at, then the list; `cut` when there were more."""
    names = proc.names("fd", MAX_FDS + 1)
    links: dict[int, str] = {}
    for name in names[:MAX_FDS]:
        try:
            links[int(name)] = proc.link(f"fd/{name}")
        except (OSError, ValueError):  # closed meanwhile
            continue
    inodes = {inode for inode in map(_socket_inode, links.values()) if inode is not None}
    sockets = resolve_sockets(proc, inodes)
    listed = [_file(fd, link, sockets, clean) for fd, link in sorted(links.items())]
    kinds = Counter(str(entry["kind"]) for entry in listed)
    return {"looked_at": len(listed), "cut": len(names) > MAX_FDS, "by_kind": dict(kinds), "listed": listed}


def _file(fd: int, link: str, sockets: dict[int, SocketFacts], clean: _Redaction) -> dict[str, Any]:
    inode = _socket_inode(link)
    entry: dict[str, Any] = {"fd": fd, "kind": _kind(link), "link": clean.text(link)}
    if inode in sockets:
        entry["socket"] = sockets[inode]
        entry["kind"] = sockets[inode].protocol
    return entry


def _kind(link: str) -> str:
    if link.startswith("/"):
        return "device" if link.startswith("/dev/") else "file"
    return link.partition(":")[2].strip("[]") if link.startswith("anon_inode:") else link.partition(":")[0]


def _socket_inode(link: str) -> int | None:
    digits = link.removeprefix("socket:[").removesuffix("]")
    return int(digits) if link.startswith("socket:[") and digits.isdecimal() and len(digits) < 20 else None


def _cgroup(proc: ProcDir, root: Path) -> dict[str, Any]:
    """The lines of `/proc/PID/cgroup` and the files of the target's own groups that bound or count it."""
    membership = text(proc.read("cgroup")).splitlines()
    files: dict[str, str] = {}
    for line in membership:
        _, controllers, path = ([*line.split(":", 2), "", ""])[:3]
        for controller in controllers.split(","):
            for name in _CGROUP_FILES.get(controller, "").split():
                content = _cgroup_file(root / "sys/fs/cgroup", controllers, path, name)
                if content is not None:
                    files[name] = content
    return {"membership": membership, "files": files}


def _cgroup_file(mount: Path, controllers: str, path: str, name: str) -> str | None:
    """The file in the group, or in the mount's root where the group's path lies outside what this mount shows."""
    inside = PurePosixPath(path.lstrip("/"))
    places = [inside, PurePosixPath()] if ".." not in inside.parts else [PurePosixPath()]
    for place in places:
        for top in (mount / controllers, mount / "unified") if controllers else (mount, mount / "unified"):
            try:
                return text(read_bounded(top / place / name)).strip()
            except OSError:
                continue
    return None
