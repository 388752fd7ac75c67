"""Keys of a terminal, one by one and unseen, while something else is drawn on it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import termios
import tty
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_ARROWS = {"A": "up", "B": "down", "Z": "back-tab"}
_SEQUENCE = re.compile(r"\x1b(?:\[[0-9;]*([A-Za-z~])|O([A-Za-z]))|(.)", re.DOTALL)
_MOST = 64


def keys_of(data: bytes) -> list[str]:
    """What was pressed: characters, `up`, `down`, `tab`, `back-tab`; other sequences of a terminal are left out (ECMA-48, 5.4)."""
    found = []
    for csi, single, char in _SEQUENCE.findall(data[:_MOST].decode("utf-8", "replace")):
        name = _ARROWS.get(csi or single) if csi or single else {"\t": "tab", "\x03": "q"}.get(char, char)
        if name and name != "\x1b":
            found.append(name)
    return found


@contextlib.contextmanager
def pressed(descriptor: int) -> Iterator[asyncio.Queue[str]]:
    """The keys as they come; the terminal is as it was afterwards. A descriptor that is no terminal never has one."""
    queue: asyncio.Queue[str] = asyncio.Queue(_MOST)
    if not os.isatty(descriptor):
        yield queue
        return
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            data = os.read(descriptor, _MOST)
        except OSError:
            data = b""
        if not data:  # the terminal has gone
            loop.remove_reader(descriptor)
            data = b"q"
        for key in keys_of(data):
            with contextlib.suppress(asyncio.QueueFull):
                queue.put_nowait(key)

    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, read)
    try:
        yield queue
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
