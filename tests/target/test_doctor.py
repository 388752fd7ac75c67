"""What doctor says is what is so, and every `no` comes with a remedy."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sentinel_agent.target import doctor
from sentinel_agent.target.discover import children
from sentinel_agent.target.doctor import Check, examine, find_py_spy
from sentinel_agent.target.identity import identify
from sentinel_agent.target.remote import read_remote
from tests.target.fakeproc import FakeProc, executable, line, running, started


def _by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_a_child_of_ours_passes() -> None:
    """Its memory was read for real, its Python is ours, its namespace is ours."""
    with running("print('up', flush=True); input()") as child:
        line(child)
        checks = _by_name(examine(child.pid))
    assert all(check.ok is not False for check in checks.values()), checks
    assert checks["read its memory"] == Check("read its memory", True, "one byte was read")
    assert checks["python"].found.startswith("CPython {}.{}, ".format(*sys.version_info))
    assert checks["pid namespace"].found == "the same as the agent's"
    assert checks["py-spy"].found.startswith("py-spy ")
    assert {"cpu limit", "memory limit", "hidepid", "yama ptrace_scope"} <= checks.keys()


def test_a_process_of_another_user_fails_with_a_remedy() -> None:
    """Seen by a user who may not: the failed checks name the way out."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    code = (
        "import os, sys\n"
        "from sentinel_agent.target.doctor import examine\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "for c in examine(int(sys.argv[1])): print(c.name, c.ok, c.remedy, sep='|')\n"
    )
    with running("print('up', flush=True); input()") as child:
        line(child)
        seen = subprocess.run(
            [sys.executable, "-c", code, str(child.pid)], capture_output=True, text=True, check=True
        )
    rows = {name: (ok, remedy) for name, ok, remedy in (row.split("|") for row in seen.stdout.splitlines())}
    assert rows["CAP_SYS_PTRACE"][0] == "None"
    for name in ("process", "owner"):
        assert rows[name][0] == "False"
        assert "CAP_SYS_PTRACE" in rows[name][1]


@pytest.mark.e2e
def test_a_process_in_another_pid_namespace() -> None:
    """A contained process knows itself as pid 1; here it has another identity, and doctor says so."""
    unshare = shutil.which("unshare")
    if os.geteuid() != 0 or unshare is None:
        pytest.skip("only root, with unshare(1), can make a pid namespace")
    code = "import os; print(os.getpid(), flush=True); input()"
    with started([unshare, "--pid", "--fork", "--kill-child", sys.executable, "-c", code]) as outer:
        assert line(outer) == "1"
        (pid,) = children(outer.pid)
        namespace = Path(f"/proc/{pid}/ns/pid").readlink().name.strip("pid:[]")
        assert identify(pid).pid_namespace == int(namespace) != identify(os.getpid()).pid_namespace
        checks = _by_name(examine(pid))
    assert checks["pid namespace"].found == "another one than the agent's: there it is pid 1"
    assert checks["read its memory"].ok
    assert checks["python"].ok


def test_an_agent_in_a_user_namespace_of_its_own() -> None:
    """Its capability does not reach the target outside, although the user is the same; beside the target it does."""
    unshare = shutil.which("unshare")
    if os.geteuid() != 0 or unshare is None:
        pytest.skip("only root, with unshare(1), can be sure to make a user namespace")
    code = (
        "import sys\n"
        "from sentinel_agent.target.doctor import examine\n"
        "for c in examine(int(sys.argv[1])): print(c.name, c.ok, c.remedy, sep='|')\n"
    )

    def rows(*before: str) -> dict[str, tuple[str, str]]:
        seen = subprocess.run(
            [*before, sys.executable, "-c", code, str(child.pid)], capture_output=True, text=True, check=True
        )
        return {
            name: (ok, remedy) for name, ok, remedy in (row.split("|") for row in seen.stdout.splitlines())
        }

    with running("print('up', flush=True); input()") as child:
        line(child)
        inside, outside = rows(unshare, "--user", "--map-root-user"), rows()
    assert inside["CAP_SYS_PTRACE"][0] == "True", "it has the capability, and that is not enough"
    assert inside["process"][0] == "False"
    assert "hostUsers" in inside["user namespace"][1]
    assert outside["read its memory"][0] == "True"
    assert "user namespace" not in outside


