"""The right to read other users' processes, taken where it was given: CAP_SYS_PTRACE from permitted to effective.

A container that runs as another user than root loses the capabilities that its manifest adds, unless the program that it
starts carries them as file capabilities (capabilities(7), "File capabilities"); the image's interpreter does. They are
*permitted* there and not *effective*, so that the image also starts where the manifest does not add them; the process
raises them by itself, and makes them ambient, so that py-spy has them too.
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass

CAP_SYS_PTRACE = 19
_VERSION_3 = 0x20080522  # _LINUX_CAPABILITY_VERSION_3, include/uapi/linux/capability.h
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2  # include/uapi/linux/prctl.h
_SETS = struct.Struct("<6I")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The three sets of a thread, one bit per capability."""

    effective: int
    permitted: int
    inheritable: int


def with_ptrace(now: Capabilities) -> Capabilities | None:
    """What to ask for so that CAP_SYS_PTRACE is in force and handed on; None if there is nothing to gain."""
    bit = 1 << CAP_SYS_PTRACE
    if not now.permitted & bit or now.effective & bit:
        return None
    return Capabilities(now.effective | bit, now.permitted, now.inheritable | bit)


def raise_ptrace() -> bool:
    """Put CAP_SYS_PTRACE in force for this process, if it was given but is not. Whether that was so; never raises."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    data = ctypes.create_string_buffer(_SETS.size)
    if libc.capget(header, data) != 0:
        return False
    low = _SETS.unpack(data.raw)
    # Two words per set: the first three are bits 0 to 31, the last three the rest.
    wanted = with_ptrace(Capabilities(*(low[i] | low[i + 3] << 32 for i in range(3))))
    if wanted is None:
        return False
    sets = (wanted.effective, wanted.permitted, wanted.inheritable)
    data.raw = _SETS.pack(*(each & 0xFFFFFFFF for each in sets), *(each >> 32 for each in sets))
    if libc.capset(header, data) != 0:
        return False
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, CAP_SYS_PTRACE, 0, 0)
    return True
