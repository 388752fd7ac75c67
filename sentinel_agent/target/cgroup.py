"""CPU and memory limits of a process from cgroup v1, v2 or both, and where its throttling is counted.

Sources: cgroups(7), the kernel's admin-guide `cgroup-v2.rst` and `cgroup-v1/memory.rst`,
`scheduler/sched-bwc.rst`, proc_pid_mountinfo(5). A limit of any ancestor counts, so the lowest that can be
seen wins. In a container, paths in /proc/PID/cgroup are relative to a mount: ours, or else the target's own,
which is entered through /proc/PID/root. What is found there may be the target's work, so a file is opened
only if it is a regular one and lies on the file system that the kernel says is the cgroup's.
"""

from __future__ import annotations

import os
import re
import stat as file_mode
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import psutil

from sentinel_agent.core.units import format_size
from sentinel_agent.target.procfs import ROOT, parse_keyed, read_bounded, read_descriptor, text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sentinel_agent.target.procfs import ProcDir

ControllerName = Literal["cpu", "memory"]

MAX_LEVELS = 32
_MAX_MOUNTINFO = 1024 * 1024
_MAX_VALUE_FILE = 4096
_NUMBER = re.compile(rb"\d{1,20}")
_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted cgroup hierarchy: `root` is the cgroup that shows at `point`, `device` its file system's st_dev."""

    version: Literal[1, 2]
    device: int
    root: str
    point: str
    controllers: frozenset[str]


