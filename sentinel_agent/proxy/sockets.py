"""The listeners' sockets, which belong to the supervisor: bound once, kept over reloads and upgrades."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sentinel_agent.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sentinel_agent.proxy.config import Listener, ProxyConfig

BACKLOG = 1024


@contextmanager
def reachable(path: Path) -> Iterator[str]:
    """A path to the same place that is short enough for a socket (unix(7): 108 bytes)."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


@dataclass(frozen=True, slots=True)
class Bound:
    """A listener's socket, the address that it has, and the one that was `wanted` (whose port may be 0)."""

    name: str
    sock: socket.socket
    address: str
    wanted: str


def bind(config: ProxyConfig, before: Sequence[Bound] = ()) -> list[Bound]:
    """The sockets of all listeners, in order; those of `before` whose address is wanted still are used again.

    Raises:
        OperatorError: with every address that cannot be had, and why; nothing is left open that was not before.
    """
    known = {_key(each.name, each.wanted): each for each in before}
    found: list[Bound] = []
    faults: list[str] = []
    for listener in config.listeners:
        kept = known.get(_key(listener.name, listener.address))
        if kept is not None:
            found.append(replace(kept, name=listener.name))
            continue
        try:
            found.append(_bind(listener))
        except (OSError, OverflowError) as error:
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            faults.append(f"{listener.name}: {listener.address}: {reason}")
    if faults:
        close(found, keep=before)
        raise OperatorError(
            "cannot listen on\n  " + "\n  ".join(faults),
            hint="stop what uses the address, or take over from a running proxy of this configuration with --upgrade",
        )
    return found


def _key(name: str, wanted: str) -> tuple[str, str]:
    return (name if wanted.endswith(":0") else "", wanted)


def _bind(listener: Listener) -> Bound:
    host, _, port = listener.address.rpartition(":")
    host = host.strip("[]")
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, int(port)))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return Bound(listener.name, sock, f"{host}:{sock.getsockname()[1]}", listener.address)


def close(bound: Sequence[Bound], *, keep: Sequence[Bound] = ()) -> None:
    """Close sockets, but those of `keep`."""
    kept = {id(each.sock) for each in keep}
    for each in bound:
        if id(each.sock) not in kept:
            each.sock.close()
