"""What will and will not work on this machine and on this process, each with the remedy in words."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sentinel_agent.core.units import format_size
from sentinel_agent.errors import NotPermittedError, TargetError
from sentinel_agent.target.cgroup import LimitsView
from sentinel_agent.target.discover import ACCESS_HINT, ancestors, pids, resolve
from sentinel_agent.target.procfs import ROOT, ProcDir, ProcFormatError, parse_status, read_bounded, text
from sentinel_agent.target.remote import read_remote
from sentinel_agent.target.rights import CAP_SYS_PTRACE

if TYPE_CHECKING:
    from collections.abc import Iterator

_YAMA = {  # Documentation/admin-guide/LSM/Yama.rst
    0: "a process may read any other of the same user",
    1: "a process may read only its own children, unless it has CAP_SYS_PTRACE",
    2: "only a process with CAP_SYS_PTRACE may read others",
    3: "no process may read another",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at: `ok` is None where it makes no difference here; `remedy` is empty when all is well."""

    name: str
    ok: bool | None
    found: str
    remedy: str = ""


def examine(pid: int | None = None, root: Path = ROOT) -> list[Check]:
    """Look at the machine, and at a process if one is given. Reads only; never raises for what it finds."""
    checks = [
        _capability(root),
        _yama(root),
        _hidepid(root),
        _neighbours(root),
        _system_call(),
        _delay_accounting(root),
        _py_spy(),
    ]
    return checks + (list(_process(pid, root)) if pid is not None else [])


def find_py_spy(executable: str | None = None, path: str | None = None) -> str | None:
    """The py-spy program: beside the interpreter, where pip puts it, else on PATH (`path`, or the environment's)."""
    beside = Path(executable or sys.executable).parent / "py-spy"
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("py-spy", path=path)


def has_ptrace_capability(root: Path = ROOT) -> bool:
    """Whether this process has CAP_SYS_PTRACE in effect (capabilities(7))."""
    try:
        status = parse_status(read_bounded(root / "proc/self/status"))
    except (OSError, ProcFormatError):
        return False
    return bool(status.effective_capabilities & 1 << CAP_SYS_PTRACE)


def _capability(root: Path) -> Check:
    if has_ptrace_capability(root):
        return Check("CAP_SYS_PTRACE", True, "in effect: processes of other users can be read")
    try:
        bounding = parse_status(read_bounded(root / "proc/self/status")).bounding_capabilities
    except (OSError, ProcFormatError):
        bounding = 0
    if bounding & 1 << CAP_SYS_PTRACE and os.geteuid() != 0:
        return Check(
            "CAP_SYS_PTRACE",
            None,
            "given to the container, but a user other than root does not get it: only processes of the same user can be read",
            "start the image's own program (its interpreter carries the capability; a shell in between loses it), "
            "or set securityContext.runAsUser to 0 or to the target's user",
        )
    return Check("CAP_SYS_PTRACE", None, "not in effect: only processes of the same user can be read")


def _yama(root: Path) -> Check:
    try:
        scope = int(read_bounded(root / "proc/sys/kernel/yama/ptrace_scope"))
    except (OSError, ValueError):
        return Check("yama ptrace_scope", True, "not there: this kernel adds no restriction")
    found = f"{scope}: {_YAMA.get(scope, 'unknown to this version')}"
    if scope == 0 or (scope in {1, 2} and has_ptrace_capability(root)):
        return Check("yama ptrace_scope", True, found)
    remedy = "give the agent CAP_SYS_PTRACE, start the target with `sentinel-agent run`, or set sysctl kernel.yama.ptrace_scope=0"
    if scope == 3:
        remedy = "3 cannot be undone while the machine runs; remove the setting and reboot"
    return Check("yama ptrace_scope", False, found, remedy)


def _hidepid(root: Path) -> Check:
    try:
        lines = read_bounded(root / "proc/self/mountinfo").splitlines()
    except OSError:
        lines = []
    options = [line.rpartition(b" ")[2] for line in lines if b" - proc " in line]
    hidden = [option for found in options for option in found.split(b",") if option.startswith(b"hidepid=")]
    value = text(hidden[-1].partition(b"=")[2]) if hidden else "0"
    if value in {"0", "off"}:
        return Check("hidepid", True, "off: /proc shows every process")
    remedy = "" if has_ptrace_capability(root) else f"mount /proc without hidepid, or: {ACCESS_HINT}"
    return Check("hidepid", not remedy, f"{value}: /proc hides what other users run", remedy)


