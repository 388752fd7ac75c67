"""Warm upgrade: a new supervisor takes configuration and sockets over from a running one, and no request is lost.

    new                          old
     | -- Upgrade ---------------> |   checks who asks; from here on nothing else changes
     | <- Configure, descriptors - |
     | starts workers, which accept beside the old ones
     | -- Ready -----------------> |
     |                             |   ends its agent, lets its workers drain
     | <- Released --------------- |
     | starts its agent            |
     | -- Settled (a minute later) > | ends when its last worker has

Both accept from one queue in the kernel, so that no connection is ever refused or reset. Until `Settled` the old one keeps
the sockets: if the new one dies or gives up, the old one serves again. The order is MOSN's, without the transfer of
connections (`pkg/server/reconfigure.go`): HTTP/1.1 has a way to say that a connection ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sentinel_agent.errors import OperatorError, PeerError
from sentinel_agent.proxy import control
from sentinel_agent.proxy.children import Served, receive
from sentinel_agent.proxy.config import parse_proxy
from sentinel_agent.proxy.control import Configure, Ready, Refused, Released, Settled, Upgrade
from sentinel_agent.proxy.sockets import Bound, reachable

if TYPE_CHECKING:
    from collections.abc import Callable

    from sentinel_agent.proxy.supervisor import Supervisor

READY_SECONDS: Final = 30.0
"""How long the new one may take to serve."""
SETTLE_SECONDS: Final = 60.0
"""How long the old one could serve again."""
DRAIN_SECONDS: Final = 30.0
"""How long connections of the old one's workers may go on."""
ANSWER_SECONDS: Final = 10.0
_CREDENTIALS: Final = struct.Struct("iII")


def door_path(data_dir: Path, config_path: Path) -> Path:
    """Where the supervisor of this configuration file is asked to hand over."""
    name = hashlib.blake2b(os.fsencode(config_path.resolve()), digest_size=6).hexdigest()
    return data_dir / f"proxy-{name}.sock"


