"""A few bytes of another process's memory, read with process_vm_readv(2): for what `/proc` tells its owner only."""

from __future__ import annotations

import ctypes
import os


class _Range(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("size", ctypes.c_size_t))


def read_remote(pid: int, address: int, size: int) -> bytes:
    """The bytes at `address`, fewer than `size` where the mapping ends before.

    Raises:
        OSError: with the errno of the call: EPERM not permitted, ESRCH no such process, EFAULT nothing is there.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    here = ctypes.create_string_buffer(size)
    local = _Range(ctypes.addressof(here), size)
    remote = _Range(address, size)
    libc.process_vm_readv.restype = ctypes.c_ssize_t
    done = libc.process_vm_readv(
        ctypes.c_int(pid),
        ctypes.byref(local),
        ctypes.c_ulong(1),
        ctypes.byref(remote),
        ctypes.c_ulong(1),
        ctypes.c_ulong(0),
    )
    if done < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return here.raw[:done]
