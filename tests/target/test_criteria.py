"""Which processes are meant, told from real ones, and what they call themselves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from sentinel_agent.core.model import TargetId
from sentinel_agent.target.criteria import Criteria, environment_of
from sentinel_agent.target.identity import SlotTable
from sentinel_agent.target.labels import Labels, container_of, labels_of
from sentinel_agent.target.procfs import ProcDir

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTAINER = "0123456789abcdef" * 4
OTHER = "f" * 64
LISTENER = (
    "import socket, sys\n"
    "s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); sys.stdin.read()"
)


@contextmanager
def listener(**environment: str) -> Iterator[tuple[ProcDir, int]]:
    """A real process that listens on a port, with a variable or two of its own."""
    child = subprocess.Popen(
        [sys.executable, "-c", LISTENER, "--of-the-criteria-test"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert child.stdout
    assert child.stdin
    try:
        port = int(child.stdout.readline())
        with ProcDir(child.pid) as proc:
            yield proc, port
    finally:
        child.stdin.close()
        child.wait(10)
        child.stdout.close()


def test_each_criterion_tells_a_process_that_is_meant_from_one_that_is_not() -> None:
    """Every one alone, all together, and none at all."""
    with listener(SENTINEL_WATCH_ME="yes=please") as (proc, port):
        command = re.compile("of-the-criteria-test")
        hold = (
            Criteria(),
            Criteria(command=command),
            Criteria(user=os.geteuid()),
            Criteria(container=re.compile("^")),
            Criteria(environment="SENTINEL_WATCH_ME"),
            Criteria(environment="SENTINEL_WATCH_ME=yes=please"),
            Criteria(port=port),
            Criteria(command=command, user=os.geteuid(), environment="SENTINEL_WATCH_ME", port=port),
        )
        fail = (
            Criteria(command=re.compile("something-else")),
            Criteria(user=os.geteuid() + 1),
            Criteria(container=re.compile(OTHER)),
            Criteria(environment="SENTINEL_WATCH"),
            Criteria(environment="SENTINEL_WATCH_ME="),
            Criteria(environment="SENTINEL_WATCH_ME=no"),
            Criteria(port=port % 65535 + 1),
            Criteria(command=command, port=port % 65535 + 1),
        )
        assert [criteria for criteria in hold if not criteria.hold(proc)] == []
        assert [criteria for criteria in fail if criteria.hold(proc)] == []


def test_a_process_that_ended_holds_nothing() -> None:
    """It is an error that says so, not a `no`."""
    with listener() as (proc, _):
        os.kill(proc.pid, 9)
        os.waitpid(proc.pid, 0)
        with pytest.raises(ProcessLookupError):
            Criteria(environment="X").hold(proc)


def _fake(root: Path, environ: bytes, cgroup: str) -> ProcDir:
    folder = root / "proc" / "7"
    folder.mkdir(parents=True)
    (folder / "environ").write_bytes(environ)
    (folder / "cgroup").write_text(cgroup)
    (folder / "stat").write_text("7 (x) S 1")
    return ProcDir(7, root)


@pytest.mark.parametrize(
    "path",
    [
        f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podabc.slice/cri-containerd-{CONTAINER}.scope",
        f"5:memory:/kubepods/burstable/pod1f0e/{CONTAINER}\n1:name=systemd:/kubepods/burstable/pod1f0e/{CONTAINER}",
        f"0::/system.slice/docker-{CONTAINER}.scope",
        f"4:cpu:/docker/{CONTAINER}",
    ],
)
def test_the_container_is_found_in_the_paths_that_runtimes_write(tmp_path: Path, path: str) -> None:
    """containerd and docker, cgroup version 1 and 2, systemd and cgroupfs drivers."""
    with _fake(tmp_path, b"", path) as proc:
        assert container_of(proc) == CONTAINER


def test_labels_are_what_the_process_was_told(tmp_path: Path) -> None:
    """OpenTelemetry's name and the host's, cleaned of what could be mistaken; only the variables asked for are kept."""
    environ = (
        b"A=1\0OTEL_SERVICE_NAME=pay\x1b[31m ments\0HOSTNAME=pod-7\0HOSTNAME=later\0SECRET=x\0=odd\0alone"
    )
    with _fake(tmp_path, environ, f"0::/docker/{CONTAINER}") as proc:
        assert labels_of(proc) == Labels("pay-31m-ments", "pod-7", CONTAINER)
        assert environment_of(proc, ("HOSTNAME", "alone", "")) == {"HOSTNAME": "pod-7", "": "odd"}


def test_the_role_of_a_process_next_door_has_its_pods_name() -> None:
    """In another container the process's own names count, in the agent's the agent's; the operator's before both."""
    command = ("python", "gateway.py")
    there, here = Labels("pay", "pod-7", OTHER), Labels(None, "pod-7", CONTAINER)

    def role(table: SlotTable, labels: Labels, pid: int = 1) -> str:
        return table.assign(TargetId(pid, 1, 1), command, labels=labels).key

    def table(service: str | None = None, instance: str | None = None) -> SlotTable:
        return SlotTable(service, instance, host="node-1", container=CONTAINER)

    assert role(table(), there) == "pay/pod-7/main"
    assert role(table(), here) == "gateway/node-1/main"
    assert role(table(), Labels(None, None, OTHER)) == f"gateway/{OTHER[:12]}/main"
    assert role(table("edge", "mine"), there) == "edge/mine/main"
    shared = table()
    assert role(shared, there, 1) == "pay/pod-7/main"
    assert role(shared, Labels("pay", "pod-8", "e" * 64), 2) == "pay/pod-8/main", (
        "slots are counted per instance"
    )