class Door:
    """The old one's side: a socket at `path` that a new supervisor comes to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sock: socket.socket | None = None
        self._file = 0
        self._opened = asyncio.Event()

    def open(self) -> None:
        """Be the one that is found under the path; only for our user.

        Raises:
            OperatorError: the folder cannot be written to.
        """
        self.close()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with reachable(self._path) as path:
                Path(path).unlink(missing_ok=True)
                sock.bind(path)
                Path(path).chmod(0o600)
                self._file = Path(path).stat().st_ino
            sock.listen(4)
        except OSError as error:
            sock.close()
            raise OperatorError(
                f"{self._path}: {error.strerror}", hint="--data-dir names another folder"
            ) from None
        sock.setblocking(False)
        self._sock = sock
        self._opened.set()

    def close(self) -> None:
        """Be found no more; the path stays where another has taken it."""
        if self._sock is None:
            return
        self._sock.close()
        self._sock = None
        self._opened.clear()
        with suppress(OSError):
            if self._path.stat().st_ino == self._file:
                self._path.unlink()

    async def run(self, supervisor: Supervisor) -> None:
        """Serve whoever comes, one after the other, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._opened.wait()
            assert self._sock is not None, "it is open"
            try:
                successor, _ = await loop.sock_accept(self._sock)
            except OSError:  # no descriptor left
                await asyncio.sleep(1)
                continue
            with successor:
                successor.setblocking(False)
                await self._hand_over(supervisor, successor)

    async def _hand_over(self, supervisor: Supervisor, successor: socket.socket) -> None:
        """Let another supervisor take over, or go on as before."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                letter = await receive(successor)
            letter.close()
            if (reason := _objection(successor, letter.message)) is not None:
                control.send(successor, Refused(reason))
                return
            async with supervisor.changing:
                if supervisor.state == "DRAINING":
                    control.send(successor, Refused("its listeners are drained"))
                    return
                supervisor.tell("another supervisor takes over")
                supervisor.served.send(successor)
                async with asyncio.timeout(READY_SECONDS):
                    letter = await receive(successor)
                letter.close()
                if letter.message != Ready():
                    raise ValueError("it is not ready")  # noqa: TRY301 - as if it had said nonsense
                self.close()
                await supervisor.leave(DRAIN_SECONDS)
                await self._wait_settled(supervisor, successor)
        except (EOFError, OSError, TimeoutError, ValueError) as error:
            supervisor.tell(f"the other supervisor did not take over: {str(error) or type(error).__name__}")

    async def _wait_settled(self, supervisor: Supervisor, successor: socket.socket) -> None:
        try:
            control.send(successor, Released())
            async with asyncio.timeout(SETTLE_SECONDS + READY_SECONDS):
                letter = await receive(successor)
            letter.close()
        except (EOFError, OSError, TimeoutError, ValueError):
            supervisor.tell("the other supervisor is gone: serving again")
            await supervisor.resume()
            return
        supervisor.tell("the other supervisor has settled: ending")
        await supervisor.gone()


def _objection(successor: socket.socket, message: control.Message) -> str | None:
    """Why a successor gets nothing; None if it does."""
    credentials = successor.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    user = _CREDENTIALS.unpack(credentials)[1]
    if user not in (0, os.geteuid()):
        return f"user {user} may not take over from user {os.geteuid()}"
    if not isinstance(message, Upgrade):
        return "that is no way to ask"
    if message.version != control.VERSION:
        return f"version {message.version} of the hand-over was asked for: this supervisor speaks {control.VERSION}"
    return None


class Successor:
    """The new one's side."""

    def __init__(self, sock: socket.socket, served: Served) -> None:
        self._sock = sock
        self.served = served

    async def ready(self, tell: Callable[[str], None]) -> None:
        """Our workers accept: the old supervisor's may leave. Returns when it has no agent any more, or is gone."""
        try:
            control.send(self._sock, Ready())
            async with asyncio.timeout(READY_SECONDS):
                (await receive(self._sock)).close()
        except (EOFError, OSError, TimeoutError, ValueError):
            tell("the old supervisor is gone before its time: this one serves on")

    async def settle(self) -> None:
        """After a minute of service the old supervisor is not needed any more."""
        with self._sock:
            await asyncio.sleep(SETTLE_SECONDS)
            with suppress(OSError):
                control.send(self._sock, Settled())


def take_over(path: Path) -> Successor:
    """Ask the supervisor at the door of `path` for what it serves.

    Raises:
        OperatorError: none runs, or what it serves is of no use to this version.
        PeerError: it does not hand over.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.settimeout(ANSWER_SECONDS)
        try:
            with reachable(path) as address:
                sock.connect(address)
        except OSError:
            raise OperatorError(
                f"no proxy of this configuration runs with this data directory: nobody listens on {path}",
                hint="start it without --upgrade, or name the --data-dir and the --config of the running one",
            ) from None
        try:
            control.send(sock, Upgrade(control.VERSION, os.getpid()))
            letter = control.receive(sock)
        except (EOFError, OSError, ValueError):
            raise PeerError(
                "the running proxy does not answer: it is busy with a change, or ending"
            ) from None
        served = _served(letter)
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)
    return Successor(sock, served)


def _served(letter: control.Letter) -> Served:
    message = letter.message
    if isinstance(message, Refused):
        letter.close()
        raise PeerError(f"the running proxy does not hand over: {message.reason}")
    if not isinstance(message, Configure) or len(letter.descriptors) != 1 + len(message.listeners):
        letter.close()
        raise PeerError("the running proxy answered nonsense")
    text, *descriptors = letter.descriptors
    try:
        content = control.text_of(text)
        config = parse_proxy(message.name, content, files=True)
        wanted = {each.name: each.address for each in config.listeners}
        bound = tuple(
            Bound(name, socket.socket(fileno=descriptor), address, wanted[name])
            for (name, address), descriptor in zip(message.listeners, descriptors, strict=True)
        )
    except BaseException:
        letter.close()
        raise
    letter.descriptors = [text]
    letter.close()
    return Served(message.name, content, config, bound)
