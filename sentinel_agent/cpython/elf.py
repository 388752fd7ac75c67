"""Where a process keeps `_PyRuntime`, the root of everything CPython knows, and which CPython it is.

Looked up in libpython, else in the main binary: by dynamic symbol, by full symbol table, by the `.PyRuntime`
section that CPython puts the struct in (Include/internal/pycore_runtime.h), which outlives stripping. Files are opened through
/proc/PID/root and /proc/PID/exe, so that another mount namespace makes no difference. In our own namespace the kernel names them
as we see them, whatever root directory the process has (d_path, fs/d_path.c).
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from sentinel_agent.errors import NoSuchTargetError, NotPermittedError, TargetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

_Answer = TypeVar("_Answer")
_MAX_MAPS = 16 << 20
_PAGE = os.sysconf("SC_PAGE_SIZE")  # aarch64 kernels have pages of 4, 16 or 64 KiB
_MAPS_LINE = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) \S+ \d+ *(.*)")
_LIBPYTHON = re.compile(r"libpython3\.\d+[a-z]*\.so")
_MINOR = re.compile(r"(?:python3\.|\.cpython-3)(\d{1,2})(?!\d)")


class UnsupportedTargetError(TargetError):
    """The process is no CPython that this reader knows, or its build differs from what the reader was made for."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/PID/maps that has a file: addresses and file offset in bytes."""

    start: int
    end: int
    offset: int
    path: str


@dataclass(frozen=True, slots=True)
class Location:
    """Where the interpreter is. Addresses are the target's; `minor` is what file names say, if they say one thing."""

    runtime: int
    version_symbol: int | None
    file: str
    minor: int | None


def read_maps(proc: Path) -> list[Mapping]:
    """The file mappings of the process whose /proc folder is `proc`.

    Raises:
        NoSuchTargetError: there is no such process, or it has no memory (a zombie, a kernel thread).
        NotPermittedError: its maps may not be read.
    """
    try:
        with (proc / "maps").open("rb") as file:
            text = file.read(_MAX_MAPS)
    except PermissionError as error:
        raise NotPermittedError(
            f"{proc / 'maps'} may not be read",
            hint="run as the same user or root, with CAP_SYS_PTRACE in a container",
        ) from error
    except OSError as error:
        raise NoSuchTargetError(
            f"process {proc.name} is not there", hint="see the running ones with ps"
        ) from error
    if not text:
        raise NoSuchTargetError(f"process {proc.name} has no memory: it is a zombie or a kernel thread")
    return list(_parse_maps(text.split(b"\n")))


def _parse_maps(lines: Iterable[bytes]) -> Iterator[Mapping]:
    for line in lines:
        found = _MAPS_LINE.fullmatch(line)
        if found and found[5].startswith(b"/"):
            path = found[5].decode("utf-8", "surrogateescape")
            yield Mapping(int(found[1], 16), int(found[2], 16), int(found[4], 16), path)


def locate(proc: Path) -> Location:
    """Find the interpreter of the process whose /proc folder is `proc`.

    Raises:
        UnsupportedTargetError: no file of the process holds a CPython.
        NoSuchTargetError, NotPermittedError: see `read_maps`.
    """
    by_path = _by_path(read_maps(proc))
    for path, file in _candidates(proc, by_path):
        found = _ask(file, partial(_runtime_address, by_path.get(path, [])))
        if found:
            # Extension modules name the version too, where the binary does not (`cpython-38`, `lib/python3.8`).
            minor = _minor_of_names([path]) or _minor_of_names(by_path)
            return Location(found[0], found[1], path, minor)
    raise UnsupportedTargetError(
        f"process {proc.name} runs no CPython: neither its main binary nor a libpython of it has _PyRuntime",
        hint="only CPython 3.8 and later can be read; PyPy and others cannot",
    )


def locate_section(proc: Path, name: str, file_name: str) -> int | None:
    """Where a section lies in the memory of a process: in a mapped file called `file_name...`, a libpython or the main binary.

    Raises:
        NoSuchTargetError, NotPermittedError: see `read_maps`.
    """
    by_path = _by_path(read_maps(proc))
    extensions = [path for path in by_path if path.rpartition("/")[2].startswith(file_name)]
    candidates = [(path, file) for path in extensions for file in _files(proc, path)]
    for path, file in (*candidates, *_candidates(proc, by_path)):
        found = _ask(file, partial(_loaded_section, name, by_path.get(path, [])))
        if found is not None:
            return found
    return None


