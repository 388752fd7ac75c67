"""Struct layouts of CPython 3.8 to 3.13: tables made by `tools/gen_layouts.py`, and what 3.13 says of itself.

From 3.13 on `_PyRuntime` starts with `_Py_DebugOffsets` (Include/internal/pycore_runtime.h), which gives part of
what is needed. Where a target says so itself, its word replaces the table's.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from importlib import resources
from typing import Any

import msgspec

from sentinel_agent.cpython.elf import UnsupportedTargetError
from sentinel_agent.cpython.layouts.model import Layout

MINORS = range(8, 14)
COOKIE = b"xdebugpy"
DEBUG_OFFSETS_SIZE = 24 + 70 * 8
"""Bytes of `_Py_DebugOffsets` in 3.13: cookie, version, free-threaded flag, then 70 words."""

# Positions among the 70 words. The structs of the first group have grown in micro releases before: the target's word
# holds. The second group has fields that the target does not tell; there a difference means that those moved too.
_TOLD = {
    ("runtime", "interpreters_head"): 2,
    ("interp", "next"): 5,
    ("interp", "threads_head"): 6,
    ("interp", "modules"): 8,
    ("interp", "sysdict"): 9,
    ("interp", "gil"): 11,
}
_CONFIRMED = {
    ("thread", "size"): 16,
    ("thread", "next"): 18,
    ("thread", "interp"): 19,
    ("thread", "current_frame"): 20,
    ("thread", "thread_id"): 21,
    ("thread", "native_thread_id"): 22,
    ("thread", "datastack_chunk"): 23,
    ("frame", "previous"): 26,
    ("frame", "code"): 27,
    ("frame", "instr"): 28,
    ("frame", "localsplus"): 29,
    ("frame", "owner"): 30,
    ("code", "filename"): 32,
    ("code", "name"): 33,
    ("code", "qualname"): 34,
    ("code", "linetable"): 35,
    ("code", "firstlineno"): 36,
    ("code", "bytecode"): 40,
    ("objects", "type_name"): 44,
    ("dict", "keys"): 54,
    ("unicode", "state"): 65,
    ("unicode", "length"): 66,
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
    """`layout` with what the `_Py_DebugOffsets` in `offsets` (of 3.13) say.

    Raises:
        UnsupportedTargetError: a struct differs from the table that must not.
    """
    words = struct.unpack_from("<70Q", offsets, 24)
    sections: dict[str, Any] = {}
    for (section, field), position in (_TOLD | _CONFIRMED).items():
        known = getattr(getattr(layout, section), field)
        if words[position] == known:
            continue
        if (section, field) in _CONFIRMED or words[position] >= 1 << 20:
            raise UnsupportedTargetError(
                f"the target has {section}.{field} at {words[position]}, CPython {layout.generated_from} has it at {known}",
                hint="this build needs a layout table of its own: see tools/gen_layouts.py",
            )
        sections.setdefault(section, {})[field] = words[position]
    changed = {
        name: msgspec.structs.replace(getattr(layout, name), **fields) for name, fields in sections.items()
    }
    return msgspec.structs.replace(layout, **changed) if changed else layout
