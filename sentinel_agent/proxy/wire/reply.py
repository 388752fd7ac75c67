"""Answers that the proxy gives itself: short, plain, with the reason in words."""

from __future__ import annotations

from functools import lru_cache
from http import HTTPStatus


@lru_cache(maxsize=1024)
def phrase(status: int) -> bytes:
    """The reason phrase of a status; empty for one that is not registered."""
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""


def reply(
    status: int,
    body: bytes = b"",
    *,
    close: bool,
    head_only: bool = False,
    headers: bytes = b"",
    typed: bool = False,
) -> bytes:
    """A whole response, with `headers` as further lines; plain text unless it is `typed` by them.

    `head_only` answers a HEAD: the length, not the body.
    """
    lines = b"HTTP/1.1 %d %b\r\n" % (status, phrase(status))
    if status >= 200 and status not in (204, 304):
        if body and not typed:
            lines += b"Content-Type: text/plain; charset=utf-8\r\n"
        lines += b"Content-Length: %d\r\n" % len(body)
    else:
        body = b""
    end = b"Connection: close\r\n\r\n" if close else b"\r\n"
    return lines + headers + end + (b"" if head_only else body)


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
