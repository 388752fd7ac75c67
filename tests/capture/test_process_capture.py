"""The `/proc` snapshot agrees with what the process says about itself, and hides its secrets."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sentinel_agent.capture.process import MAX_FDS, ProcessCapture, snapshot
from sentinel_agent.capture.series import SeriesCapture
from sentinel_agent.core.model import Target, TargetId
from sentinel_agent.core.rule import CaptureSpec
from sentinel_agent.errors import NoSuchTargetError
from sentinel_agent.target.procfs import ProcDir
from sentinel_agent.target.sockets import SocketFacts, resolve_sockets
from tests.capture.targets import made_target, plan_for, started, target_of

if TYPE_CHECKING:
    from collections.abc import Iterator

SPEC = CaptureSpec("process")
Subject = tuple[Target, dict[str, Any]]

# Opens what it then describes on the line after `ready`.
SUBJECT = """\
import json, os, resource, socket, sys, threading
print("ready", flush=True)
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
six = socket.create_server(("::1", 0), family=socket.AF_INET6) if socket.has_ipv6 else None
one, two = socket.socketpair()
path = sys.argv[1]
unix = socket.socket(socket.AF_UNIX); unix.bind(path); unix.listen()
file = open(sys.argv[0])
reader, writer = os.pipe()
threading.Thread(target=threading.Event().wait, daemon=True).start()
print(json.dumps({
    "listener": listener.getsockname(), "client": client.getsockname(), "six": six.getsockname() if six else None,
    "fds": {"listener": listener.fileno(), "client": client.fileno(), "unix": unix.fileno(), "file": file.fileno(),
            "pipe": reader, "pair": one.fileno(), "six": six.fileno() if six else -1},
    "threads": [t.native_id for t in threading.enumerate()],
    "nofile": resource.getrlimit(resource.RLIMIT_NOFILE),
}), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Subject]:
    """A process with known descriptors, and its own description of them."""
    script = tmp_path / "subject.py"
    script.write_text(SUBJECT)
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2-in-env")
    with started(sys.executable, str(script), str(tmp_path / "u.sock"), "--token=hunter2-in-argv") as process:
        assert process.stdout is not None
        yield target_of(process.pid), json.loads(process.stdout.readline())


async def captured(target: Any, folder: Path, *, redact: bool = True) -> dict[str, Any]:
    out = folder / "out"
    out.mkdir()
    result = await ProcessCapture().capture(plan_for(target, out, SPEC, redact=redact))
    assert [file.name for file in result.files] == ["process.json"]
    document: dict[str, Any] = json.loads((out / "process.json").read_bytes())
    return document


async def test_descriptors_name_files_sockets_and_their_addresses(subject: Subject, tmp_path: Path) -> None:
    target, truth = subject
    files = (await captured(target, tmp_path))["files"]
    by_fd = {entry["fd"]: entry for entry in files["listed"]}
    fds = truth["fds"]
    host, port = truth["listener"]
    listener = by_fd[fds["listener"]]
    assert (listener["kind"], listener["socket"]["local"], listener["socket"]["state"]) == (
        "tcp",
        f"{host}:{port}",
        "listen",
    )
    client = by_fd[fds["client"]]["socket"]
    assert client["local"] == "{}:{}".format(*truth["client"])
    assert (client["remote"], client["state"]) == (f"{host}:{port}", "established")
    assert by_fd[fds["unix"]]["socket"] == {
        "protocol": "unix",
        "local": str(tmp_path / "u.sock"),
        "state": "listen",
    }
    assert by_fd[fds["pair"]]["socket"]["state"] == "connected"
    assert (by_fd[fds["file"]]["kind"], by_fd[fds["file"]]["link"]) == ("file", str(tmp_path / "subject.py"))
    assert by_fd[fds["pipe"]]["kind"] == "pipe"
    if truth["six"]:
        assert by_fd[fds["six"]]["socket"]["local"] == f"[::1]:{truth['six'][1]}"
    assert (
        sum(files["by_kind"].values())
        == files["looked_at"]
        == len(list(Path(f"/proc/{target.id.pid}/fd").iterdir()))
    )
    assert files["cut"] is False


async def test_threads_limits_memory_and_cgroup_are_the_targets(subject: Subject, tmp_path: Path) -> None:
    target, truth = subject
    document = await captured(target, tmp_path)
    assert [thread["native_id"] for thread in document["threads"]["listed"]] == sorted(truth["threads"])
    limits = {limit["name"]: limit for limit in document["limits"]}
    soft, hard = truth["nofile"]
    assert limits["Max open files"] == {
        "name": "Max open files",
        "soft": str(soft),
        "hard": str(hard),
        "unit": "files",
    }
    resident = int(document["status"]["VmRSS"].split()[0]) * 1024
    assert document["memory"]["rss"] == pytest.approx(resident, rel=0.1)
    assert document["cgroup"]["membership"] == Path(f"/proc/{target.id.pid}/cgroup").read_text().splitlines()
    assert document["io"]["syscr"] > 0
    assert document["links"]["exe"] == os.path.realpath(sys.executable)
    assert document["errors"] == {}


async def test_secrets_are_hidden_by_default(subject: Subject, tmp_path: Path) -> None:
    document = await captured(subject[0], tmp_path)
    assert "hunter2" not in json.dumps(document)
    assert "DATABASE_PASSWORD" in document["environment"]
    assert document["redacted"] is True


