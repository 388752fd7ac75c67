"""Containers without a daemon: bundles for `runc`, written as a kubelet with containerd would have them."""

from __future__ import annotations

import json
import subprocess
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.e2e.support import started, until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

POD_CGROUP = "kubepods/burstable/pod-of-the-test"
_HIDDEN = ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware")


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """One container. `cpu_shares` is what the kubelet makes of a CPU request: 1024 for each core. `pod` is the pid of a process whose pid namespace it shares, with `host_pids` it is this machine's; `binds` are read-only unless in `writable`.

    `capabilities` are those that a manifest adds after dropping all; as with containerd they are lost to another user
    than root when its program starts, unless that carries them itself.
    """

    root: Path
    command: tuple[str, ...]
    uid: int
    capabilities: tuple[str, ...] = ()
    pod: int | None = None
    host_pids: bool = False
    memory: int | None = None
    cpu_shares: int | None = None
    binds: Mapping[str, Path] = field(default_factory=dict)
    writable: frozenset[str] = frozenset()
    environment: Mapping[str, str] = field(default_factory=dict)
    no_new_privileges: bool = False
    forbidden_calls: tuple[str, ...] = ()
    proc_options: tuple[str, ...] = ()


def specification(box: Box, name: str) -> dict[str, Any]:
    """The OCI runtime specification (version 1.0.2) of a container."""
    pid_namespace = {"type": "pid", **({"path": f"/proc/{box.pod}/ns/pid"} if box.pod else {})}
    standard = ["nosuid", "noexec", "nodev"]
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": [*standard, *box.proc_options]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*standard, "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": [*standard, "ro"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=1777"]},
        *(
            {
                "destination": inside,
                "type": "bind",
                "source": str(outside),
                "options": ["rbind", "rw" if inside in box.writable else "ro"],
            }
            for inside, outside in box.binds.items()
        ),
    ]
    environment = {"PATH": "/opt/sentinel/bin:/usr/bin:/bin", **box.environment}
    linux: dict[str, Any] = {
        "cgroupsPath": f"/{POD_CGROUP}/{name}",
        "namespaces": [
            *([] if box.host_pids else [pid_namespace]),
            *({"type": kind} for kind in ("mount", "ipc", "uts")),
        ],
        "maskedPaths": list(_HIDDEN),
        "resources": {
            **({"memory": {"limit": box.memory}} if box.memory else {}),
            **({"cpu": {"shares": box.cpu_shares}} if box.cpu_shares else {}),
        },
    }
    if box.forbidden_calls:
        linux["seccomp"] = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": list(box.forbidden_calls), "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
        }
    capabilities = list(box.capabilities)
    return {
        "ociVersion": "1.0.2",
        "hostname": f"host-{name[:8]}",
        "root": {"path": str(box.root), "readonly": True},
        "mounts": mounts,
        "linux": linux,
        "process": {
            "args": list(box.command),
            "cwd": "/",
            "env": [f"{key}={value}" for key, value in environment.items()],
            "user": {"uid": box.uid, "gid": box.uid},
            "noNewPrivileges": box.no_new_privileges,
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
        },
    }


class Container:
    """A container that runs; `pid` is its first process as this machine numbers it."""

    def __init__(self, name: str, process: subprocess.Popen[str], pid: int) -> None:
        self.name = name
        self.process = process
        self.pid = pid

    def cgroup(self, controller: str, file: str) -> Path:
        """A file of one of the container's cgroups (version 1)."""
        return Path("/sys/fs/cgroup", controller, POD_CGROUP, self.name, file)

    def memory(self, file: str) -> int:
        """A number of the container's memory cgroup (version 1)."""
        return int(self.cgroup("memory", file).read_text().split()[0])

    def counted(self, file: str, key: str) -> int:
        """One of the keyed numbers of a file of the container's memory cgroup."""
        (value,) = (
            line.split()[1]
            for line in self.cgroup("memory", file).read_text().splitlines()
            if line.split()[0] == key
        )
        return int(value)

    def cpu_seconds(self) -> float:
        """What all its processes have used so far."""
        return int(self.cgroup("cpuacct", "cpuacct.usage").read_text()) / 1e9


@contextmanager
def running(box: Box, folder: Path) -> Iterator[Container]:
    """A container, gone with all it started when the context ends."""
    name = uuid.uuid4().hex * 2
    bundle = folder / name[:8]
    bundle.mkdir()
    (bundle / "config.json").write_text(json.dumps(specification(box, name)))
    command = ("runc", "--root", str(folder / "runc"), "run", "--bundle", str(bundle), name)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    try:
        with started(command, **pipes) as process:
            pid = until(lambda: _pid_of(folder, name, process), 30, "the container's first process")
            yield Container(name, process, pid)
    finally:
        _quietly("runc", "--root", str(folder / "runc"), "delete", "--force", name)
        for controller in Path("/sys/fs/cgroup").glob("*/kubepods"):
            _quietly("find", str(controller), "-depth", "-type", "d", "-delete")


def _quietly(*command: str) -> None:
    subprocess.run(command, capture_output=True, check=False)


def _pid_of(folder: Path, name: str, process: subprocess.Popen[str]) -> int | None:
    assert process.poll() is None, f"the container ended with {process.returncode}"
    state = folder / "runc" / name / "state.json"
    try:
        pid = int(json.loads(state.read_text())["init_process_pid"])
        exe = str(Path(f"/proc/{pid}/exe").readlink())
    except (OSError, ValueError, KeyError):
        return None
    return None if "runc" in exe or "memfd" in exe else pid
