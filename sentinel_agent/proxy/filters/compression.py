"""gzip: responses are compressed on their way to clients that can take it.

The rules are those of RFC 9110: a client is given gzip only if its Accept-Encoding has it (section 12.5.3); a response
that may be compressed says `Vary: Accept-Encoding` whether it is or not (12.5.5); a strong ETag becomes a weak one, since
the bytes are not those it was made for (8.8.1); `no-transform`, a range and what is encoded already stay as they are.
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta

from sentinel_agent.core.units import ByteSize
from sentinel_agent.proxy.filters import Hooks

if TYPE_CHECKING:
    from sentinel_agent.proxy.filters import Request, Response

_GZIP: Final = 16 + zlib.MAX_WBITS
_PASSES: Final = frozenset((204, 206, 304))
_CODING: Final = re.compile(
    rb"[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*(?:;[ \t]*[qQ]=([01](?:\.[0-9]{0,3})?)[ \t]*)?"
)
_OF_OTHER_BYTES: Final = ("Accept-Ranges", "Content-MD5", "Digest", "Content-Digest")


class CompressionOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is compressed, how well, and how much at once."""

    level: Annotated[int, Meta(ge=1, le=9, description="1: fast, 9: small")] = 1
    min_length: Annotated[
        ByteSize, Meta(ge=0, le=1048576, description="a body that is known to be shorter is left")
    ] = 1024
    content_types: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[a-z0-9.+*-]+/[a-z0-9.+*-]+$")], ...], Meta(max_length=100)
    ] = (
        "text/html",
        "text/plain",
        "text/css",
        "text/csv",
        "text/javascript",
        "text/xml",
        "application/javascript",
        "application/json",
        "application/xml",
        "application/xhtml+xml",
        "image/svg+xml",
    )
    max_streams: Annotated[
        int,
        Meta(ge=1, le=100_000, description="bodies compressed at once, 256 KiB each; others go as they are"),
    ] = 256


class Compression:
    """The filter `gzip`."""

    Options = CompressionOptions

    def __init__(self, options: CompressionOptions) -> None:
        self.hooks = Hooks(response=self._response)
        self._options = options
        self._types = frozenset(each.encode() for each in options.content_types)
        self._streams = 0

    def _response(self, request: Request, response: Response) -> None:
        if not self._may(response):
            return
        _vary(response)
        if not accepts_gzip(request.header("accept-encoding")):
            return
        if self._streams >= self._options.max_streams:
            request.count("gzip.skipped")
            return
        response.set_header("Content-Encoding", "gzip")
        etag = response.header("etag")
        if etag is not None and etag.startswith(b'"'):
            response.set_header("ETag", "W/" + etag.decode("latin-1"))
        for name in _OF_OTHER_BYTES:
            if response.header(name) is not None:
                response.remove_header(name)
        request.count("gzip.compressed")
        self._streams += 1
        response.encode(_Gzip(self, self._options.level, flush=response.length is None))

    def _may(self, response: Response) -> bool:
        """Whether the response is of a kind that is compressed."""
        length = response.length
        if response.status in _PASSES or (length is not None and length < self._options.min_length):
            return False
        kind = (response.header("content-type") or b"").partition(b";")[0].strip().lower()
        if kind not in self._types or response.header("content-range") is not None:
            return False
        coding = response.header("content-encoding")
        if coding is not None and coding.lower() != b"identity":
            return False
        return b"no-transform" not in (response.header("cache-control") or b"").lower()

    def gone(self) -> None:
        """A body is over."""
        self._streams -= 1


def accepts_gzip(value: bytes | None) -> bool:
    """Whether an Accept-Encoding takes gzip: by name or by `*`, with a weight over 0; a malformed part counts as absent."""
    found: dict[bytes, bool] = {}
    for part in (value or b"").split(b",")[:50]:
        coding = _CODING.fullmatch(part)
        if coding is not None:
            found[coding[1].lower()] = coding[2] is None or float(coding[2]) > 0
    return found.get(b"gzip", found.get(b"x-gzip", found.get(b"*", False)))


def _vary(response: Response) -> None:
    vary = response.header("vary")
    names = [] if vary is None else [name.strip().lower() for name in vary.split(b",")]
    if b"*" not in names and b"accept-encoding" not in names:
        before = "" if vary is None else vary.decode("latin-1") + ", "
        response.set_header("Vary", f"{before}Accept-Encoding")


class _Gzip:
    """One body. Where its length is not known it may be a stream, so that every piece goes on at once."""

    def __init__(self, owner: Compression, level: int, *, flush: bool) -> None:
        self._owner: Compression | None = owner
        self._stream = zlib.compressobj(level, zlib.DEFLATED, _GZIP)
        self._flush = flush

    def feed(self, data: bytes) -> bytes:
        out = self._stream.compress(data)
        return out + self._stream.flush(zlib.Z_SYNC_FLUSH) if self._flush else out

    def end(self) -> bytes:
        return self._stream.flush()

    def drop(self) -> None:
        if self._owner is not None:
            self._owner.gone()
            self._owner = None
