"""Attaching: what is found, and what is refused with which error."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from sentinel_agent.cpython.elf import Location, UnsupportedTargetError, locate, locate_section
from sentinel_agent.cpython.frames import fields
from sentinel_agent.cpython.layouts import COOKIE, TASK_OFFSETS_SIZE, layout_of, told_of_tasks
from sentinel_agent.cpython.layouts import MINORS as LAYOUT_MINORS
from sentinel_agent.cpython.memory import ImageMemory, ProcessMemory, UnreadableError
from sentinel_agent.cpython.process import Interpreter, choose_layout, open_process
from sentinel_agent.cpython.threads import host_ids
from sentinel_agent.errors import NoSuchTargetError, NotPermittedError
from tests import needs
from tests.cpython.conftest import MINORS, PROGRAM, UNPACKED, python_of, within
from tests.needs import missing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cpython.conftest import StartTarget, Target

GENERATOR = Path(__file__).resolve().parents[2] / "tools" / "gen_layouts.py"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is no Python."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def fake_proc(target: Target, root: Path) -> tuple[Path, Path]:
    """A /proc folder like the target's, and a copy of the file that holds its interpreter, to be changed."""
    real = Path("/proc", str(target.pid))
    held = Path(locate(real).file)
    proc = root / "proc" / str(target.pid)
    proc.mkdir(parents=True)
    (proc / "maps").write_bytes((real / "maps").read_bytes())
    copy = proc / "root" / str(held).lstrip("/")
    if ".so" in held.name:
        (proc / "exe").symlink_to("/bin/true")
        copy.parent.mkdir(parents=True)
    else:
        copy = proc / "exe"
    shutil.copyfile(held, copy)
    return proc, copy


def test_the_section_serves_where_symbols_are_gone(
    python: Path, start_target: StartTarget, tmp_path: Path
) -> None:
    """Without any symbol of that name, `.PyRuntime` gives the same address, where the version has it, and else a refusal."""
    target = start_target(python, "plain")
    proc, copy = fake_proc(target, tmp_path)
    by_symbol = locate(proc)
    assert by_symbol.runtime == locate(Path("/proc", str(target.pid))).runtime
    copy.write_bytes(copy.read_bytes().replace(b"\0_PyRuntime\0", b"\0_PyRuntimX\0"))
    if b".PyRuntime\0" in copy.read_bytes():
        assert locate(proc).runtime == by_symbol.runtime
    else:
        with pytest.raises(UnsupportedTargetError, match="runs no CPython"):
            locate(proc)


@pytest.mark.parametrize("damage", [b"", b"\x7fELF", b"\x7fELF" + bytes(60), b"#!/bin/sh\n"])
def test_a_damaged_binary_is_refused(start_target: StartTarget, tmp_path: Path, damage: bytes) -> None:
    """Files that are no ELF files are no CPython."""
    target = start_target(Path(sys.executable), "plain")
    proc, copy = fake_proc(target, tmp_path)
    copy.write_bytes(damage)
    with pytest.raises(UnsupportedTargetError, match="runs no CPython"):
        locate(proc)


def test_other_programs_are_refused(sleeper: subprocess.Popen[bytes]) -> None:
    """A process without an interpreter is named as such, with what can be read instead."""
    with pytest.raises(UnsupportedTargetError, match="runs no CPython") as caught:
        open_process(sleeper.pid)
    assert "CPython 3.8" in (caught.value.hint or "")


