"""The shape of a layout: where the fields lie that the reader needs, in bytes from the start of their struct.

Field names follow CPython's own where one field serves all versions. `ABSENT` marks a field that a version does
not have; which ones follows from `minor` and is written beside them.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

ABSENT = -1


class Runtime(msgspec.Struct, frozen=True):
    """`_PyRuntimeState`. The GIL lies in it up to 3.11."""

    interpreters_head: int
    gil_locked: int = ABSENT
    gil_holder: int = ABSENT


class Interp(msgspec.Struct, frozen=True):
    """`PyInterpreterState`. `gil` points to the `gil` section's struct, from 3.12 on.

    `tasks_head` is the list of the tasks whose threads have ended, from 3.14 on.
    """

    next: int
    threads_head: int
    modules: int
    sysdict: int
    gil: int = ABSENT
    tasks_head: int = ABSENT


class Gil(msgspec.Struct, frozen=True):
    """`struct _gil_runtime_state`, from 3.12 on."""

    locked: int = ABSENT
    holder: int = ABSENT


class Thread(msgspec.Struct, frozen=True):
    """`PyThreadState`. `id` is never used twice in one interpreter.

    The way to the leaf frame: `frame` up to 3.10, `cframe` then `cframe_current` in 3.11 and 3.12,
    `current_frame` from 3.13 on. The `datastack` fields and `native_thread_id` are there from 3.11 on.
    `base_frame` points to where the chain of frames ends, from 3.15 on; before it ends in 0. `tasks_head` is the list of
    the thread's tasks, from 3.14 on; it lies behind the struct, in `_PyThreadStateImpl`.
    """

    size: int
    next: int
    interp: int
    id: int
    thread_id: int
    frame: int = ABSENT
    cframe: int = ABSENT
    cframe_current: int = ABSENT
    current_frame: int = ABSENT
    native_thread_id: int = ABSENT
    datastack_chunk: int = ABSENT
    datastack_top: int = ABSENT
    base_frame: int = ABSENT
    tasks_head: int = ABSENT


class Chunk(msgspec.Struct, frozen=True):
    """`_PyStackChunk`, one piece of a thread's data stack, from 3.11 on."""

    previous: int = ABSENT
    size: int = ABSENT
    data: int = ABSENT


class Frame(msgspec.Struct, frozen=True):
    """`PyFrameObject` up to 3.10, `_PyInterpreterFrame` from 3.11 on.

    `size` is that of the fixed part. `instr` is `f_lasti` up to 3.10 (an int, in bytes up to 3.9, in units of two in 3.10),
    then a pointer. `state` is `f_executing` (one byte) up to 3.9, `f_state` in 3.10. `stacktop` is a pointer up to
    3.9, the depth above `valuestack` in 3.10, the index into `localsplus` from 3.11 to 3.13, a pointer from 3.14 on.
    `is_entry` is in 3.11 only. `tag_bits` are those of a reference (`code`, and all in `localsplus`) that are no address.
    """

    size: int
    code: int
    previous: int
    instr: int
    localsplus: int
    stacktop: int
    owner: int = ABSENT
    is_entry: int = ABSENT
    state: int = ABSENT
    valuestack: int = ABSENT
    tag_bits: int = 0


class Code(msgspec.Struct, frozen=True):
    """`PyCodeObject`. `bytecode` is the pointer to a bytes object up to 3.10, the array itself from 3.11 on.

    `localnames` is a tuple of the names of the locals: of the variables up to 3.10, of all of `localsplus` from 3.11 on.
    `framesize` (in words) is there from 3.12 on; in 3.11 it is the sum of `nlocalsplus`, `stacksize` and the frame's size.
    """

    size: int
    name: int
    filename: int
    firstlineno: int
    linetable: int
    stacksize: int
    bytecode: int
    localnames: int
    qualname: int = ABSENT
    nlocalsplus: int = ABSENT
    framesize: int = ABSENT
    firsttraceable: int = ABSENT


class Objects(msgspec.Struct, frozen=True):
    """Objects whose fixed parts have kept their names: object, type, bytes, int, tuple, list, weakref, method, module.

    `module_state` points to what a C module keeps of itself; it is needed from 3.14 on.
    """

    ob_type: int
    ob_size: int
    type_name: int
    type_basicsize: int
    type_flags: int
    type_base: int
    type_dictoffset: int
    type_cached_keys: int
    bytes_sval: int
    int_size: int
    int_digits: int
    float_value: int
    tuple_item: int
    list_item: int
    weakref_object: int
    module_dict: int
    method_self: int
    module_state: int = ABSENT


