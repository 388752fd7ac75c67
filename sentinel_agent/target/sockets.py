"""Whose address a socket descriptor is: the tables of `/proc/PID/net`, for the inodes that are asked for.

Formats: proc_net_tcp (Documentation/networking/proc_net_tcp.rst of the kernel), unix(7), proc(5).
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import msgspec

from sentinel_agent.target.procfs import ProcDir, text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_MAX_TABLE = 4 * 1024**2  # some 27,000 connections; a larger table is cut, and the rest stays unresolved
_STATES = [
    "established",
    "syn_sent",
    "syn_recv",
    "fin_wait1",
    "fin_wait2",
    "time_wait",
    "close",
    "close_wait",
    "last_ack",
    "listen",
    "closing",
    "new_syn_recv",
]


class SocketFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """A socket: `local` and `remote` are `address:port`, `[address]:port`, or a path."""

    protocol: str
    local: str = ""
    remote: str = ""
    state: str = ""


def resolve_sockets(proc: ProcDir, inodes: Collection[int]) -> dict[int, SocketFacts]:
    """What the tables of the target's network namespace say about these inodes; those they do not know are left out."""
    found: dict[int, SocketFacts] = {}
    for name in ("tcp", "tcp6", "udp", "udp6", "unix"):
        if len(found) == len(inodes):
            break
        try:
            table = proc.read(f"net/{name}", _MAX_TABLE)
        except OSError:  # a kernel without IPv6, for one
            continue
        found |= {inode: facts for inode, facts in _rows(name, table) if inode in inodes}
    return found


def _rows(name: str, table: bytes) -> Iterator[tuple[int, SocketFacts]]:
    parse = _unix_row if name == "unix" else _internet_row
    for line in table.splitlines()[1:]:
        try:
            yield parse(name, line)
        except (ValueError, IndexError, struct.error):  # cut, or a form that is not in the documentation
            continue


def _internet_row(name: str, line: bytes) -> tuple[int, SocketFacts]:
    fields = line.split()
    state = int(fields[3], 16)
    return int(fields[9]), SocketFacts(
        protocol=name,
        local=_address(fields[1]),
        remote=_address(fields[2]),
        state=_STATES[state - 1] if name.startswith("tcp") and 0 < state <= len(_STATES) else "",
    )


def _unix_row(name: str, line: bytes) -> tuple[int, SocketFacts]:
    fields = line.split(None, 7)
    listening = int(fields[3], 16) & 0x10000  # __SO_ACCEPTCON, include/uapi/linux/net.h
    path = text(fields[7]) if len(fields) > 7 else ""
    return int(fields[6]), SocketFacts(
        protocol=name, local=path, state="listen" if listening else "connected" if fields[5] == b"03" else ""
    )


def _address(field: bytes) -> str:
    """`0100007F:1F90` is 127.0.0.1:8080: 32-bit words in the machine's order, the port as written."""
    address, _, port = field.partition(b":")
    raw = bytes.fromhex(address.decode("ascii"))
    words = struct.unpack(f">{len(raw) // 4}I", raw)
    raw = struct.pack(f"={len(words)}I", *words)
    if len(raw) == 4:
        return f"{socket.inet_ntop(socket.AF_INET, raw)}:{int(port, 16)}"
    return f"[{socket.inet_ntop(socket.AF_INET6, raw)}]:{int(port, 16)}"
