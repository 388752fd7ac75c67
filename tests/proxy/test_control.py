"""What supervisors and workers tell each other, the sockets that they share, and certificates that run out."""

from __future__ import annotations

import datetime
import os
import socket
from typing import TYPE_CHECKING

import pytest

from sentinel_agent.errors import OperatorError, PeerError
from sentinel_agent.proxy import control
from sentinel_agent.proxy.children import Served
from sentinel_agent.proxy.control import Configure, Ready, Refused, Upgrade
from sentinel_agent.proxy.expiry import warnings_of
from sentinel_agent.proxy.process import opened
from sentinel_agent.proxy.sockets import bind, close
from sentinel_agent.proxy.upgrade import Door, door_path, take_over
from tests.proxy.support import bound, parse_text
from tests.proxy.test_tls import LONG_AGO, Authority, authority, configuration, root

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["authority", "root"]


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends that do not block."""
    one, two = control.pair()
    one.setblocking(False)
    two.setblocking(False)
    with one, two:
        yield one, two


def config(*addresses: str) -> str:
    """A configuration with a listener for each address."""
    listeners = "\n".join(
        f"  - {{name: l{number}, address: '{address}', routes: [{{name: r, response: {{status: 200}}}}]}}"
        for number, address in enumerate(addresses)
    )
    return f"listeners:\n{listeners}\n"


def test_a_configuration_comes_over_with_its_sockets(ends: tuple[socket.socket, socket.socket]) -> None:
    """The text that was checked, and descriptors of the very sockets; they are the receiver's to close."""
    text = config("127.0.0.1:0", "127.0.0.1:0")
    sockets = tuple(bind(parse_text(text)))
    Served("p.yaml", text.encode(), parse_text(text), sockets).send(ends[0])
    found, taken = opened(control.receive(ends[1]))
    assert found == parse_text(text)
    assert [sock.getsockname() for sock in taken.values()] == [each.sock.getsockname() for each in sockets]
    for sock in taken.values():
        sock.close()
    close(sockets)


def test_what_is_no_message(ends: tuple[socket.socket, socket.socket]) -> None:
    """Nonsense, too much, an end: an error, and no descriptor stays open."""
    before = os.listdir("/proc/self/fd")  # noqa: PTH208 - their number counts
    socket.send_fds(ends[0], [b'{"type":"Launch"}'], [0, 1])
    with pytest.raises(ValueError, match="no message"):
        control.receive(ends[1])
    ends[0].send(b'{"type":"Refused","reason":"' + b"x" * 70_000 + b'"}')
    with pytest.raises(ValueError, match="too long"):
        control.receive(ends[1])
    with pytest.raises(BlockingIOError):
        control.receive(ends[1])
    assert len(os.listdir("/proc/self/fd")) == len(before)  # noqa: PTH208
    ends[0].close()
    with pytest.raises(EOFError):
        control.receive(ends[1])


@pytest.mark.parametrize(
    "message", [Configure(99, 1, "p", ()), Configure(1, 1, "p", (("web", "x"),)), Ready(), Refused("no")]
)
def test_a_worker_takes_nothing_else(
    ends: tuple[socket.socket, socket.socket], message: control.Message
) -> None:
    """Another version, too few sockets, another message."""
    control.send(ends[0], message)
    with pytest.raises(OperatorError):
        opened(control.receive(ends[1]))


def test_addresses_that_stay_keep_their_sockets() -> None:
    """By address, whatever the listener is called now; the others are bound anew."""
    first = bind(parse_text(config("127.0.0.1:0", "127.0.0.1:0")))
    again = bind(parse_text(config("127.0.0.1:0", "127.0.0.2:0")), first)
    assert again[0].sock is first[0].sock
    assert again[1].address.startswith("127.0.0.2:")
    close(first, keep=again)
    assert first[1].sock.fileno() == -1
    assert again[0].sock.fileno() >= 0
    close(again)


def test_a_port_in_use_is_named() -> None:
    """With every other fault of its kind; what could be had is given back, what was there before stays."""
    taken = bound()
    port = taken.getsockname()[1]
    before = bind(parse_text(config("127.0.0.1:0")))
    with pytest.raises(OperatorError) as caught:
        bind(parse_text(config("127.0.0.1:0", f"127.0.0.1:{port}", "192.0.2.1:80")), before)
    assert f"l1: 127.0.0.1:{port}: Address already in use" in caught.value.message
    assert "l2: 192.0.2.1:80: " in caught.value.message
    assert caught.value.hint is not None
    assert before[0].sock.fileno() >= 0
    close(before)
    taken.close()


def test_nobody_to_take_over_from(tmp_path: Path) -> None:
    """No socket, a socket without anybody behind it, no folder: said in words, with the path."""
    path = door_path(tmp_path, tmp_path / "p.yaml")
    with pytest.raises(OperatorError, match="no proxy of this configuration runs"):
        take_over(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(path))
    with pytest.raises(OperatorError, match=path.name):
        take_over(path)
    with pytest.raises(OperatorError):
        take_over(tmp_path / "no" / "folder.sock")


async def test_a_door_is_found_under_its_path(tmp_path: Path) -> None:
    """However long that is; the path of a dead one is taken over, that of a successor is left alone."""
    folder = tmp_path / ("x" * 120)
    path = door_path(folder, tmp_path / "p.yaml")
    old, new = Door(path), Door(path)
    old.open()
    assert path.stat().st_mode & 0o777 == 0o600
    new.open()
    old.close()
    assert path.is_socket()
    new.close()
    assert not path.exists()


async def test_whoever_asks_in_another_version_gets_nothing(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    """And is told why."""
    from sentinel_agent.proxy.upgrade import _objection, _served  # noqa: PLC0415

    assert "version 99" in str(_objection(ends[0], Upgrade(99, 1)))
    assert _objection(ends[0], Ready()) is not None
    assert _objection(ends[0], Upgrade(control.VERSION, 1)) is None
    control.send(ends[0], Refused("because"))
    with pytest.raises(PeerError, match="because"):
        _served(control.receive(ends[1]))


def test_certificates_that_run_out(authority: Authority) -> None:
    """Are named when they have, and two weeks before; others are not."""
    day = datetime.timedelta(days=1)
    now = datetime.datetime.now(datetime.UTC)
    pairs = [
        authority.issue("old", "a.example", **LONG_AGO),
        authority.issue("soon", "b.example", not_before=now - day, not_after=now + 10 * day),
        authority.issue("fine", "c.example", not_before=now - day, not_after=now + 20 * day),
    ]
    lines = warnings_of(parse_text(configuration(f"certificates: [{', '.join(pairs)}]")), now.timestamp())
    assert len(lines) == 2
    assert "old.pem has expired" in lines[0]
    assert "soon.pem expires in 10 days" in lines[1]
    (authority.folder / "old.pem").unlink()
    (line,) = warnings_of(parse_text(configuration(f"certificates: [{pairs[0]}]")), now.timestamp())
    assert "No such file" in line