class Unicode(msgspec.Struct, frozen=True):
    """`PyASCIIObject` and its larger kin. The masks and the shift are those of the `state` bit field."""

    length: int
    state: int
    kind_shift: int
    compact_mask: int
    ascii_mask: int
    ascii_size: int
    compact_size: int
    data: int


class Dict(msgspec.Struct, frozen=True):
    """`PyDictObject`, its keys and values. `dk_size` up to 3.10; `dk_log2_size`, `dk_log2_index_bytes`, `dk_kind` after."""

    size: int
    used: int
    keys: int
    values: int
    dk_nentries: int
    dk_indices: int
    values_values: int
    dk_size: int = ABSENT
    dk_log2_size: int = ABSENT
    dk_log2_index_bytes: int = ABSENT
    dk_kind: int = ABSENT
    values_valid: int = ABSENT


class Set(msgspec.Struct, frozen=True):
    """`PySetObject`; an entry is a key and a hash."""

    size: int
    mask: int
    used: int
    table: int


class Generator(msgspec.Struct, frozen=True):
    """`PyGenObject` and what wraps it. `frame` is a pointer up to 3.10, the frame itself from 3.11 on.

    `executing`, `created`, `cleared` and `yield_from` are values of `frame_state` (from 3.10 on; `yield_from` from 3.13 on).
    `yield_from_opcodes` tell whether a suspended frame waits in an `await` (up to 3.12). What it waits for is the
    `awaited_depth`th object from the top of its stack.
    """

    size: int
    frame: int
    qualname: int
    wrapped_coroutine: int
    asend_generator: int
    athrow_generator: int
    anext_wrapped: int = ABSENT
    frame_state: int = ABSENT
    executing: int = ABSENT
    created: int = ABSENT
    cleared: int = ABSENT
    yield_from: int = ABSENT
    yield_from_opcodes: tuple[int, ...] = ()
    awaited_depth: int = 1


class Task(msgspec.Struct, frozen=True):
    """`TaskObj` and `FutureObj` of the C module `_asyncio`; the values of `state` have not changed since 3.7.

    From 3.14 on: `awaited_by` is who waits for it, a set of them if `awaited_by_is_set`; `node` links the tasks of a thread;
    `foreign` and `foreign_eager` are the module's sets of tasks of other types, in its own state.
    """

    size: int
    state: int
    coro: int
    name: int
    waiter: int
    callback0: int
    awaited_by: int = ABSENT
    awaited_by_is_set: int = ABSENT
    node: int = ABSENT
    foreign: int = ABSENT
    foreign_eager: int = ABSENT


class Gc(msgspec.Struct, frozen=True):
    """The garbage collector's `_gc_runtime_state`, at `state` in `PyInterpreterState` (in `_PyRuntimeState` in 3.8).

    `stats` are three `gc_generation_stats` of `stats_size` bytes each. From 3.15 on it points to rings of them (`gc_stats`):
    the youngest generation's first, with its place at `young_index`, then those of two older ones from `old` on, `old_size` bytes
    each, with their place at `old_index`.

    `generations` are three `gc_generation` of 24 bytes, the youngest first, each beginning with the head of its list; `permanent` is one
    more, for what `gc.freeze()` set aside. 3.14.0 and its first successors call them `young` and `old`, at the same place.
    """

    state: int
    collecting: int
    generations: int
    permanent: int
    stats: int
    stats_size: int
    collections: int
    collected: int
    uncollectable: int
    young_index: int = ABSENT
    old: int = ABSENT
    old_size: int = ABSENT
    old_index: int = ABSENT


class Layout(msgspec.Struct, frozen=True):
    """Everything about one minor version. `generated_from` is the full version the table was taken from.

    `debug_offsets` are places in `_Py_DebugOffsets`: its size, and where it tells which field of this layout. From 3.13 on.
    """

    minor: int
    generated_from: str
    runtime: Runtime
    interp: Interp
    gil: Gil
    thread: Thread
    chunk: Chunk
    frame: Frame
    code: Code
    objects: Objects
    unicode: Unicode
    dict: Dict
    set: Set
    generator: Generator
    task: Task
    gc: Gc
    debug_offsets: Mapping[str, int] = {}
