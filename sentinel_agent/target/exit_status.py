"""With which status a process ended, although it may be no child of ours.

Three sources, the first that answers counts: waitid(2) without reaping, for a child; PIDFD_GET_INFO with
PIDFD_INFO_EXIT (include/uapi/linux/pidfd.h, Linux 6.15; fs/pidfs.c), once its parent has reaped it; and while nobody
has, field 52 of /proc/PID/stat (proc(5)), which the kernel shows to those who may trace the process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING

from sentinel_agent.target.procfs import ROOT, ProcDir, ProcFormatError

if TYPE_CHECKING:
    from pathlib import Path

    from sentinel_agent.core.model import TargetId

# struct pidfd_info as first published, 64 bytes: mask, cgroupid, then eleven 32-bit ids and the exit code.
_INFO = struct.Struct("=QQ11Ii")
_INFO_EXIT = 1 << 3
_GET_INFO = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11  # _IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)


def exit_status(pidfd: int, target: TargetId, root: Path = ROOT) -> int | None:
    """The status as waitpid(2) gives it; None where it cannot be told, or not yet. `pidfd` is -1 where there is none."""
    for status in (_of_child(pidfd), _of_reaped(pidfd), _of_zombie(target, root)):
        if status is not None:
            return status
    return None


def tells_later(pidfd: int) -> bool:
    """Whether this kernel tells the status through the pidfd once the process is reaped, which may be just now."""
    if pidfd < 0:
        return False
    try:
        _ask(pidfd)
    except OSError as error:
        # A kernel that knows the question and not yet the answer says ESRCH of a process that is just being reaped.
        return error.errno == errno.ESRCH
    return True


def _of_child(pidfd: int) -> int | None:
    if pidfd < 0:
        return None
    try:
        found = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except OSError:  # not our child, or reaped already
        return None
    if found is None:
        return None
    if found.si_code == os.CLD_EXITED:
        return (found.si_status & 0xFF) << 8
    return found.si_status | (0x80 if found.si_code == os.CLD_DUMPED else 0)


def _of_reaped(pidfd: int) -> int | None:
    if pidfd < 0:
        return None
    try:
        mask, code = _ask(pidfd)
    except OSError:
        return None
    return code if mask & _INFO_EXIT else None


def _ask(pidfd: int) -> tuple[int, int]:
    """Which fields were filled in, and the exit code. Raises OSError."""
    answer = bytearray(_INFO.size)
    struct.pack_into("=Q", answer, 0, _INFO_EXIT)
    fcntl.ioctl(pidfd, _GET_INFO, answer)
    mask, *_, code = _INFO.unpack(answer)
    return mask, code


def _of_zombie(target: TargetId, root: Path) -> int | None:
    try:
        with ProcDir.of(target, root) as proc:
            stat = proc.stat()
            if not stat.ended:
                return None
            if not stat.exit_status:
                proc.read(
                    "io"
                )  # shown to the same readers as the status: then 0 is no refusal (fs/proc/base.c)
            return stat.exit_status
    except (OSError, ProcFormatError):
        return None