def _by_path(mappings: list[Mapping]) -> dict[str, list[Mapping]]:
    by_path: dict[str, list[Mapping]] = {}
    for mapping in mappings:
        by_path.setdefault(mapping.path, []).append(mapping)
    return by_path


def _minor_of_names(paths: Iterable[str]) -> int | None:
    """The minor version that the names of the mapped files agree on."""
    minors = {int(found) for path in paths for found in _MINOR.findall(path)}
    return minors.pop() if len(minors) == 1 else None


def _files(proc: Path, path: str) -> tuple[Path, Path]:
    """Where a mapped file may be: in the root directory of the process, or in ours, for one that only chroot has moved."""
    return proc / "root" / path.lstrip("/"), proc.parents[1] / path.lstrip("/")


def _candidates(proc: Path, by_path: dict[str, list[Mapping]]) -> Iterator[tuple[str, Path]]:
    for path in by_path:
        if _LIBPYTHON.search(path.rpartition("/")[2]):
            yield from ((path, file) for file in _files(proc, path))
    try:
        main = str((proc / "exe").readlink())
    except OSError:
        main = ""
    # In another mount namespace the link can read differently from maps; the main binary is then mapped first.
    yield (main if main in by_path else next(iter(by_path), "")), proc / "exe"


def _ask(path: Path, question: Callable[[Any], _Answer | None]) -> _Answer | None:
    """What an ELF file answers; None where it is none, or a damaged one."""
    from elftools.common.exceptions import ELFError  # noqa: PLC0415 - 2 MiB that only an attach needs
    from elftools.elf.elffile import ELFFile  # noqa: PLC0415 - likewise

    try:
        with path.open("rb") as file:
            return question(ELFFile(file))
    except (
        ELFError,
        OSError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        ArithmeticError,
        struct.error,
    ):
        # A file that is no ELF file, or a damaged one: hostile input of a foreign parser.
        return None


def _runtime_address(mappings: list[Mapping], elf: Any) -> tuple[int, int | None] | None:
    """Addresses of `_PyRuntime` and `Py_Version` in the target, or None where the file holds no CPython."""
    bias = _load_bias(elf, mappings)
    runtime = (
        _dynamic_symbol(elf, "_PyRuntime")
        or _symbol(elf, "_PyRuntime")
        or _section_address(elf, ".PyRuntime")
    )
    if bias is None or runtime is None:
        return None
    version = _dynamic_symbol(elf, "Py_Version")
    return runtime + bias, None if version is None else version + bias


def _loaded_section(name: str, mappings: list[Mapping], elf: Any) -> int | None:
    bias, address = _load_bias(elf, mappings), _section_address(elf, name)
    return None if bias is None or address is None else address + bias


def _load_bias(elf: Any, mappings: list[Mapping]) -> int | None:
    """What was added to the file's addresses when it was loaded (elf(5), program headers; 0 unless ET_DYN)."""
    if elf["e_type"] == "ET_EXEC":
        return 0
    starts = {mapping.offset: mapping.start for mapping in reversed(mappings)}
    for segment in elf.iter_segments("PT_LOAD"):
        offset = segment["p_offset"] // _PAGE * _PAGE
        if offset in starts:
            return starts[offset] - int(segment["p_vaddr"]) // _PAGE * _PAGE
    return None


def _dynamic_symbol(elf: Any, name: str) -> int | None:
    for section_name in (".gnu.hash", ".hash"):
        table = elf.get_section_by_name(section_name)
        found = table.get_symbol(name) if table is not None else None
        if found is not None:
            return int(found["st_value"]) or None
    return None


def _symbol(elf: Any, name: str) -> int | None:
    table = elf.get_section_by_name(".symtab")
    for found in (table.get_symbol_by_name(name) if table is not None else None) or ():
        return int(found["st_value"]) or None
    return None


def _section_address(elf: Any, name: str) -> int | None:
    section = elf.get_section_by_name(name)
    return None if section is None else int(section["sh_addr"]) or None