def _neighbours(root: Path) -> Check:
    """In a container of its own the agent sees itself only: then nothing can be found, whatever its rights are."""
    name = "other processes"
    own = os.getpid()
    others = [pid for pid in pids(root) if pid != own and own not in ancestors(pid, root)]
    above = set(ancestors(own, root))
    if set(others) - above:
        return Check(name, True, f"{len(others)} can be seen")
    return Check(
        name,
        None,
        "none but the agent's own can be seen: its pid namespace is not shared with anybody",
        "pod: shareProcessNamespace: true; DaemonSet: hostPID: true; docker run --pid=container:NAME",
    )


def _system_call() -> Check:
    """Whether process_vm_readv(2) may be called at all: on oneself nothing but a seccomp filter forbids it."""
    name = "process_vm_readv"
    target = ctypes.c_char(b"x")
    try:
        read_remote(os.getpid(), ctypes.addressof(target), 1)
    except OSError as error:
        return Check(
            name,
            False,
            f"the system call is refused even on the agent itself ({error.strerror}): a seccomp filter forbids it",
            "securityContext.seccompProfile.type: RuntimeDefault (which allows it on Linux 4.8 or later), or a profile with process_vm_readv",
        )
    return Check(name, True, "the system call is allowed")


def _delay_accounting(root: Path) -> Check:
    try:
        on = read_bounded(root / "proc/sys/kernel/task_delayacct").strip() != b"0"
    except OSError:
        return Check("delay accounting", None, "the kernel has no switch for it; `io_wait` may read nothing")
    if on:
        return Check("delay accounting", True, "on: `io_wait` can be measured")
    return Check(
        "delay accounting",
        None,
        "off: `io_wait` cannot be measured",
        "if it is wanted: sysctl kernel.task_delayacct=1, then restart the target",
    )


