"""Struct layouts of CPython 3.8 to 3.15: tables made by `tools/gen_layouts.py`, and what 3.13 and later say of themselves.

From 3.13 on `_PyRuntime` starts with `_Py_DebugOffsets` (Include/internal/pycore_debug_offsets.h, pycore_runtime.h in 3.13), which
gives part of what is needed; from 3.14 on `_asyncio` tells of its tasks as well. Where a target says so itself, its word
replaces the table's.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import msgspec

from sentinel_agent.cpython.elf import UnsupportedTargetError
from sentinel_agent.cpython.layouts.model import Layout

if TYPE_CHECKING:
    from collections.abc import Mapping

MINORS = range(8, 16)
COOKIE = b"xdebugpy"
TASK_OFFSETS_SIZE = 13 * 8
"""Bytes of `Py_AsyncioModuleDebugOffsets` (Modules/_asynciomodule.c, 3.14 on)."""

# Structs that have grown in micro releases before: the target's word holds. All others have fields that the target does
# not tell; there a difference means that those moved too.
_TOLD = ("runtime.", "interp.", "thread.tasks_head", "gc.state")
_TASK_OFFSETS = {
    "task.size": 0,
    "task.name": 8,
    "task.awaited_by": 16,
    "task.awaited_by_is_set": 32,
    "task.coro": 40,
    "task.node": 48,
    "interp.tasks_head": 64,
    "thread.tasks_head": 96,
}


@lru_cache(maxsize=len(MINORS))
def layout_of(minor: int) -> Layout:
    """The table of CPython 3.`minor`.

    Raises:
        UnsupportedTargetError: there is none.
    """
    if minor not in MINORS:
        raise UnsupportedTargetError(
            f"the target is CPython 3.{minor}: 3.{MINORS[0]} to 3.{MINORS[-1]} can be read",
            hint="py-spy based captures may still work",
        )
    text = resources.files(__name__).joinpath(f"cpython-3.{minor}.json").read_bytes()
    return msgspec.json.decode(text, type=Layout)


def debug_version(head: bytes) -> tuple[int, bool] | None:
    """Minor version and whether free-threaded, from the first 24 bytes of `_PyRuntime`; None before 3.13.

    Raises:
        UnsupportedTargetError: the target is no CPython 3.
    """
    if head[:8] != COOKIE:
        return None
    version, free_threaded = struct.unpack_from("<QQ", head, 8)
    if version >> 24 != 3:
        raise UnsupportedTargetError(f"_Py_DebugOffsets names version {version:#x}: CPython 3 was expected")
    return version >> 16 & 0xFF, bool(free_threaded)


def told_by_target(layout: Layout, offsets: bytes) -> Layout:
    """`layout` with what `_Py_DebugOffsets` say; `offsets` are its bytes, as many as `layout.debug_offsets` has.

    Raises:
        UnsupportedTargetError: a struct differs from the table that must not.
    """
    return _told(layout, offsets, {name: at for name, at in layout.debug_offsets.items() if name != "size"})


def told_of_tasks(layout: Layout, offsets: bytes) -> Layout:
    """`layout` with what the TASK_OFFSETS_SIZE bytes that `_asyncio` keeps for it say.

    Raises:
        UnsupportedTargetError: a struct differs from the table that must not.
    """
    return _told(layout, offsets, _TASK_OFFSETS)


def _told(layout: Layout, offsets: bytes, places: Mapping[str, int]) -> Layout:
    sections: dict[str, Any] = {}
    for name, at in places.items():
        section, _, field = name.partition(".")
        (told,) = struct.unpack_from("<Q", offsets, at)
        known = getattr(getattr(layout, section), field)
        if told == known:
            continue
        if not name.startswith(_TOLD) or told >= 1 << 20:
            raise UnsupportedTargetError(
                f"the target has {name} at {told}, CPython {layout.generated_from} has it at {known}",
                hint="this build needs a layout table of its own: see tools/gen_layouts.py",
            )
        sections.setdefault(section, {})[field] = told
    changed = {
        name: msgspec.structs.replace(getattr(layout, name), **fields) for name, fields in sections.items()
    }
    return msgspec.structs.replace(layout, **changed) if changed else layout
