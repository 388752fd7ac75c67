"""What supervisor and worker, and an old and a new supervisor, tell each other: one message, and the descriptors with it.

Unix sockets that keep messages apart (unix(7), SOCK_SEQPACKET), JSON, descriptors by SCM_RIGHTS. A configuration is handed
over as the text that was checked, in a file without a name (memfd_create(2)), never as the path of a file that may have
changed since: a worker that is started again gets what the others have.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from sentinel_agent.config.files import MAX_FILE_BYTES

VERSION: Final = 1
_MAX_MESSAGE: Final = 64 * 1024
MAX_DESCRIPTORS: Final = 253
"""The kernel's bound for one message (SCM_MAX_FD)."""


class Configure(msgspec.Struct, frozen=True, tag=True):
    """Serve this. With it come the configuration's text, then the sockets of `listeners`, in order."""

    version: int
    number: int
    name: str
    listeners: tuple[tuple[str, str], ...]
    """Name and address (as bound) of each."""


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Accept no more; somebody else does. End when the last connection has, or after `seconds`."""

    seconds: float


class Ready(msgspec.Struct, frozen=True, tag=True):
    """It is being served. `number` is that of the `Configure` that is answered."""

    number: int = 0


class Refused(msgspec.Struct, frozen=True, tag=True):
    """It is not, and nothing has changed."""

    reason: str
    number: int = 0


class Upgrade(msgspec.Struct, frozen=True, tag=True):
    """A new supervisor asks an old one for everything."""

    version: int
    pid: int


class Released(msgspec.Struct, frozen=True, tag=True):
    """The old one accepts no more, and its agent has ended."""


class Settled(msgspec.Struct, frozen=True, tag=True):
    """The new one has served for a while: the old one is not needed any more."""


Message = Configure | Drain | Ready | Refused | Upgrade | Released | Settled
_DECODER: Final = msgspec.json.Decoder(Message)


@dataclass(slots=True)
class Letter:
    """A message and its descriptors, which belong to whoever holds it."""

    message: Message
    descriptors: list[int]

    def close(self) -> None:
        """Close what was not taken."""
        while self.descriptors:
            os.close(self.descriptors.pop())


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(sock: socket.socket, message: Message, descriptors: tuple[int, ...] = ()) -> None:
    """Send a message; the descriptors stay ours.

    Raises:
        OSError: the other side is gone, or does not read.
    """
    socket.send_fds(sock, [msgspec.json.encode(message)], descriptors)


def receive(sock: socket.socket) -> Letter:
    """The next message, which must be there if the socket does not block.

    Raises:
        EOFError: the other side is gone.
        OSError: nothing is there.
        ValueError: it is no message.
    """
    data, descriptors, flags, _ = socket.recv_fds(
        sock, _MAX_MESSAGE, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
    )
    letter = Letter(Ready(), list(descriptors))
    if data and not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        with suppress(ValueError):
            letter.message = _DECODER.decode(data)
            return letter
    letter.close()
    if not data:
        raise EOFError
    raise ValueError("no message, or one that is too long")


def text_file(content: bytes) -> int:
    """A descriptor of a file without a name that holds `content`."""
    descriptor = os.memfd_create("sentinel-config", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    return descriptor


def text_of(descriptor: int) -> bytes:
    """What such a file holds."""
    return os.pread(descriptor, MAX_FILE_BYTES + 1, 0)
