"""Identity, interpreter, names and worker slots."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.core.model import TargetId
from sentinel_agent.errors import NoSuchTargetError
from sentinel_agent.target.identity import Python, SlotTable, identify, python_of, service_name
from sentinel_agent.target.procfs import ProcDir
from tests.target.fakeproc import FakeProc, executable, line, running, started


def test_identity_of_this_process() -> None:
    """Start time and namespace are what the kernel says of us."""
    start = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    namespace = Path("/proc/self/ns/pid").readlink().name.strip("pid:[]")
    assert identify(os.getpid()) == TargetId(os.getpid(), int(start), int(namespace))


def test_a_reused_pid_has_another_identity(tmp_path: Path) -> None:
    """Same number, other start time: another target."""
    fake = FakeProc(tmp_path)
    fake.add(7, start=100)
    first = identify(7, tmp_path)
    fake.remove(7)
    with pytest.raises(NoSuchTargetError):
        identify(7, tmp_path)
    fake.add(7, start=101)
    assert identify(7, tmp_path) != first


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["python", "-m", "gunicorn", "app:app"], "gunicorn"),
        (["python", "-m", "proxy"], "proxy"),
        (["python3.11", "-um", "proxy", "--port", "1"], "proxy"),
        (["python3.11", "-mproxy.__main__"], "proxy"),
        (["/usr/bin/python3", "/x/gateway.py"], "gateway"),
        (["python", "-X", "dev", "-Wignore", "-W", "error", "-u", "--", "a.py"], "a"),
        (["python", "--check-hash-based-pycs", "always", "/opt/app/__main__.py"], "app"),
        (["python", "/usr/local/bin/mitmdump", "-p", "1"], "mitmdump"),
        (["/usr/local/bin/mitmdump"], "mitmdump"),
        (["gunicorn: master [app:app]"], "gunicorn"),
        (["python", "-c", "import x"], "python"),
        (["python"], "python"),
        (["python3.13t", "-"], "python"),
        ([], "unknown"),
        (["  "], "unknown"),
        (["/x/\u202eevil\n{name}"], "evil"),
    ],
)
def test_service_names(command: list[str], name: str) -> None:
    """The name is what a person would call the program, and safe as a label."""
    assert service_name(command) == name


@given(st.lists(st.text(max_size=200), max_size=6))
def test_any_command_line_has_a_safe_name(command: list[str]) -> None:
    """Names hold only letters, digits, dot, dash and underscore, are never empty and at most 100 long."""
    name = service_name(command)
    assert 0 < len(name) <= 100
    assert all(c.isascii() and (c.isalnum() or c in "._-") for c in name)


def _interpreters() -> list[str]:
    """Every CPython 3.8-3.13 that this machine's version manager or PATH has, and at least this one."""
    found = {sys.executable}
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in range(8, 14):
        found |= {str(path) for path in versions.glob(f"3.{minor}.*/bin/python3.{minor}")}
    return sorted(found)


@pytest.mark.parametrize("interpreter", _interpreters(), ids=lambda path: Path(path).parent.parent.name)
def test_the_version_of_a_real_interpreter(interpreter: str) -> None:
    """What is read from outside is what the interpreter says of itself."""
    code = "import sys; print('%d.%d' % sys.version_info[:2], flush=True); sys.stdin.readline()"
    with started([interpreter, "-c", code]) as child:
        version = line(child)
        with ProcDir(child.pid) as proc:
            found = python_of(proc)
    assert found
    assert found.version == version


def test_sleep_is_not_python() -> None:
    """A program without CPython in its name or its libraries is none."""
    sleep = shutil.which("sleep")
    assert sleep
    with started([sleep, "60"]) as child, ProcDir(child.pid) as proc:
        while executable(child.pid) == executable(os.getpid()):  # until the exec is done
            pass
        assert python_of(proc) is None


@pytest.mark.parametrize(
    ("exe", "maps", "expected"),
    [
        ("/usr/bin/python3.12", "", "3.12"),
        ("/usr/bin/python3.13t (deleted)", "", "3.13"),
        ("/usr/sbin/uwsgi", "7f00-7f01 r--p 0 00:00 1 /usr/lib/libpython3.9.so.1.0\n", "3.9"),
        ("/opt/bin/python", "7f00-7f01 r--p 0 00:00 1 /opt/lib/python3.10/lib-dynload/_ssl.so\n", "3.10"),
        ("/opt/bin/python", "", None),
        ("/opt/python3.11-tools/nginx", "7f00-7f01 r--p 0 00:00 1 /opt/python3.11/share/x\n", "none"),
        ("/usr/bin/pypy3.10", "", "none"),
    ],
)
def test_the_version_from_names(tmp_path: Path, exe: str, maps: str, expected: str | None) -> None:
    """The program's name tells, else a mapped library; a folder with Python in its name does not."""
    folder = FakeProc(tmp_path).add(7, exe=exe)
    (folder / "maps").write_text(maps)
    with ProcDir(7, tmp_path) as proc:
        found = python_of(proc)
    executable = exe.removesuffix(" (deleted)")
    assert found == (None if expected == "none" else Python(executable, expected))


def _id(pid: int) -> TargetId:
    return TargetId(pid, pid * 10, 1)


def test_a_replaced_worker_takes_the_slot_of_the_dead_one() -> None:
    """Master and workers have fixed slots; the successor of worker-1 is worker-1."""
    slots = SlotTable(None, "host")
    command = ["python", "-m", "gunicorn"]
    assert slots.assign(_id(1), command).key == "gunicorn/host/main"
    assert [slots.assign(_id(pid), command, _id(1)).worker for pid in (2, 3)] == ["worker-1", "worker-2"]
    slots.release(_id(2))
    assert slots.assign(_id(9), ["anything"], _id(1)).key == "gunicorn/host/worker-1"
    assert slots.assign(_id(3), command, _id(1)).worker == "worker-2"


def test_two_roots_of_one_service_are_told_apart() -> None:
    """Two masters have two slots and share no worker's slot; another service starts at main."""
    slots = SlotTable(None, "host")
    assert [slots.assign(_id(pid), ["proxy"]).worker for pid in (1, 2, 3)] == ["main", "main-2", "main-3"]
    workers = [slots.assign(_id(4), ["proxy"], _id(1)), slots.assign(_id(5), ["proxy"], _id(2))]
    assert len({role.key for role in workers}) == 2
    slots.release(_id(1))
    assert slots.assign(_id(6), ["proxy"]).worker == "main"
    assert slots.assign(_id(7), ["gateway"]).key == "gateway/host/main"


def test_the_operators_name_wins() -> None:
    """With a service given, no command line is asked."""
    assert SlotTable("edge", "pod-7").assign(_id(1), ["python", "x.py"]).key == "edge/pod-7/main"


def test_identify_reads_a_real_child() -> None:
    """A live child has an identity, after it is reaped it has none."""
    with running("input()") as child:
        assert identify(child.pid).pid == child.pid
    with pytest.raises(NoSuchTargetError):
        identify(child.pid)
