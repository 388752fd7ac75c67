"""Write the struct layout table of one CPython minor version, for `sentinel_agent/cpython/layouts/`.

    python tools/gen_layouts.py /path/to/bin/python3.12 [more interpreters]
    python tools/gen_layouts.py --root FOLDER /usr/bin/python3.14 [more interpreters in that folder]

The interpreter must be a release build with its headers (`include/python3.X/internal` among them) and with debug
information (`-g`, the default of CPython's own build) in libpython or the main binary and in `_asyncio`. Most offsets are
printed by a small C program that is compiled against the headers. Structs that only a .c file knows (tasks,
generator wrappers) are read from the debug information. A field that moved is a difference in the written JSON; a field that
was renamed stops the compiler: then add a row below with the new name.

Debian's interpreters are stripped. Their debug information is taken from the debug build beside them (`python3.14d`), whose
structs of those .c files are the same; what 3.14 and later tell of their tasks is compared with it at every attach. As root:

    tools/interpreters.sh FOLDER python3 libpython3.14-dev python3.14-dbg && python tools/gen_layouts.py --root FOLDER/root ...

Needs a C compiler (`cc` or $CC) and pyelftools. For a new minor: add its rows, widen `KNOWN`, run, then run tests/cpython.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from elftools.elf.elffile import ELFFile

KNOWN = range(8, 16)
TABLES = Path(__file__).resolve().parent.parent / "sentinel_agent" / "cpython" / "layouts"


class Row(NamedTuple):
    """One number: `expression` is C, or `struct.member` for what the debug information must tell."""

    name: str
    expression: str
    first: int = 8
    last: int = 99


def _at(name: str, struct: str, member: str, first: int = 8, last: int = 99) -> Row:
    return Row(name, f"offsetof({struct}, {member})", first, last)


def _told(name: str, member: str, first: int = 13) -> Row:
    return _at(f"debug_offsets.{name}", "struct _Py_DebugOffsets", member, first)


HEADER_ROWS = [
    _at("runtime.interpreters_head", "_PyRuntimeState", "interpreters.head"),
    _at("runtime.gil_locked", "_PyRuntimeState", "ceval.gil.locked", 8, 11),
    _at("runtime.gil_holder", "_PyRuntimeState", "ceval.gil.last_holder", 8, 11),
    _at("interp.next", "PyInterpreterState", "next"),
    _at("interp.threads_head", "PyInterpreterState", "tstate_head", 8, 10),
    _at("interp.threads_head", "PyInterpreterState", "threads.head", 11),
    _at("interp.modules", "PyInterpreterState", "modules", 8, 11),
    _at("interp.modules", "PyInterpreterState", "imports.modules", 12),
    _at("interp.sysdict", "PyInterpreterState", "sysdict"),
    _at("interp.gil", "PyInterpreterState", "ceval.gil", 12),
    _at("interp.tasks_head", "PyInterpreterState", "asyncio_tasks_head", 14),
    _at("gil.locked", "struct _gil_runtime_state", "locked", 12),
    _at("gil.holder", "struct _gil_runtime_state", "last_holder", 12),
    Row("thread.size", "sizeof(PyThreadState)"),
    _at("thread.next", "PyThreadState", "next"),
    _at("thread.interp", "PyThreadState", "interp"),
    _at("thread.id", "PyThreadState", "id"),
    _at("thread.thread_id", "PyThreadState", "thread_id"),
    _at("thread.frame", "PyThreadState", "frame", 8, 10),
    _at("thread.cframe", "PyThreadState", "cframe", 11, 12),
    _at("thread.cframe_current", "_PyCFrame", "current_frame", 11, 12),
    _at("thread.current_frame", "PyThreadState", "current_frame", 13),
    _at("thread.native_thread_id", "PyThreadState", "native_thread_id", 11),
    _at("thread.datastack_chunk", "PyThreadState", "datastack_chunk", 11),
    _at("thread.datastack_top", "PyThreadState", "datastack_top", 11),
    _at("thread.base_frame", "PyThreadState", "base_frame", 15),
    _at("thread.tasks_head", "_PyThreadStateImpl", "asyncio_tasks_head", 14),
    _at("chunk.previous", "_PyStackChunk", "previous", 11),
    _at("chunk.size", "_PyStackChunk", "size", 11),
    _at("chunk.data", "_PyStackChunk", "data", 11),
    Row("frame.size", "offsetof(PyFrameObject, f_localsplus)", 8, 10),
    Row("frame.size", "(FRAME_SPECIALS_SIZE) * sizeof(void *)", 11),
    _at("frame.code", "PyFrameObject", "f_code", 8, 10),
    _at("frame.code", "_PyInterpreterFrame", "f_code", 11, 12),
    _at("frame.code", "_PyInterpreterFrame", "f_executable", 13),
    _at("frame.previous", "PyFrameObject", "f_back", 8, 10),
    _at("frame.previous", "_PyInterpreterFrame", "previous", 11),
    _at("frame.instr", "PyFrameObject", "f_lasti", 8, 10),
    _at("frame.instr", "_PyInterpreterFrame", "prev_instr", 11, 12),
    _at("frame.instr", "_PyInterpreterFrame", "instr_ptr", 13),
    _at("frame.localsplus", "PyFrameObject", "f_localsplus", 8, 10),
    _at("frame.localsplus", "_PyInterpreterFrame", "localsplus", 11),
    _at("frame.stacktop", "PyFrameObject", "f_stacktop", 8, 9),
    _at("frame.stacktop", "PyFrameObject", "f_stackdepth", 10, 10),
    _at("frame.stacktop", "_PyInterpreterFrame", "stacktop", 11, 13),
    _at("frame.stacktop", "_PyInterpreterFrame", "stackpointer", 14),
    Row("frame.tag_bits", "Py_TAG_BITS", 14),
    _at("frame.is_entry", "_PyInterpreterFrame", "is_entry", 11, 11),
    _at("frame.owner", "_PyInterpreterFrame", "owner", 11),
    _at("frame.state", "PyFrameObject", "f_executing", 8, 9),
    _at("frame.state", "PyFrameObject", "f_state", 10, 10),
    _at("frame.valuestack", "PyFrameObject", "f_valuestack", 10, 10),
    Row("code.size", "sizeof(PyCodeObject)", 8, 10),
    _at("code.size", "PyCodeObject", "co_code_adaptive", 11),
    _at("code.name", "PyCodeObject", "co_name"),
    _at("code.filename", "PyCodeObject", "co_filename"),
    _at("code.firstlineno", "PyCodeObject", "co_firstlineno"),
    _at("code.linetable", "PyCodeObject", "co_lnotab", 8, 9),
    _at("code.linetable", "PyCodeObject", "co_linetable", 10),
    _at("code.stacksize", "PyCodeObject", "co_stacksize"),
    _at("code.bytecode", "PyCodeObject", "co_code", 8, 10),
    _at("code.bytecode", "PyCodeObject", "co_code_adaptive", 11),
    _at("code.qualname", "PyCodeObject", "co_qualname", 11),
    _at("code.nlocalsplus", "PyCodeObject", "co_nlocalsplus", 11),
    _at("code.framesize", "PyCodeObject", "co_framesize", 12),
    _at("code.localnames", "PyCodeObject", "co_varnames", 8, 10),
    _at("code.localnames", "PyCodeObject", "co_localsplusnames", 11),
    _at("code.firsttraceable", "PyCodeObject", "_co_firsttraceable", 11),
    _at("objects.ob_type", "PyObject", "ob_type"),
    _at("objects.ob_size", "PyVarObject", "ob_size"),
    _at("objects.type_name", "PyTypeObject", "tp_name"),
    _at("objects.type_basicsize", "PyTypeObject", "tp_basicsize"),
    _at("objects.type_flags", "PyTypeObject", "tp_flags"),
    _at("objects.type_base", "PyTypeObject", "tp_base"),
    _at("objects.type_dictoffset", "PyTypeObject", "tp_dictoffset"),
    _at("objects.type_cached_keys", "PyHeapTypeObject", "ht_cached_keys"),
    _at("objects.bytes_sval", "PyBytesObject", "ob_sval"),
    _at("objects.int_size", "PyVarObject", "ob_size", 8, 11),
    _at("objects.int_size", "PyLongObject", "long_value.lv_tag", 12),
    _at("objects.int_digits", "PyLongObject", "ob_digit", 8, 11),
    _at("objects.int_digits", "PyLongObject", "long_value.ob_digit", 12),
    _at("objects.float_value", "PyFloatObject", "ob_fval"),
    _at("objects.tuple_item", "PyTupleObject", "ob_item"),
    _at("objects.list_item", "PyListObject", "ob_item"),
    _at("objects.weakref_object", "PyWeakReference", "wr_object"),
    Row("objects.module_dict", "sizeof(PyObject)"),
    _at("objects.module_state", "PyModuleObject", "md_state", 14),
    _at("objects.method_self", "PyMethodObject", "im_self"),
    _at("unicode.length", "PyASCIIObject", "length"),
    _at("unicode.state", "PyASCIIObject", "state"),
    Row("unicode.kind_shift", "__builtin_ctz(state_bits(7, 0, 0))"),
    Row("unicode.compact_mask", "state_bits(0, 1, 0)"),
    Row("unicode.ascii_mask", "state_bits(0, 0, 1)"),
    Row("unicode.ascii_size", "sizeof(PyASCIIObject)"),
    Row("unicode.compact_size", "sizeof(PyCompactUnicodeObject)"),
    _at("unicode.data", "PyUnicodeObject", "data"),
    Row("dict.size", "sizeof(PyDictObject)"),
    _at("dict.used", "PyDictObject", "ma_used"),
    _at("dict.keys", "PyDictObject", "ma_keys"),
    _at("dict.values", "PyDictObject", "ma_values"),
    _at("dict.dk_nentries", "PyDictKeysObject", "dk_nentries", 11),
    _at("dict.dk_indices", "PyDictKeysObject", "dk_indices", 11),
    _at("dict.dk_log2_size", "PyDictKeysObject", "dk_log2_size", 11),
    _at("dict.dk_log2_index_bytes", "PyDictKeysObject", "dk_log2_index_bytes", 11),
    _at("dict.dk_kind", "PyDictKeysObject", "dk_kind", 11),
    Row("dict.values_values", "0", 8, 10),
    _at("dict.values_values", "PyDictValues", "values", 11),
    _at("dict.values_valid", "PyDictValues", "valid", 13),
    Row("set.size", "sizeof(PySetObject)"),
    _at("set.mask", "PySetObject", "mask"),
    _at("set.used", "PySetObject", "used"),
    _at("set.table", "PySetObject", "table"),
    Row("generator.size", "sizeof(PyCoroObject)"),
    _at("generator.frame", "PyGenObject", "gi_frame", 8, 10),
    _at("generator.frame", "PyGenObject", "gi_iframe", 11),
    _at("generator.qualname", "PyGenObject", "gi_qualname"),
    _at("generator.frame_state", "PyGenObject", "gi_frame_state", 11),
    Row("generator.executing", "FRAME_EXECUTING", 10),
    Row("generator.created", "FRAME_CREATED", 10),
    Row("generator.cleared", "FRAME_CLEARED", 10),
    Row("generator.yield_from", "FRAME_SUSPENDED_YIELD_FROM", 13),
    # No header says it: `_PyFrame_StackPeek(&gen->gi_iframe, 2)` in Objects/genobject.c, since SEND has a NULL on the stack.
    Row("generator.awaited_depth", "2", 15),
    Row("generator.yield_from_opcodes[]", "YIELD_FROM", 8, 10),
    Row("generator.yield_from_opcodes[]", "RESUME", 11, 12),
    Row("generator.yield_from_opcodes[]", "RESUME_QUICK", 11, 11),
    Row("generator.yield_from_opcodes[]", "INSTRUMENTED_RESUME", 12, 12),
    _at("gc.state", "_PyRuntimeState", "gc", 8, 8),
    _at("gc.state", "PyInterpreterState", "gc", 9),
    _at("gc.collecting", "struct _gc_runtime_state", "collecting"),
    _at("gc.generations", "struct _gc_runtime_state", "generations"),
    _at("gc.permanent", "struct _gc_runtime_state", "permanent_generation"),
    _at("gc.stats", "struct _gc_runtime_state", "generation_stats"),
    Row("gc.stats_size", "sizeof(struct gc_generation_stats)"),
    _at("gc.collections", "struct gc_generation_stats", "collections"),
    _at("gc.collected", "struct gc_generation_stats", "collected"),
    _at("gc.uncollectable", "struct gc_generation_stats", "uncollectable"),
    _at("gc.young_index", "struct gc_stats", "young.index", 15),
    _at("gc.old", "struct gc_stats", "old", 15),
    Row("gc.old_size", "sizeof(struct gc_old_stats_buffer)", 15),
    _at("gc.old_index", "struct gc_old_stats_buffer", "index", 15),
    Row("debug_offsets.size", "sizeof(struct _Py_DebugOffsets)", 13),
    _told("runtime.interpreters_head", "runtime_state.interpreters_head"),
    _told("interp.next", "interpreter_state.next"),
    _told("interp.threads_head", "interpreter_state.threads_head"),
    _told("interp.modules", "interpreter_state.imports_modules"),
    _told("interp.sysdict", "interpreter_state.sysdict"),
    _told("interp.gil", "interpreter_state.ceval_gil"),
    _told("gc.state", "interpreter_state.gc"),
    _told("gc.collecting", "gc.collecting"),
    _told("thread.size", "thread_state.size"),
    _told("thread.next", "thread_state.next"),
    _told("thread.interp", "thread_state.interp"),
    _told("thread.current_frame", "thread_state.current_frame"),
    _told("thread.thread_id", "thread_state.thread_id"),
    _told("thread.native_thread_id", "thread_state.native_thread_id"),
    _told("thread.datastack_chunk", "thread_state.datastack_chunk"),
    _told("thread.base_frame", "thread_state.base_frame", 15),
    _told("frame.previous", "interpreter_frame.previous"),
    _told("frame.code", "interpreter_frame.executable"),
    _told("frame.instr", "interpreter_frame.instr_ptr"),
    _told("frame.localsplus", "interpreter_frame.localsplus"),
    _told("frame.owner", "interpreter_frame.owner"),
    _told("frame.stacktop", "interpreter_frame.stackpointer", 14),
    _told("code.filename", "code_object.filename"),
    _told("code.name", "code_object.name"),
    _told("code.qualname", "code_object.qualname"),
    _told("code.linetable", "code_object.linetable"),
    _told("code.firstlineno", "code_object.firstlineno"),
    _told("code.bytecode", "code_object.co_code_adaptive"),
    _told("objects.type_name", "type_object.tp_name"),
    _told("objects.type_flags", "type_object.tp_flags"),
    _told("objects.type_basicsize", "type_object.tp_basicsize", 15),
    _told("objects.type_dictoffset", "type_object.tp_dictoffset", 15),
    _told("objects.type_cached_keys", "heap_type_object.ht_cached_keys", 15),
    _told("dict.keys", "dict_object.ma_keys"),
    _told("dict.values", "dict_object.ma_values"),
    _told("set.mask", "set_object.mask", 14),
    _told("set.used", "set_object.used", 14),
    _told("set.table", "set_object.table", 14),
    _told("unicode.state", "unicode_object.state"),
    _told("unicode.length", "unicode_object.length"),
    _told("generator.frame", "gen_object.gi_iframe", 14),
    _told("generator.frame_state", "gen_object.gi_frame_state", 14),
]
CORE_DEBUG_ROWS = [
    Row("dict.dk_size", "_dictkeysobject.dk_size", 8, 10),
    Row("dict.dk_nentries", "_dictkeysobject.dk_nentries", 8, 10),
    Row("dict.dk_indices", "_dictkeysobject.dk_indices", 8, 10),
    Row("generator.wrapped_coroutine", "PyCoroWrapper.cw_coroutine"),
    Row("generator.asend_generator", "PyAsyncGenASend.ags_gen"),
    Row("generator.athrow_generator", "PyAsyncGenAThrow.agt_gen"),
    Row("generator.anext_wrapped", "anextawaitableobject.wrapped", 10),
]
ASYNCIO_ROWS = [
    Row("task.size", "TaskObj"),
    Row("task.state", "TaskObj.task_state"),
    Row("task.coro", "TaskObj.task_coro"),
    Row("task.name", "TaskObj.task_name"),
    Row("task.waiter", "TaskObj.task_fut_waiter"),
    Row("task.awaited_by", "TaskObj.task_awaited_by", 14),
    Row("task.awaited_by_is_set", "TaskObj.task_awaited_by_is_set", 14),
    Row("task.node", "TaskObj.task_node", 14),
    Row("task.foreign", "asyncio_state.non_asyncio_tasks", 14),
    Row("task.foreign_eager", "asyncio_state.non_asyncio_eager_tasks", 14),
    Row("task.callback0", "TaskObj.task_callback0"),
]

PROGRAM_HEAD = """
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include "Python.h"
#include "internal/pycore_pystate.h"
#if PY_VERSION_HEX >= 0x03090000
#include "internal/pycore_interp.h"
#include "internal/pycore_runtime.h"
#include "internal/pycore_gc.h"
#endif
#include "frameobject.h"
#include "opcode.h"
#if PY_VERSION_HEX >= 0x030B0000
#include "internal/pycore_dict.h"
#include "internal/pycore_frame.h"
#include "internal/pycore_code.h"
#endif
#if PY_VERSION_HEX >= 0x030E0000
#include "internal/pycore_debug_offsets.h"
#include "internal/pycore_interpframe.h"
#include "internal/pycore_moduleobject.h"
#include "internal/pycore_stackref.h"
#include "internal/pycore_tstate.h"
#endif

