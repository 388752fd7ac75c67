"""What can be checked of aarch64 where there is none: CPython's own headers by its compiler, and where its libpython keeps `_PyRuntime`.

An aarch64 CPython under qemu is no target: its memory lies inside the emulator's process, whose /proc shows another machine's.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from sentinel_agent.cpython import elf
from tests.needs import missing, program
from tools.gen_layouts import HEADER_ROWS, PROGRAM_HEAD, TABLES, rows_of

ROOT = Path(__file__).resolve().parents[2] / ".cache" / "aarch64" / "root"
BIAS = 0xFFFF_8000_0000

pytestmark = pytest.mark.interop


@pytest.fixture
def library() -> Path:
    """A libpython for aarch64."""
    if not ROOT.exists():
        missing(f"there is no {ROOT}: `make interop` makes it")
    (found,) = ROOT.glob("usr/lib/aarch64-linux-gnu/libpython3.*.so.1.0")
    return found


def compiled(asserts: list[str], include: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    source = folder / "layout.c"
    source.write_text(PROGRAM_HEAD.rpartition("int main")[0] + "\n".join(asserts))
    headers = ROOT / "usr" / "include"
    command = [
        *(program("aarch64-linux-gnu-gcc"), "-w", "-fsyntax-only", "-DPy_BUILD_CORE", f"--sysroot={ROOT}"),
        *(f"-I{include}", f"-I{include / 'internal'}"),
        *("-isystem", str(headers / "aarch64-linux-gnu"), "-isystem", str(headers), str(source)),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_table_made_on_x86_64_is_that_of_aarch64(library: Path, tmp_path: Path) -> None:
    """Every offset and size that headers tell, as a static assertion for the compiler of aarch64; one that is wrong is refused."""
    minor = int(re.findall(r"libpython3\.(\d+)", library.name)[0])
    table = json.loads((TABLES / f"cpython-3.{minor}.json").read_text())
    include = ROOT / "usr" / "include" / f"python3.{minor}"
    asserts, seen = [], dict[str, int]()
    for row in rows_of(HEADER_ROWS, minor):
        section, _, field = row.name.partition(".")
        number = table[section][field.removesuffix("[]")]
        if isinstance(number, list):
            seen[row.name] = seen.get(row.name, -1) + 1
            number = number[seen[row.name]]
        if "state_bits" not in row.expression:  # a function, which no compiler asserts on
            asserts.append(f'_Static_assert(({row.expression}) == {number}, "{row.name}");')
    assert len(asserts) > 80
    done = compiled(asserts, include, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        compiled(['_Static_assert(offsetof(PyThreadState, next) == 9, "");'], include, tmp_path).returncode
        != 0
    )


@pytest.mark.parametrize("page", [0x1000, 0x10000])
def test_its_runtime_is_found(
    library: Path, tmp_path: Path, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process that has mapped it, with pages of 4 and of 64 KiB; binutils say where the symbol is."""
    monkeypatch.setattr(elf, "_PAGE", page)
    read = subprocess.run(
        ["readelf", "-W", "--dyn-syms", "--segments", str(library)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (runtime,) = re.findall(r"([0-9a-f]{16}) .* _PyRuntime$", read, re.MULTILINE)
    lines = []
    for offset, address, size in re.findall(r"LOAD +(0x\w+) (0x\w+) 0x\w+ (0x\w+)", read):
        start = BIAS + int(address, 16) // page * page
        end = start + -(-(int(size, 16) + int(address, 16) % page) // page) * page
        lines.append(
            f"{start:x}-{end:x} r-xp {int(offset, 16) // page * page:08x} fe:00 1 /lib/{library.name}\n"
        )
    proc = tmp_path / "proc" / "7"
    (proc / "root" / "lib").mkdir(parents=True)
    (proc / "root" / "lib" / library.name).symlink_to(library)
    (proc / "maps").write_text("".join(lines))
    (proc / "exe").symlink_to("/usr/bin/python3")
    assert elf.locate(proc).runtime == BIAS + int(runtime, 16)
