"""What a process is: the identity that no reused pid can take over, its Python, and the role it fills."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from sentinel_agent.core.model import Role, TargetId
from sentinel_agent.errors import NoSuchTargetError
from sentinel_agent.target.labels import NO_LABELS, Labels, safe_label
from sentinel_agent.target.procfs import ROOT, ProcDir, text

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_MAPS = 1024 * 1024
_EXECUTABLE = re.compile(r"python(?P<version>\d\.\d+)?\d*[dt]*")
_MAPPED = re.compile(
    rb"/libpython(\d\.\d+)[a-z]*\.so|/python(\d\.\d+)[a-z]*/(?:lib-dynload|site-packages|dist-packages)/"
)
_INTERPRETER = re.compile(r"(?:python|pypy)[\d.]*t?")


@dataclass(frozen=True, slots=True)
class Python:
    """The interpreter of a process as far as its files tell; `version` is `3.11`, or None when they do not."""

    executable: str
    version: str | None


def identify(pid: int, root: Path = ROOT) -> TargetId:
    """The identity of a process that is there (a zombie too).

    Raises:
        NoSuchTargetError: there is none.
    """
    try:
        with ProcDir(pid, root) as proc:
            return identity_of(proc)
    except ProcessLookupError:
        raise NoSuchTargetError(f"there is no process {pid}") from None


def identity_of(proc: ProcDir) -> TargetId:
    """The identity of the process behind an open /proc directory; namespace 0 where it may not be seen."""
    try:
        namespace = proc.info("ns/pid").st_ino
    except (PermissionError, FileNotFoundError):
        namespace = 0
    return TargetId(proc.pid, proc.stat().start_time, namespace)


def python_of(proc: ProcDir) -> Python | None:
    """The CPython that a process runs, None if it runs none; nothing is run in it to find out.

    The name of the program is enough for most; otherwise a mapped libpython or extension module tells (a
    program that embeds Python, or `python` without a version in its name).

    Raises:
        OSError: the process is gone or may not be looked at.
    """
    executable = proc.link("exe").removesuffix(" (deleted)")
    named = _EXECUTABLE.fullmatch(PurePosixPath(executable).name)
    if named and named["version"]:
        return Python(executable, named["version"])
    mapped = _MAPPED.search(proc.read("maps", _MAX_MAPS))
    if mapped:
        return Python(executable, text(mapped[1] or mapped[2]))
    return Python(executable, None) if named else None


def service_name(command: Sequence[str]) -> str:
    """What a person would call the program of a command line.

    `python -m gunicorn app:app` is gunicorn, `python /x/gateway.py` is gateway, `/usr/bin/mitmdump` is
    mitmdump, the title `gunicorn: master [app]` is gunicorn.
    """
    first = PurePosixPath(command[0].split()[0].rstrip(":")).name if command and command[0].split() else ""
    name = first
    if _INTERPRETER.fullmatch(first):
        name = _program(command[1:]) or "python"
    return safe_label(name) or "unknown"


def _program(arguments: Sequence[str]) -> str | None:
    """The module or script among the interpreter's arguments (python(1), its options and their values)."""
    rest = iter(arguments)
    for argument in rest:
        if argument.startswith("--"):
            if argument == "--check-hash-based-pycs":
                next(rest, None)
        elif argument == "-":
            return None
        elif argument.startswith("-"):
            option = re.search(r"[mcWX]", argument)
            if not option:
                continue
            value = argument[option.end() :] or next(rest, "")
            if option[0] == "m":
                return value.removesuffix(".__main__")
            if option[0] == "c":
                return None
        else:
            path = PurePosixPath(argument)
            return path.parent.name if path.name == "__main__.py" else path.name.removesuffix(".py")
    return None


@dataclass(slots=True)
class SlotTable:
    """Which role each target fills. A slot that a target leaves is the next one to be given.

    A process by itself or a master is `main` (a second one of the same service `main-2`, and so on), a child
    `worker-N`. A replaced worker takes the lowest free slot, and so the limits, of the one that died: release
    what has gone before assigning what has come.

    `service` and `instance` name every role. Where they are None, the target's own labels do, then its command line and
    `host`. `container` is the one that the agent itself runs in.
    """

    service: str | None
    instance: str | None
    host: str = ""
    container: str | None = None
    _roles: dict[TargetId, Role] = field(default_factory=dict)

    def assign(
        self,
        target: TargetId,
        command: Sequence[str],
        parent: TargetId | None = None,
        labels: Labels = NO_LABELS,
    ) -> Role:
        """The role of a target; the one it has if it has one. A child belongs to its parent's service and instance."""
        if target in self._roles:
            return self._roles[target]
        above = self._roles.get(parent) if parent else None
        if above:
            service, instance = above.service, above.instance
        else:
            service = self.service or labels.service or service_name(command)
            instance = self.instance or labels.instance(self.container) or self.host
        taken = {
            role.worker
            for role in self._roles.values()
            if (role.service, role.instance) == (service, instance)
        }
        numbers = range(1, len(taken) + 2)
        names = (
            (f"worker-{n}" for n in numbers)
            if above
            else ("main" if n == 1 else f"main-{n}" for n in numbers)
        )
        role = Role(service, instance, next(name for name in names if name not in taken))
        self._roles[target] = role
        return role

    def release(self, target: TargetId) -> None:
        """The target has ended; its slot is free."""
        self._roles.pop(target, None)