def test_processes_that_are_not_there_are_told_apart(tmp_path: Path) -> None:
    """No such pid, a zombie and a kernel thread are no such target."""
    with pytest.raises(NoSuchTargetError):
        open_process(2**22 + 1)
    zombie = subprocess.Popen(["true"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(NoSuchTargetError):
        open_process(zombie.pid)
    zombie.wait()
    (tmp_path / "proc" / "2").mkdir(parents=True)
    (tmp_path / "proc" / "2" / "maps").touch()
    with pytest.raises(NoSuchTargetError, match="kernel thread"):
        open_process(2, root=tmp_path)


def test_a_target_that_ends_is_no_such_target(start_target: StartTarget) -> None:
    """The reader of a process that was killed says that it has ended."""
    target = start_target(Path(sys.executable), "plain")
    reader = open_process(target.pid)
    target.process.kill()
    target.process.wait()
    with pytest.raises(NoSuchTargetError, match="has ended"):
        reader.sample()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user to be refused")
def test_a_process_of_another_user_is_not_permitted(start_target: StartTarget) -> None:
    """Without the right to read, the remedy is named."""
    target = start_target(Path(sys.executable), "plain")
    code = (
        "import os, sys; sys.path.insert(0, os.getcwd()); from sentinel_agent.cpython.process import open_process\n"
        "from sentinel_agent.errors import NotPermittedError\n"
        "import elftools.elf.elffile\n"
        "os.setgid(65534); os.setuid(65534)\n"
        f"try: open_process({target.pid})\n"
        "except NotPermittedError as error: print(error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "CAP_SYS_PTRACE" in done.stdout
    assert NotPermittedError.exit_code == 4


def test_a_newer_or_free_threaded_cpython_is_refused() -> None:
    """From their `_Py_DebugOffsets`, before anything else of them is read."""
    place = Location(4096, None, "python3", None)
    for version, free_threaded, message in (
        (0x031000F0, 0, "3.16"),
        (0x030D00F0, 1, "free-threaded CPython 3.13"),
        (0x030E00F0, 1, "free-threaded CPython 3.14"),
        (0x040000F0, 0, "CPython 3"),
    ):
        head = COOKIE + version.to_bytes(8, "little") + free_threaded.to_bytes(8, "little")
        with pytest.raises(UnsupportedTargetError, match=message):
            choose_layout(ImageMemory({4096: head}), place)
    with pytest.raises(UnsupportedTargetError, match="cannot be told"):
        choose_layout(ImageMemory({4096: bytes(24)}), place)


def test_the_layout_of_another_minor_is_refused(python: Path, start_target: StartTarget) -> None:
    """Every table but the right one is found out by the self-check."""
    target = start_target(python, "tasks")
    runtime = locate(Path("/proc", str(target.pid))).runtime
    right = open_process(target.pid).layout.minor
    for minor in set(LAYOUT_MINORS) - {right}:
        with pytest.raises((UnsupportedTargetError, UnreadableError)):
            Interpreter(ProcessMemory(target.pid), layout_of(minor), runtime)


def test_offsets_that_overlap_are_refused_by_the_readers_own_error() -> None:
    """What a target tells of itself may be nonsense; it must not come out as any other error."""
    with pytest.raises(UnsupportedTargetError, match="as no CPython has them"):
        fields((8, "Q"), (12, "Q"))


MOVED = ["interp.sysdict", "interp.threads_head", "thread.next", "thread.interp", "thread.native_thread_id"]
MOVED += ["frame.code", "frame.owner", "code.qualname", "code.filename", "code.linetable", "code.size"]
MOVED += ["dict.size", "dict.keys", "objects.ob_type", "unicode.length", "unicode.state"]


@pytest.mark.parametrize("field", MOVED)
def test_a_moved_field_is_refused(start_target: StartTarget, field: str) -> None:
    """A build in which one field lies a word further is refused at attach, not read as garbage.

    Only a table can be wrong in this way: from 3.13 on the target tells where its fields are.
    """
    with_tables = sorted(
        (minor for minor in MINORS if minor < 13), key=lambda minor: minor == sys.version_info[1]
    )
    if not with_tables:
        pytest.skip("every interpreter on this machine tells its own offsets; no table is used")
    target = start_target(python_of(with_tables[-1]), "threads")
    proc = Path("/proc", str(target.pid))
    layout: Any = open_process(target.pid).layout
    section, _, name = field.partition(".")
    part = getattr(layout, section)
    moved = msgspec.structs.replace(part, **{name: getattr(part, name) + 8})
    with pytest.raises((UnsupportedTargetError, UnreadableError)):
        Interpreter(
            ProcessMemory(target.pid),
            msgspec.structs.replace(layout, **{section: moved}),
            locate(proc).runtime,
            proc,
        )


def test_thread_ids_of_another_pid_namespace_are_mapped(tmp_path: Path) -> None:
    """`NSpid` of each task says which of our thread ids the target's own number stands for."""
    for ours, theirs in ((100, 1), (101, 7)):
        (tmp_path / "task" / str(ours)).mkdir(parents=True)
        (tmp_path / "task" / str(ours) / "status").write_text(f"Name:\tx\nNSpid:\t{ours}\t{theirs}\n")
    (tmp_path / "status").write_text("NSpid:\t100\t1\n")
    assert host_ids(tmp_path) == {1: 100, 7: 101}
    (tmp_path / "status").write_text("NSpid:\t100\n")
    assert host_ids(tmp_path) == {}


def unpacked(minor: int) -> Path:
    """An interpreter in a root directory of its own; skipped where there is none, failed in CI."""
    python = python_of(minor) if minor in MINORS else None
    if python is None or not python.is_relative_to(UNPACKED):
        missing(
            f"no python3.{minor} in a root directory of its own; `make unit` as root on Debian unpacks one"
        )
    return python


@pytest.mark.parametrize("minor", [14, 15])
def test_a_target_in_namespaces_of_its_own_is_read(minor: int) -> None:
    """Other mounts and other process ids, as in a container: stacks, tasks, and thread ids as our own /proc has them."""
    python = unpacked(minor)
    program, root = within(python, PROGRAM), UNPACKED / "root"
    inside = f"mount --bind {root} {root} && cd {root} && mkdir -p old && pivot_root . old && "
    inside += f"exec /usr/bin/python3.{minor} {program} tasks"
    command = [needs.program("unshare"), "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", inside]
    outer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert outer.stdout
        truth = json.loads(outer.stdout.readline())
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        reader = open_process(int(children[0]))
        assert [thread.kind for thread in reader.stacks()] == ["whole", "whole"]
        tasks = {task.name for task in Path("/proc", children[0], "task").iterdir()}
        assert {str(view.native_id) for view in reader.stacks()} == tasks
        assert min(native for _, native in truth["threads"].values()) == 1, (
            "as its own namespace numbers them"
        )
        assert len(reader.tasks().tasks) == len(truth["tasks"])
    finally:
        outer.kill()
        outer.communicate(timeout=10)


def test_a_shared_libpython_without_symbols_is_read(start_target: StartTarget) -> None:
    """A program that embeds Debian's stripped libpython3.15, in another root directory: the module's section is in that library too."""
    compiler, python, root = needs.program("cc"), unpacked(15), UNPACKED / "root"
    source, library = root / "tmp" / "embeds.c", root / "usr/lib/x86_64-linux-gnu/libpython3.15.so.1.0"
    if not library.exists():
        missing(f"{library} is not there: this machine is no x86-64")
    source.write_text(
        "int Py_BytesMain(int, char **); int main(int n, char **a) { return Py_BytesMain(n, a); }\n"
    )
    binary, shared = root / "usr/bin/embeds", python.with_name("embeds")
    flags = ["-Wl,--allow-shlib-undefined", "-Wl,-s"]
    subprocess.run([compiler, "-o", binary, source, library, *flags], check=True)
    shared.write_text(python.read_text().replace("/usr/bin/python3.15", "/usr/bin/embeds"))
    shared.chmod(0o755)
    target = start_target(shared, "tasks")
    reader = open_process(target.pid)
    assert "libpython3.15" in locate(Path("/proc", str(target.pid))).file
    assert locate_section(Path("/proc", str(target.pid)), ".AsyncioDebug", "_asyncio.") is not None
    assert len(reader.tasks().tasks) == len(target.truth["tasks"])


@pytest.mark.parametrize("minor", [minor for minor in MINORS if minor >= 14])
def test_what_the_module_tells_of_its_structs_is_found(start_target: StartTarget, minor: int) -> None:
    """`.AsyncioDebug` is in the extension module or in what it is linked into, and says what the table says."""
    target = start_target(python_of(minor), "tasks")
    address = locate_section(Path("/proc", str(target.pid)), ".AsyncioDebug", "_asyncio.")
    assert address is not None
    told = ProcessMemory(target.pid).read(address, TASK_OFFSETS_SIZE)
    assert told is not None
    reader = open_process(target.pid)
    assert told_of_tasks(reader.layout, told) == reader.layout
    wrong = bytearray(told)
    wrong[40:48] = (8).to_bytes(8, "little")
    with pytest.raises(UnsupportedTargetError, match=r"task\.coro at 8"):
        told_of_tasks(reader.layout, bytes(wrong))


@pytest.mark.skipif(shutil.which("cc") is None, reason="the generator needs a C compiler")
def test_the_generator_makes_the_table_that_is_kept(python: Path) -> None:
    """For the micro release that a table came from, the generator gives the same numbers."""
    version = subprocess.run(
        [python, "-c", "import sys; print('.'.join(map(str, sys.version_info[:3])))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    kept = layout_of(int(version.split(".")[1]))
    root = UNPACKED / "root" if python.is_relative_to(UNPACKED) else Path("/")
    if root != Path("/") and not (root / "usr/include" / python.name / "Python.h").exists():
        pytest.skip(
            "Debian's headers and debug builds are too large to be fetched for this; see the generator"
        )
    if kept.generated_from != version:
        pytest.skip(f"the table is from {kept.generated_from}, this interpreter is {version}")
    inside = str(python) if root == Path("/") else f"/usr/bin/{python.name}"
    code = f"import json, runpy; from pathlib import Path; print(json.dumps(runpy.run_path({str(GENERATOR)!r})['table'](Path({inside!r}), Path({str(root)!r}))))"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60).stdout
    assert msgspec.json.decode(made, type=type(kept)) == kept