async def test_secrets_are_kept_where_the_settings_say_raw(subject: Subject, tmp_path: Path) -> None:
    document = await captured(subject[0], tmp_path, redact=False)
    assert document["environment"]["DATABASE_PASSWORD"] == "hunter2-in-env"
    assert document["command"][-1] == "--token=hunter2-in-argv"


def test_a_process_that_is_not_there_or_is_another_is_refused() -> None:
    for identity in (TargetId(2**22 + 1, 1), TargetId(os.getpid(), 1)):
        with pytest.raises(NoSuchTargetError, match="has ended"):
            snapshot(identity, now=0.0, redact=True)


STAT = "7 (my) proc) S 1 7 7 0 -1 0 0 0 0 0 150 50 0 0 20 0 1 0 1234 0 0 " + "0 " * 30


def tree(root: Path, **files: bytes) -> Path:
    """A made-up /proc/7 with these files; `__` in a name is a slash."""
    (root / "proc/7").mkdir(parents=True)
    for name, content in ({"stat": STAT.encode()} | files).items():
        path = root / "proc/7" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def made(root: Path) -> dict[str, Any]:
    return snapshot(TargetId(7, 1234), now=5.0, redact=True, root=root)


def test_a_part_that_cannot_be_read_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    document = made(tree(tmp_path, status=b"Name:\tx\nState:\tS (sleeping)\n"))
    assert document["status"] == {"Name": "x", "State": "S (sleeping)"}
    assert set(document["errors"]) == {
        "command", "environment", "links", "memory", "mappings", "io", "limits", "threads", "files", "cgroup",
    }  # fmt: skip


def test_descriptors_beyond_the_bound_are_cut_and_said_so(tmp_path: Path) -> None:
    root = tree(tmp_path)
    (root / "proc/7/fd").mkdir()
    for fd in range(MAX_FDS + 5):
        (root / f"proc/7/fd/{fd}").symlink_to("/dev/null")
    files = made(root)["files"]
    assert (files["looked_at"], files["cut"], files["by_kind"]) == (MAX_FDS, True, {"device": MAX_FDS})


@pytest.mark.parametrize(
    ("membership", "places", "expected"),
    [
        ("0::/app\n", {"app/cpu.max": "50000 100000"}, {"cpu.max": "50000 100000"}),
        ("0::/\n", {"memory.max": "max"}, {"memory.max": "max"}),
        ("0::/../other\n", {"cpu.max": "max 100000"}, {"cpu.max": "max 100000"}),
        ("4:memory:/a\n2:cpu,cpuacct:/a\n", {"memory/a/memory.failcnt": "3", "cpu,cpuacct/a/cpu.stat": "x 1"},
         {"memory.failcnt": "3", "cpu.stat": "x 1"}),
        ("1:name=systemd:/a\n", {}, {}),
        ("garbage\n::\n", {}, {}),
    ],
)  # fmt: skip
def test_cgroup_files_of_both_versions_are_found(
    membership: str, places: dict[str, str], expected: dict[str, str], tmp_path: Path
) -> None:
    """A path that leads out of the mount is not followed: the mount's own root stands for it."""
    root = tree(tmp_path, cgroup=membership.encode())
    for place, content in places.items():
        path = root / "sys/fs/cgroup" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    assert made(root)["cgroup"]["files"] == expected


hostile = st.one_of(
    st.binary(max_size=200), st.sampled_from([b"\0" * 50, b"a b c\n" * 5, b"Rss: 9999999999999 kB\n"])
)


@settings(deadline=None)  # the machine may be busy
@given(files=st.fixed_dictionaries({}, optional=dict.fromkeys(("status", "smaps_rollup", "io", "limits", "cgroup", "environ", "cmdline", "net__tcp", "net__unix", "task__7__stat"), hostile)))  # fmt: skip
def test_whatever_the_files_hold_there_is_a_document(
    files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tree(tmp_path_factory.mktemp("proc"), **files)
    (root / "proc/7/fd").mkdir()
    (root / "proc/7/fd/3").symlink_to("socket:[42]")
    document = made(root)
    assert json.loads(json.dumps(document, default=str))["pid"] == 7


def test_a_socket_table_row_is_read_as_the_kernel_documents_it(tmp_path: Path) -> None:
    """proc_net_tcp.rst: addresses are words in the machine's order, ports in plain hexadecimal."""
    local = "{:08X}".format(int.from_bytes(socket.inet_aton("10.1.2.3"), sys.byteorder))
    row = f"   0: {local}:1F90 00000000:0000 0A 0:0 00:0 0 0 0 42 1 0 100\n"
    root = tree(tmp_path, net__tcp=b"  sl  head\n" + row.encode() + b"cut: 12\n")
    with ProcDir(7, root) as proc:
        assert resolve_sockets(proc, {42, 43}) == {
            42: SocketFacts(protocol="tcp", local="10.1.2.3:8080", remote="0.0.0.0:0", state="listen")
        }


async def test_series_is_the_window_as_it_is_when_asked(tmp_path: Path) -> None:
    result = await SeriesCapture().capture(
        plan_for(made_target(TargetId(1, 1)), tmp_path, CaptureSpec("series"))
    )
    assert json.loads((tmp_path / "series.json").read_bytes()) == {
        "start": 100.0,
        "end": 102.0,
        "interval": 1.0,
        "metrics": {"cpu": {"unit": "percent", "times": [100.0, 101.0], "values": [3.0, 97.5]}},
        "errors": {"fds": "refused"},
    }
    assert [file.format for file in result.files] == ["json"]