@dataclass(frozen=True, slots=True)
class Controller:
    """One controller of one process. `levels` are the folders from the process's own cgroup up to the mount."""

    name: ControllerName
    version: Literal[1, 2]
    device: int
    path: str
    levels: tuple[str, ...]

    def read(self, level: str, name: str) -> bytes:
        """A file of a level, its first 4096 bytes.

        Raises:
            OSError: there is none, or it is not the kernel's.
        """
        found = os.open(f"{level}/{name}", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            info = os.fstat(found)
            if not file_mode.S_ISREG(info.st_mode) or info.st_dev != self.device:
                raise PermissionError(f"{name} of the target's cgroup is not the kernel's file")
            descriptor = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(found)
        try:
            return read_descriptor(descriptor, _MAX_VALUE_FILE)
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Host:
    """What a process without limits may use: the cores it is allowed on, and all of the memory (bytes)."""

    cores: int
    memory: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What a process may use: `cpu_cores` in cores, `memory` in bytes, each with where it was found, in words.

    `cpu_levels` and `memory_levels` are the folders whose limit is set, where the kernel counts how often it
    was hit.
    """

    cpu_cores: float
    cpu_source: str
    memory: int
    memory_source: str
    cpu: Controller | None = None
    memory_controller: Controller | None = None
    cpu_levels: tuple[str, ...] = ()
    memory_levels: tuple[str, ...] = ()


def parse_mountinfo(raw: bytes) -> list[Mount]:
    """The cgroup mounts of a `mountinfo`; lines of other kinds, and what is no such line, are left out."""
    mounts: list[Mount] = []
    for line in raw.splitlines():
        before, dash, after = line.partition(b" - ")
        fields, source = before.split(b" "), after.split(b" ")
        if not dash or len(fields) < 6 or source[0] not in {b"cgroup", b"cgroup2"}:
            continue
        major, _, minor = fields[2].partition(b":")
        if not (_NUMBER.fullmatch(major) and _NUMBER.fullmatch(minor)):
            continue
        with suppress(OverflowError):
            mounts.append(
                Mount(
                    version=2 if source[0] == b"cgroup2" else 1,
                    device=os.makedev(int(major), int(minor)),
                    root=_unescaped(fields[3]),
                    point=_unescaped(fields[4]),
                    controllers=frozenset(text(source[-1]).split(",")),
                )
            )
    return mounts


def _unescaped(field: bytes) -> str:
    """Space, tab, newline and backslash are written as octal escapes in mountinfo."""
    return os.fsdecode(_OCTAL.sub(lambda found: bytes([int(found[1], 8) & 0xFF]), field))


def parse_membership(raw: bytes) -> dict[str, str]:
    """`/proc/PID/cgroup` as path by controller; the path in the v2 hierarchy is under the empty name."""
    paths: dict[str, str] = {}
    for line in raw.splitlines():
        number, _, rest = line.partition(b":")
        names, colon, path = rest.partition(b":")
        if colon and path.startswith(b"/"):
            for name in text(names).split(",") if number != b"0" else ("",):
                paths[name] = os.fsdecode(path)
    return paths


def parse_cpu_max(raw: bytes) -> float | None:
    """Cores allowed by a v2 `cpu.max` (`QUOTA PERIOD` in microseconds); None for `max` and for nonsense."""
    fields = raw.split()
    return _cores(fields[0], fields[1]) if len(fields) == 2 else None


def parse_bytes(raw: bytes) -> int | None:
    """Bytes allowed by a memory limit file; None for `max`, `-1`, nonsense, and v1's huge `no limit`."""
    number = raw.strip()
    value = int(number) if _NUMBER.fullmatch(number) else 0
    return value if 0 < value < 2**60 else None


def _cores(quota: bytes, period: bytes) -> float | None:
    numbers = [int(field) for field in (quota.strip(), period.strip()) if _NUMBER.fullmatch(field)]
    return numbers[0] / numbers[1] if len(numbers) == 2 and all(numbers) else None


def relative(path: str, mount_root: str) -> tuple[str, ...] | None:
    """The folders between a mount's root cgroup and `path`; None if `path` is not below it."""
    own, top = ([part for part in each.split("/") if part] for each in (path, mount_root))
    below = own[len(top) :]
    return tuple(below) if own[: len(top)] == top and ".." not in below else None


def locate(proc: ProcDir, name: ControllerName) -> Controller | None:
    """Where the limits of one controller are for this process: seen from here, else from its own mounts.

    Raises:
        OSError: the process is gone or may not be looked at.
    """
    paths = parse_membership(proc.read("cgroup"))
    version: Literal[1, 2] = 1 if name in paths else 2
    path = paths.get(name if version == 1 else "")
    if path is None:
        return None
    for prefix, mounts in _views(proc):
        for mount in mounts:
            if mount.version != version or (version == 1 and name not in mount.controllers):
                continue
            below = relative(path, mount.root)
            if below is None or len(below) >= MAX_LEVELS:
                continue
            top = f"{prefix}{mount.point}".rstrip("/")
            levels = tuple("/".join((top, *below[:depth])) for depth in range(len(below), -1, -1))
            if os.path.isdir(levels[0]):  # noqa: PTH112 - a Path per level and refresh costs more than the check
                return Controller(name, version, mount.device, path, levels)
    return None


def _views(proc: ProcDir) -> Iterator[tuple[str, list[Mount]]]:
    here = str(proc.root).rstrip("/")
    with suppress(OSError):
        yield here, parse_mountinfo(read_bounded(proc.root / "proc/self/mountinfo", _MAX_MOUNTINFO))
    with suppress(PermissionError, FileNotFoundError):
        yield f"{here}/proc/{proc.pid}/root", parse_mountinfo(proc.read("mountinfo", _MAX_MOUNTINFO))


def _level_limit(controller: Controller, level: str) -> float | None:
    """The limit set at one level, None where none is or it cannot be read."""
    try:
        if controller.name == "memory" and controller.version == 1:
            return _v1_memory(controller, level)
        if controller.name == "memory":
            return parse_bytes(controller.read(level, "memory.max"))
        if controller.version == 2:
            return parse_cpu_max(controller.read(level, "cpu.max"))
        return _cores(
            controller.read(level, "cpu.cfs_quota_us").strip(),
            controller.read(level, "cpu.cfs_period_us").strip(),
        )
    except OSError:
        return None


def _v1_memory(controller: Controller, level: str) -> int | None:
    """The limit of a v1 level; its `hierarchical_memory_limit` also counts ancestors that cannot be seen."""
    limit = parse_bytes(controller.read(level, "memory.limit_in_bytes"))
    with suppress(OSError):
        above = parse_keyed(controller.read(level, "memory.stat")).get("hierarchical_memory_limit", 0)
        if 0 < above < (limit or 2**60):
            return above
    return limit


def set_limits(controller: Controller | None) -> dict[str, float]:
    """The limits that are set, by level."""
    if controller is None:
        return {}
    found = ((level, _level_limit(controller, level)) for level in controller.levels)
    return {level: limit for level, limit in found if limit is not None}


def host_of(pid: int) -> Host:
    """What this machine lets a process use."""
    try:
        cores = len(os.sched_getaffinity(pid))
    except OSError:
        cores = os.cpu_count() or 1
    return Host(cores, psutil.virtual_memory().total)


def read_limits(proc: ProcDir, host: Host, *, cpu_cores: float = 0.0, memory: int = 0) -> Limits:
    """The limits of a process; `cpu_cores` and `memory` other than 0 are the operator's word and win.

    Raises:
        OSError: the process is gone or may not be looked at.
    """
    cpu, ram = locate(proc, "cpu"), locate(proc, "memory")
    quotas, sizes = set_limits(cpu), set_limits(ram)
    cores, cpu_source = float(host.cores), f"host: {host.cores} cores it may run on"
    if cpu and quotas and min(quotas.values()) < host.cores:
        cores = min(quotas.values())
        cpu_source = _source(cpu, quotas, "cpu.max", "cpu.cfs_quota_us")
    size, memory_source = host.memory, f"host: {format_size(host.memory)} of memory"
    if ram and sizes and min(sizes.values()) < host.memory:
        size = int(min(sizes.values()))
        memory_source = _source(ram, sizes, "memory.max", "memory.limit_in_bytes")
    return Limits(
        cpu_cores=cpu_cores or cores,
        cpu_source="settings: limits.cpu_cores" if cpu_cores else cpu_source,
        memory=memory or size,
        memory_source="settings: limits.memory" if memory else memory_source,
        cpu=cpu,
        memory_controller=ram,
        cpu_levels=tuple(quotas),
        memory_levels=tuple(sizes),
    )


def _source(controller: Controller, limits: dict[str, float], v2_file: str, v1_file: str) -> str:
    level = min(limits, key=limits.__getitem__)
    above = controller.levels.index(level)
    where = f"{above} level{'s' if above > 1 else ''} above {controller.path}" if above else controller.path
    return f"cgroup v{controller.version}: {v1_file if controller.version == 1 else v2_file} of {where}"


def read_counters(controller: Controller, level: str, name: str) -> dict[str, int]:
    """A cgroup file of `key value` lines; a file of one number has it under the empty key.

    Raises:
        OSError: there is no such file, or it is not the kernel's.
    """
    raw = controller.read(level, name)
    single = raw.strip()
    return {"": int(single)} if _NUMBER.fullmatch(single) else parse_keyed(raw)


@dataclass(slots=True)
class LimitsView:
    """The limits of a process, read again every `refresh` seconds: they can be changed while it runs."""

    proc: ProcDir
    cpu_cores: float = 0.0
    memory: int = 0
    refresh: float = 30.0
    host: Host | None = None
    _seen: tuple[float, Limits] | None = field(default=None, init=False)

    def at(self, monotonic: float) -> Limits:
        """The limits as they stood at most `refresh` seconds before.

        Raises:
            OSError: the process is gone or may not be looked at.
        """
        if self._seen is None or monotonic - self._seen[0] >= self.refresh:
            host = self.host or host_of(self.proc.pid if self.proc.root == ROOT else 0)
            limits = read_limits(self.proc, host, cpu_cores=self.cpu_cores, memory=self.memory)
            self._seen = (monotonic, limits)
        return self._seen[1]
