"""POST over HTTP with aiohttp, and what an answer means for the batch that was sent.

RFC 9110 says what a status is; whose fault it is for us is `blame`. An answer is read to `MAX_ANSWER` bytes and its
connection then closed, so a server that answers with a gigabyte costs a kilobyte. Redirects are not followed: a body
with a token must not go where a server sends it.
"""

from __future__ import annotations

import asyncio
import gzip
import os
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from sentinel_agent.export.base import Blame, ExporterContext, ExporterOptions, Secret, SendError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    import aiohttp

MAX_ANSWER = 2048

Url = Annotated[str, Meta(pattern=r"^https?://[^\s/?#]+", max_length=2000)]

_REFUSED = frozenset({401, 402, 403, 404, 405, 406, 407, 410, 421, 426, 431, 451, 501, 505})
_PASSING = frozenset({408, 409, 423, 425, 429})
_REMEDIES = {
    401: "see the exporter's `token` and `headers`",
    403: "see the exporter's `token` and `headers`",
    404: "is its `url` right, and does that server take this signal?",
    405: "is its `url` right, and does that server take this signal?",
}


class HttpOptions(ExporterOptions, frozen=True, kw_only=True):
    """What exporters over HTTP have in common."""

    url: Annotated[Url, Meta(description="where to; the path of the protocol is added unless it has one")]
    headers: Annotated[dict[str, Secret], Meta(description="header fields that are sent along")] = {}  # noqa: RUF012 - msgspec copies it
    token: Annotated[Secret | None, Meta(description="sent as `Authorization: Bearer`")] = None
    ca_file: Annotated[
        str | None, Meta(description="certificates to trust, PEM; unset: those of the system")
    ] = None
    compression: Annotated[Literal["none", "gzip"], Meta(description="how bodies are packed")] = "none"


def blame(status: int) -> Blame:
    """Whose fault a status is: nothing passes (`refused`), this batch never will (`rejected`), or it may later."""
    if 300 <= status < 400 or status in _REFUSED:
        return "refused"
    return "passing" if status >= 500 or status in _PASSING or status < 200 else "rejected"


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds of a Retry-After field (RFC 9110, section 10.2.3): a number or a date. None if it is neither."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, OverflowError, TypeError):
        return None


def with_path(url: str, path: str) -> str:
    """The URL as it is if it has a path, else with the protocol's."""
    scheme, _, rest = url.partition("://")
    host, slash, own = rest.partition("/")
    return url if slash and own else f"{scheme}://{host}{path}"


def printable(text: str, limit: int = 200) -> str:
    """What a server says, on one line and without characters that a terminal might obey."""
    kept = "".join(char if char.isprintable() else " " for char in text[:limit])
    return " ".join(kept.split())


def unreachable(address: str, error: OSError) -> str:
    """Why there is no connection, in words."""
    return printable(f"cannot connect to {address}: {os.strerror(error.errno) if error.errno else error}")


class HttpSender:
    """One session, made when it is first used, on the loop that uses it."""

    def __init__(self, options: HttpOptions, context: ExporterContext) -> None:
        self._options = options
        self._clock = context.clock
        self._headers = {"User-Agent": f"sentinel-agent/{context.version}", **options.headers}
        if options.token is not None:
            self._headers["Authorization"] = f"Bearer {options.token}"
        self._session: aiohttp.ClientSession | None = None

    async def post(
        self, url: str, body: bytes, content_type: str, headers: Mapping[str, str] | None = None
    ) -> tuple[str, bytes]:
        """Send; the status in words and the begin of the answer's body.

        Raises:
            SendError: there is no answer, or it is not a success.
        """
        import aiohttp  # noqa: PLC0415 - heavy: only agents that send over HTTP have it in memory

        sent = {"Content-Type": content_type, **(headers or {})}
        if self._options.compression == "gzip":
            sent["Content-Encoding"] = "gzip"
            body = gzip.compress(body, 1, mtime=0)
        try:
            async with self._made().post(url, data=body, headers=sent, allow_redirects=False) as response:
                answer = await _begin_of(response)
                if not response.content.at_eof():
                    response.close()
        except aiohttp.ClientConnectorError as error:
            raise SendError(unreachable(f"{error.host}:{error.port}", error.os_error)) from error
        except aiohttp.ClientError as error:
            raise SendError(printable(f"{type(error).__name__}: {error}")) from error
        except (OSError, ValueError, UnicodeError) as error:  # a name that is no host, a header that is none
            raise SendError(printable(f"{type(error).__name__}: {error}")) from error
        words = f"{response.status} {_phrase(response.status)}"
        if 200 <= response.status < 300:
            return words, answer
        told = printable(answer.decode("utf-8", "replace")).removeprefix(words)
        remedy = _REMEDIES.get(response.status)
        wait = retry_after(response.headers.get("Retry-After"), self._clock.wall())
        found = words + (f": {told}" if told else "") + (f"; {remedy}" if remedy else "")
        raise SendError(found, blame(response.status), retry_after=wait)

    def _made(self) -> aiohttp.ClientSession:
        import aiohttp  # noqa: PLC0415 - as above

        if self._session is None:
            trust: ssl.SSLContext | bool = True
            if self._options.ca_file is not None:
                import ssl  # noqa: PLC0415 - only where it is wanted

                trust = ssl.create_default_context(cafile=self._options.ca_file)
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                connector=aiohttp.TCPConnector(limit=4, keepalive_timeout=30, ssl=trust),
                timeout=aiohttp.ClientTimeout(total=None, connect=self._options.timeout),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,  # an answer that unpacks to a gigabyte stays packed
                trust_env=False,
            )
        return self._session

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            await asyncio.sleep(0)


async def _begin_of(response: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    while size < MAX_ANSWER:
        part = await response.content.read(MAX_ANSWER - size)
        if not part:
            break
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
