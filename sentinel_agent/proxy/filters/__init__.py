"""What a filter is: hooks that see a request before it goes on and a response before it goes back.

A filter is a class that an entry point of the group `sentinel_agent.proxy_filters` names; strangers' and ours come in
by this one door. Its `Options` are what its `config` may hold; made with them, it has `hooks`. It is made once to check a
configuration and once for each route that uses it, and must do nothing else then.

Hooks run on the event loop: they must not wait. A `request` hook that has to returns an awaitable (so `async def` will
do), which costs this request a task.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    import msgspec

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_VALUE = re.compile(r"[\t\x20-\x7e]{0,4000}")
_FRAMING = frozenset(
    ("content-length", "transfer-encoding", "connection", "upgrade", "host", "te", "trailer")
)


def check_field(name: str, value: str) -> None:
    """Whether this may be a header line of a filter's.

    Raises:
        ValueError: no name or no value of a header, or one that frames the message.
    """
    if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
        raise ValueError(f"{name!r:.100}: no header name, or its value is not printable ASCII")
    if name.lower() in _FRAMING:
        raise ValueError(f"{name} frames the message and cannot be set")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer given in place of the upstream's; a text without a `Content-Type` is plain.

    Raises:
        ValueError: no status of an answer, or a header that cannot be.
    """

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not 200 <= self.status <= 599:
            raise ValueError(f"{self.status} is no status of an answer: expected 200 to 599")
        for name, value in self.headers:
            check_field(name, value)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a cluster answered to a request of the proxy's own; names of headers in lower case, no more of the body than was asked for."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


Verdict = Reply | None


class Request(Protocol):
    """What a filter sees of a request, may change of it, and may do beside it."""

    @property
    def method(self) -> bytes: ...
    @property
    def target(self) -> bytes:
        """Path and query, dot segments resolved."""
        ...

    @property
    def client(self) -> str:
        """The address of the client."""
        ...

    @property
    def route(self) -> str:
        """The name of the route."""
        ...

    def header(self, name: str) -> bytes | None:
        """The value of a header; one given more than once is joined with commas."""
        ...

    def set_header(self, name: str, value: str) -> None:
        """Replace a header or add it.

        Raises:
            ValueError: no name or no value of a header, or one that frames the message.
        """
        ...

    def remove_header(self, name: str) -> None:
        """Take a header out; raises like `set_header`."""
        ...

    def count(self, what: str) -> None:
        """Count something under the route; names are few, `filter.event`."""
        ...

    def head(self, cluster: str) -> bytes:
        """The head as a server of `cluster` would get it now: hop-by-hop headers gone, ours added, its empty line at the end.

        Nothing, where the route's rewrite makes no path.
        """
        ...

    def watch_body(self, sink: Callable[[bytes, bool], None]) -> None:
        """Call `sink` with each piece of the body as it came on the wire, and True with the last one."""
        ...

    async def call(
        self,
        cluster: str,
        message: bytes,
        *,
        timeout: float,  # noqa: ASYNC109 - part of what is asked
        keep: int = 0,
        again: bool = False,
    ) -> Answer:
        """Send a whole request to one of the `clusters` of the filter's hooks, and return what is answered.

        `keep` bytes of the body are kept. `again`: it does no harm if it comes twice, whatever its method.

        Raises:
            OSError, TimeoutError: there was no answer.
        """
        ...

    def beside(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Do something that the request does not wait for; it ends with the worker at the latest."""
        ...


class Encoder(Protocol):
    """Changes a body on its way."""

    def feed(self, data: bytes) -> bytes:
        """What becomes of the next piece; may be nothing yet."""
        ...

    def end(self) -> bytes:
        """What is left at the end."""
        ...

    def drop(self) -> None:
        """The body is over, or broke off."""
        ...


class Response(Protocol):
    """What a filter sees of a response and may change of it."""

    @property
    def status(self) -> int: ...
    @property
    def length(self) -> int | None:
        """Bytes of its body, None if they are not known beforehand."""
        ...

    def header(self, name: str) -> bytes | None:
        """The value of a header; one given more than once is joined with commas."""
        ...

    def set_header(self, name: str, value: str) -> None:
        """Replace a header or add it; raises like `Request.set_header`."""
        ...

    def remove_header(self, name: str) -> None:
        """Take a header out; raises like `Request.set_header`."""
        ...

    def encode(self, encoder: Encoder) -> None:
        """Send the body through `encoder`; the message is framed anew."""
        ...


@dataclass(frozen=True, slots=True)
class Hooks:
    """The hooks of one filter; those that are None cost nothing. An exception of one is a 500 of that request only.

    `clusters` are those that `Request.call` may be asked for.
    """

    request: Callable[[Request], Verdict | Awaitable[Verdict]] | None = None
    response: Callable[[Request, Response], None] | None = None
    clusters: tuple[str, ...] = ()


class Filter(Protocol):
    """A filter, made with its options."""

    @property
    def hooks(self) -> Hooks: ...


class FilterFactory(Protocol):
    """What an entry point names: usually the class of the filter."""

    Options: ClassVar[type[msgspec.Struct]]

    def __call__(self, options: Any) -> Filter:
        """Make the filter.

        Raises:
            OperatorError, ValueError: the options do not go together.
        """
        ...