def test_no_process_and_no_python() -> None:
    """A pid that is not there is one failed check; `sleep` fails the check on Python alone."""
    sleep = shutil.which("sleep")
    assert sleep
    with started([sleep, "60"]) as child:
        while executable(child.pid) == executable(os.getpid()):
            pass
        checks = examine(child.pid)
    assert [check.name for check in checks if check.ok is False] == ["python"]
    (gone,) = (check for check in examine(child.pid) if check.ok is False)
    assert gone.name == "process"
    assert "no process" in gone.found


def test_every_no_has_a_remedy_on_a_hostile_machine(tmp_path: Path) -> None:
    """Yama 1-3 without the capability, hidepid, delay accounting off: each is said, with what to do."""
    fake = FakeProc(tmp_path)
    fake.add(1)
    (tmp_path / "proc/self").symlink_to("1")
    (tmp_path / "proc/1/mountinfo").write_text("22 1 0:5 / /proc rw - proc proc rw,hidepid=invisible\n")
    for name, value in {"yama/ptrace_scope": "1\n", "task_delayacct": "0\n"}.items():
        file = tmp_path / "proc/sys/kernel" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(value)
    for scope in "123x":
        (tmp_path / "proc/sys/kernel/yama/ptrace_scope").write_text(scope)
        checks = _by_name(examine(root=tmp_path))
        assert checks["yama ptrace_scope"].ok is (scope == "x")
        assert bool(checks["yama ptrace_scope"].remedy) is (scope != "x")
    assert checks["hidepid"].ok is False
    assert checks["hidepid"].remedy
    assert "task_delayacct=1" in checks["delay accounting"].remedy


def test_apparmor_profiles_that_keep_each_other_out(tmp_path: Path) -> None:
    """Two profiles are named with the rules that each needs; the same one, or none at all, is no obstacle. By fixture."""
    fake = FakeProc(tmp_path)
    for pid in (1, 7):
        folder = fake.add(pid)
        (folder / "attr/apparmor").mkdir(parents=True)
        (folder / "environ").touch()
    (tmp_path / "proc/self").symlink_to("1")
    (tmp_path / "proc/1/mountinfo").write_text("")

    def check(theirs: str, ours: str) -> Check | None:
        for pid, profile in ((7, theirs), (1, ours)):
            (tmp_path / f"proc/{pid}/attr/apparmor/current").write_text(f"{profile}\n")
        return _by_name(examine(7, tmp_path)).get("AppArmor")

    found = check("cri-containerd.apparmor.d (enforce)", "other (enforce)")
    assert found is not None
    assert "'cri-containerd.apparmor.d (enforce)'" in found.found
    assert "ptrace (readby)," in found.remedy
    assert check("one (enforce)", "unconfined") is not None
    assert check("one (enforce)", "one (enforce)") is None
    assert check("unconfined", "unconfined") is None


def test_py_spy_missing_or_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not found, not runnable and failing are three sentences with one remedy."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_py_spy() is None
    assert _by_name(examine())["py-spy"].found.startswith("not found")
    fake = tmp_path / "py-spy"
    for content, words in {"garbage": "does not run", "#!/bin/sh\nexit 3\n": "status 3"}.items():
        fake.write_text(content)
        fake.chmod(0o755)
        check = _by_name(examine())["py-spy"]
        assert (check.ok, words in check.found) == (False, True)
        assert "pip install py-spy" in check.remedy


def test_a_refused_memory_read_names_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """What process_vm_readv answers is what is shown; refused even on oneself, it is a filter."""

    def refused(pid: int, address: int, size: int) -> bytes:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(doctor, "read_remote", refused)
    checks = _by_name(examine(os.getpid()))
    check = checks["read its memory"]
    assert (check.ok, check.found) == (False, "process_vm_readv: Operation not permitted")
    assert check.remedy
    assert (checks["process_vm_readv"].ok, "seccomp" in checks["process_vm_readv"].found) == (False, True)


def test_a_wrong_address_is_an_error_number() -> None:
    """The system call itself is made: an address that is not mapped is EFAULT."""
    with pytest.raises(OSError) as caught:
        read_remote(os.getpid(), 8, 1)
    assert caught.value.errno == errno.EFAULT