def _py_spy() -> Check:
    remedy = "pip install py-spy, into the environment of the agent"
    program = find_py_spy()
    if program is None:
        return Check("py-spy", False, "not found beside the interpreter nor on PATH", remedy)
    try:
        done = subprocess.run([program, "--version"], capture_output=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("py-spy", False, f"{program} does not run: {error}", remedy)
    if done.returncode != 0:
        return Check("py-spy", False, f"{program} ends with status {done.returncode}", remedy)
    return Check("py-spy", True, f"{text(done.stdout[:100]).strip()}, {program}")


def _process(pid: int, root: Path) -> Iterator[Check]:
    try:
        process = resolve(pid, root, allow_non_python=True)
    except NotPermittedError as error:
        yield Check("process", False, error.message, error.hint or "")
        yield from _owner(pid, root)
        with suppress(OSError, ProcFormatError), ProcDir(pid, root) as proc:
            yield from _obstacles(proc, root)
        return
    except TargetError as error:
        yield Check("process", False, error.message, error.hint or "give the pid of a running process")
        return
    yield Check("process", True, f"{process.name}, pid {pid}")
    if process.python:
        yield Check(
            "python",
            True,
            f"CPython {process.python.version or 'of unknown version'}, {process.python.executable}",
        )
    else:
        yield Check(
            "python",
            False,
            "neither its program nor its libraries are CPython's",
            "give the pid of the Python process itself; its readings can be watched all the same, its stacks cannot",
        )
    yield from _owner(pid, root)
    try:
        with ProcDir.of(process.id, root) as proc:
            yield _memory_read(proc)
            yield from _obstacles(proc, root)
            yield _namespace(proc, process.id.pid_namespace, root)
            limits = LimitsView(proc).at(0.0)
    except (OSError, ProcFormatError) as error:
        yield Check("process", False, f"it ended or changed while it was looked at: {error}", "try again")
        return
    yield Check("cpu limit", None, f"{limits.cpu_cores:g} cores, {limits.cpu_source}")
    yield Check("memory limit", None, f"{format_size(limits.memory)}, {limits.memory_source}")


def _owner(pid: int, root: Path) -> Iterator[Check]:
    try:
        with ProcDir(pid, root) as proc:
            uids = set(proc.status().uids[:3])
    except (OSError, ProcFormatError):
        return
    owners = ", ".join(str(uid) for uid in sorted(uids))
    found = f"user {owners}; the agent runs as user {os.geteuid()}"
    if uids == {os.geteuid()} or has_ptrace_capability(root):
        yield Check("owner", True, found)
    else:
        yield Check("owner", False, found, ACCESS_HINT)


def _namespace(proc: ProcDir, target: int, root: Path) -> Check:
    try:
        here = (root / "proc/self/ns/pid").stat().st_ino
    except OSError:
        return Check("pid namespace", None, "cannot be read")
    if here == target:
        return Check("pid namespace", True, "the same as the agent's")
    with suppress(OSError, ProcFormatError, IndexError):
        inside = proc.status().namespace_pids[-1]
        return Check("pid namespace", True, f"another one than the agent's: there it is pid {inside}")
    return Check(
        "pid namespace", True, "another one than the agent's: the target knows itself by another pid"
    )


def _obstacles(proc: ProcDir, root: Path) -> Iterator[Check]:
    """What forbids reading a process besides its owner (ptrace(2), "Ptrace access mode checking"); only what is met."""
    capable = has_ptrace_capability(root)
    uid = proc.status().uids[1]
    if proc.info("environ").st_uid != uid:  # proc(5): the files of a process that is not dumpable are root's
        yield Check(
            "dumpable",
            capable or None,
            "no: it changed its user or carries capabilities, so only CAP_SYS_PTRACE can read it",
            ""
            if capable
            else "give the agent CAP_SYS_PTRACE (container: securityContext.capabilities.add: [SYS_PTRACE])",
        )
    yield from _user_namespace(proc, root)
    with suppress(OSError):
        theirs, ours = (
            proc.read("attr/apparmor/current"),
            read_bounded(root / "proc/self/attr/apparmor/current"),
        )
        profiles = [text(each).strip("\0\n ") for each in (theirs, ours)]
        if profiles[0] != profiles[1] and any(each and each != "unconfined" for each in profiles):
            yield Check(
                "AppArmor",
                None,
                f"the target's profile is {profiles[0]!r:.80}, the agent's {profiles[1]!r:.80}: each must allow the other",
                "give both containers the same profile, or the agent's a rule `ptrace (read),` and the target's `ptrace (readby),`",
            )


def _user_namespace(proc: ProcDir, root: Path) -> Iterator[Check]:
    """user_namespaces(7): a capability counts in the namespace of the process that has it, and in those below."""
    try:
        other = proc.info("ns/user").st_ino != (root / "proc/self/ns/user").stat().st_ino
        found = "another one than the agent's"
    except (
        OSError
    ):  # the target's may not be looked at; that the agent is in one of its own is enough of a reason
        other = _in_a_user_namespace(root)
        found = "the agent is in one of its own"
    if other:
        yield Check(
            "user namespace",
            None,
            f"{found}: CAP_SYS_PTRACE counts only in one's own and those below it",
            "run the agent in the target's user namespace or in one above it (pod: the same hostUsers)",
        )


def _in_a_user_namespace(root: Path) -> bool:
    """In the first one every user id is its own."""
    try:
        return read_bounded(root / "proc/self/uid_map").split() != [b"0", b"0", b"4294967295"]
    except OSError:
        return False


def _memory_read(proc: ProcDir) -> Check:
    """Read one byte of the process for real (process_vm_readv(2)); this is what reading stacks rests on."""
    name = "read its memory"
    remedy = f"{ACCESS_HINT}; see the other lines here for what else stands in the way"
    if not proc.real:
        return Check(name, None, "not tried: this is not the machine's own /proc")
    with suppress(StopIteration, ValueError, IndexError, PermissionError):
        lines = proc.read("maps").splitlines()
        address = next(int(line.split(b"-")[0], 16) for line in lines if line.split(b" ")[1][:1] == b"r")
        try:
            read_remote(proc.pid, address, 1)
        except OSError as error:
            return Check(name, False, f"process_vm_readv: {error.strerror}", remedy)
        return Check(name, True, "one byte was read")
    return Check(name, False, "its memory map may not be read", remedy)