static unsigned int state_bits(int kind, int compact, int ascii)
{
    PyASCIIObject object;
    unsigned int bits;
    memset(&object, 0, sizeof object);
    object.state.kind = kind;
    object.state.compact = compact;
    object.state.ascii = ascii;
    memcpy(&bits, &object.state, sizeof bits);
    return bits;
}

int main(void)
{
"""


def rows_of(rows: list[Row], minor: int) -> list[Row]:
    """Those that a minor version has."""
    return [row for row in rows if row.first <= minor <= row.last]


class Build(NamedTuple):
    """An interpreter, and the folder that is its root directory."""

    python: Path
    root: Path

    def ask(self, code: str) -> Any:
        """What the interpreter answers, as JSON."""
        enter = [] if self.root == Path("/") else ["chroot", str(self.root)]
        command = [*enter, str(self.python), "-I", "-c", f"import json, sys; {code}"]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    def path(self, inside: str) -> Path:
        """Where a file of the interpreter lies for us."""
        return self.root / inside.lstrip("/")

    def debug_build(self) -> Build:
        """The build beside this one that has debug information, where there is one; else this."""
        debug = self.python.with_name(self.python.name + "d")
        return Build(debug, self.root) if self.path(str(debug)).exists() else self


def _from_headers(include: Path, minor: int) -> list[tuple[str, int]]:
    """Compile and run one program that prints every number of `HEADER_ROWS`."""
    lines = [
        f'    printf("{row.name} %ld\\n", (long)({row.expression}));' for row in rows_of(HEADER_ROWS, minor)
    ]
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "offsets.c"), Path(folder, "offsets")
        source.write_text(PROGRAM_HEAD + "\n".join(lines) + "\n    return 0;\n}\n")
        compiler = os.environ.get("CC", "cc")
        flags = ["-w", "-DPy_BUILD_CORE", f"-I{include}", f"-I{include / 'internal'}"]
        # Debian keeps `pyconfig.h` beside them, by the name of the architecture, but so it does libc's headers: last.
        flags += ["-idirafter", str(include.parent)]
        subprocess.run([compiler, *flags, "-o", binary, source], check=True)
        printed = subprocess.run([binary], check=True, capture_output=True, text=True).stdout
    return [(name, int(number)) for name, number in (line.split() for line in printed.splitlines())]


def _member_offset(struct: Any, member: str) -> int | None:
    for child in struct.iter_children():
        if child.tag == "DW_TAG_member" and child.attributes["DW_AT_name"].value.decode() == member:
            return int(child.attributes["DW_AT_data_member_location"].value)
    return None


def _named_struct(die: Any, names: set[str]) -> tuple[str, Any] | None:
    """The struct that `die` names, through a typedef if it is one."""
    if die.tag not in ("DW_TAG_typedef", "DW_TAG_structure_type") or "DW_AT_name" not in die.attributes:
        return None
    name = die.attributes["DW_AT_name"].value.decode()
    struct = die
    if die.tag == "DW_TAG_typedef" and name in names:
        struct = die.get_DIE_from_attribute("DW_AT_type")
    return (name, struct) if name in names and "DW_AT_byte_size" in struct.attributes else None


def _from_debug_information(
    binary: Path, source_files: tuple[str, ...], rows: list[Row]
) -> list[tuple[str, int]]:
    """Look `rows` up in the compilation units of `source_files`."""
    names = {row.expression.partition(".")[0] for row in rows}
    structs: dict[str, Any] = {}
    with binary.open("rb") as file:
        elf = ELFFile(file)
        if not elf.has_dwarf_info():
            raise SystemExit(
                f"{binary} has no debug information: build that CPython with -g and do not strip it"
            )
        for unit in elf.get_dwarf_info().iter_CUs():
            if not unit.get_top_DIE().get_full_path().endswith(source_files):
                continue
            for die in unit.iter_DIEs():
                found = _named_struct(die, names)
                if found:
                    structs[found[0]] = found[1]
        answer = []
        for row in rows:
            name, _, member = row.expression.partition(".")
            struct = structs[name]
            number = _member_offset(struct, member) if member else struct.attributes["DW_AT_byte_size"].value
            if number is None:
                raise SystemExit(f"{binary}: struct {name} has no member {member}")
            answer.append((row.name, int(number)))
    return answer


def table(python: Path, root: Path = Path("/")) -> dict[str, Any]:
    """The layout of `python`, in the shape of `sentinel_agent.cpython.layouts.model.Layout`."""
    build = Build(python, root)
    version = build.ask("print(json.dumps(sys.version_info[:3]))")
    minor = version[1]
    if version[0] != 3 or minor not in KNOWN:
        raise SystemExit(f"{python} is {version}: this tool knows 3.{KNOWN[0]} to 3.{KNOWN[-1]}")
    include = build.path(build.ask("import sysconfig; print(json.dumps(sysconfig.get_path('include')))"))
    debug = build.debug_build()
    main, asyncio = debug.ask(
        "import sysconfig as s, _asyncio; c = s.get_config_var; "
        "main = c('LIBDIR') + '/' + c('LDLIBRARY') if c('Py_ENABLE_SHARED') and sys.prefix != '/usr' else sys.executable; "
        "print(json.dumps([main, getattr(_asyncio, '__file__', main)]))",
    )
    core_files = ("genobject.c", "dictobject.c", "iterobject.c")
    numbers = [
        *_from_headers(include, minor),
        *_from_debug_information(debug.path(main).resolve(), core_files, rows_of(CORE_DEBUG_ROWS, minor)),
        *_from_debug_information(debug.path(asyncio), ("_asynciomodule.c",), rows_of(ASYNCIO_ROWS, minor)),
    ]
    layout: dict[str, Any] = {"minor": minor, "generated_from": ".".join(map(str, version))}
    for path, number in numbers:
        section, _, field = path.partition(".")
        fields = layout.setdefault(section, {})
        if field.endswith("[]"):
            fields.setdefault(field[:-2], []).append(number)
        else:
            fields[field] = number
    layout.setdefault("gil", {})
    layout.setdefault("chunk", {})
    return layout


def main(arguments: list[str]) -> None:
    """Write one table per interpreter."""
    root = Path("/")
    if arguments[:1] == ["--root"]:
        root, arguments = Path(arguments[1]), arguments[2:]
    if not arguments:
        raise SystemExit(__doc__)
    for python in arguments:
        layout = table(Path(python), root)
        path = TABLES / f"cpython-3.{layout['minor']}.json"
        path.write_text(json.dumps(layout, indent=1) + "\n")
        sys.stdout.write(f"{path.name}: from {layout['generated_from']}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
