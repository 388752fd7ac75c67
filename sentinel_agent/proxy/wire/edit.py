"""Editing a head without rebuilding it: lines are cut out of the bytes and others put at the end.

What goes on is as close to what came as the standard allows: order, case and spacing of every other line stay.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sentinel_agent.proxy.wire.head import HOP_BY_HOP

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sentinel_agent.proxy.wire.head import RequestHead, ResponseHead


def lines_pattern(names: Iterable[bytes]) -> re.Pattern[bytes]:
    """An expression that matches the whole line of any of these fields, with the line break before it."""
    words = b"|".join(re.escape(name) for name in sorted(names))
    return re.compile(rb"\r\n(?i:" + words + rb"):[^\r]*+")


_HOP_BY_HOP = lines_pattern(HOP_BY_HOP)
_HOST_LINE = lines_pattern((b"host",))


def cut(block: bytes, pattern: re.Pattern[bytes]) -> bytes:
    """A block of header lines, which begins with the CRLF before its first line, without the lines that match."""
    return pattern.sub(b"", block)


def request_head(
    head: RequestHead,
    *,
    target: bytes | None = None,
    host: bytes | None = None,
    removed: re.Pattern[bytes] | None = None,
    added: bytes = b"",
    upgrade: bytes | None = None,
) -> bytes:
    """The head as it goes to an upstream, as HTTP/1.1: without what ends here, with `added` lines at the end.

    `target` and `host` replace those of the request; `upgrade` is the protocol for which the client's wish to change
    is passed on.
    """
    raw = head.raw
    if head.as_it_is and target is None and host is None:
        if removed is None:
            return b"%b%b\r\n" % (raw[:-2], added) if added else raw
        start = raw[: head.line_end - 2]
    else:
        start = b"%b %b HTTP/1.1" % (head.method, target or head.target)
    block = raw[head.line_end - 2 : -4]
    if not head.as_it_is:
        block = _without_hop_by_hop(block, head.nominated)
        if upgrade is not None:
            added += b"Connection: Upgrade\r\nUpgrade: %b\r\n" % upgrade
    if host is None and not head.target_is_path:
        host = head.fields.get(b"host")
    if removed is not None:
        block = cut(block, removed)
    if host is not None:
        block = b"\r\nHost: %b%b" % (host, cut(block, _HOST_LINE))
    return b"%b%b\r\n%b\r\n" % (start, block, added)


def response_head(
    head: ResponseHead,
    *,
    close: bool,
    minor: int = 1,
    removed: re.Pattern[bytes] | None = None,
    added: bytes = b"",
) -> bytes:
    """The head as it goes to the client. `close`: nothing follows on this connection; `minor`: the client's HTTP/1.x."""
    raw = head.raw
    if head.as_it_is and not close and minor and removed is None:
        return b"%b%b\r\n" % (raw[:-2], added) if added else raw
    block = raw[head.line_end - 2 : -4]
    if not head.as_it_is or close or not minor:
        block = _without_hop_by_hop(block, head.nominated)
    if removed is not None:
        block = cut(block, removed)
    if close:
        added += b"Connection: close\r\n"
    elif not minor:
        added += b"Connection: keep-alive\r\n"
    start = raw[: head.line_end - 2]
    if not head.minor:
        start = b"HTTP/1.1" + start[8:]
    return b"%b%b\r\n%b\r\n" % (start, block, added)


def _without_hop_by_hop(block: bytes, nominated: tuple[bytes, ...]) -> bytes:
    block = cut(block, _HOP_BY_HOP)
    others = frozenset(nominated) - HOP_BY_HOP
    if not others or nominated == (b"close",):
        return block
    # Line by line: an expression per set of names would let a client make us compile one with every request.
    lines = block.split(b"\r\n")
    return b"\r\n".join(line for line in lines if line.partition(b":")[0].lower() not in others)
