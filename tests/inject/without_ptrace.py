"""Run a command as a container's default seccomp profile has it: ptrace(2) and process_vm_readv/writev(2) answer EPERM.

A filter of classic BPF (seccomp(2), linux/filter.h); it cannot be taken off again. Arguments: the command.
"""

import ctypes
import os
import platform
import struct
import sys

REFUSED = {"x86_64": (101, 310, 311), "aarch64": (117, 270, 271)}[platform.machine()]
LOAD_NUMBER, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, EPERM = 0x7FFF0000, 0x00050001
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, FILTER = 38, 22, 2

code = [(LOAD_NUMBER, 0, 0, 0)]
code += [(JUMP_IF_EQUAL, len(REFUSED) - at, 0, number) for at, number in enumerate(REFUSED)]
code += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, EPERM)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in code))
header = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(program))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
assert libc.prctl(PR_SET_SECCOMP, FILTER, header, 0, 0) == 0, os.strerror(ctypes.get_errno())
os.execv(sys.argv[1], sys.argv[1:])
