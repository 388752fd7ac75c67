"""CPython 3.14 and later run a script of ours by themselves: the protocol of PEP 768, as `sys.remote_exec` has it.

Written by hand, because `sys.remote_exec` only reaches targets of its own minor version, and the agent may be older. Three small
writes with process_vm_writev(2): the path of the script, a flag, and a bit that makes the main thread look at them at its next
safe point. The offsets are the target's own (`debugger_support`, the last part of `_Py_DebugOffsets`, and `threads_main`:
Include/internal/pycore_debug_offsets.h); where they are not as in 3.14 and 3.15 nothing is written.
"""

from __future__ import annotations

import ctypes
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from sentinel_agent.cpython.elf import UnsupportedTargetError
from sentinel_agent.cpython.memory import must_read
from sentinel_agent.errors import NotPermittedError, SentinelError, TargetError

if TYPE_CHECKING:
    from sentinel_agent.cpython.process import Interpreter

FIRST_MINOR = 14
_SUPPORT = struct.Struct("<6Q")
_THREADS_MAIN = 80  # where in `_Py_DebugOffsets`
_PLEASE_STOP = 1 << 5  # _PY_EVAL_PLEASE_STOP_BIT, Include/internal/pycore_ceval.h
_PATH_SIZE = 512  # _Py_MAX_SCRIPT_PATH_SIZE
_FIELDS_END = 1 << 20


def request(interpreter: Interpreter, pid: int, script: str) -> int:
    """Ask the target to run the file `script`, a path as the target sees it, in its main thread; where the flag is that says so.

    Raises:
        UnsupportedTargetError: its build does not offer that, or offers it otherwise.
        TargetError: it is switched off there, another script waits already, or the path is too long.
    """
    layout, memory = interpreter.layout, interpreter.memory
    size = layout.debug_offsets["size"]
    offsets = must_read(memory, interpreter.runtime, size)
    breaker, support, enabled, pending, path, path_size = _SUPPORT.unpack_from(offsets, size - _SUPPORT.size)
    (threads_main,) = struct.unpack_from("<Q", offsets, _THREADS_MAIN)
    if (pending, path, path_size) != (0, 4, _PATH_SIZE) or max(breaker, support, threads_main) > _FIELDS_END:
        raise UnsupportedTargetError(
            "the target's support for debuggers is laid out in another way than CPython 3.14's"
        )
    interp = interpreter.main_interpreter()
    if not _integer(interpreter, interp + enabled):
        raise TargetError(
            "the target was started with remote debugging switched off",
            hint="start it without PYTHON_DISABLE_REMOTE_DEBUG and -X disable-remote-debug",
        )
    (thread,) = struct.unpack("<Q", must_read(memory, interp + threads_main, 8))
    if not thread:
        raise TargetError("the target has no main thread any more")
    if _integer(interpreter, thread + support + pending):
        raise TargetError(
            "another script waits to be run in the target",
            hint="another agent or debugger is at work; try later",
        )
    name = script.encode() + b"\0"
    if len(name) > path_size:
        raise TargetError(f"the path of the script has {len(name)} bytes, at most {path_size} are possible")
    _write(pid, thread + support + path, name)
    _write(pid, thread + support + pending, struct.pack("<i", 1))
    (bits,) = struct.unpack("<Q", must_read(memory, thread + breaker, 8))
    _write(pid, thread + breaker, struct.pack("<Q", bits | _PLEASE_STOP))
    return int(thread + support + pending)


def withdraw(interpreter: Interpreter, pid: int, flag: int) -> None:
    """Take back what was asked for and has not begun: the target would look for a script that is no longer there, and say so."""
    with suppress(SentinelError):
        if _integer(interpreter, flag) == 1:
            _write(pid, flag, bytes(4))


def _integer(interpreter: Interpreter, address: int) -> int:
    return int.from_bytes(must_read(interpreter.memory, address, 4), "little")


def _write(pid: int, address: int, data: bytes) -> None:
    """Put `data` into the memory of process `pid`.

    Raises:
        NotPermittedError: it may not be written.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    source = ctypes.create_string_buffer(data, len(data))
    local = (ctypes.c_uint64 * 2)(ctypes.addressof(source), len(data))
    remote = (ctypes.c_uint64 * 2)(address, len(data))
    none, one = ctypes.c_ulong(0), ctypes.c_ulong(1)
    written = libc.process_vm_writev(pid, ctypes.byref(local), one, ctypes.byref(remote), one, none)
    if written != len(data):
        raise NotPermittedError(
            f"the memory of process {pid} cannot be written: errno {ctypes.get_errno()}",
            hint="injecting needs CAP_SYS_PTRACE, or the target's user and no restriction by Yama",
        )
