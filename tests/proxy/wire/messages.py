"""Reading whole streams of messages with the proxy's wire code, and the same with h11 and llhttp as judges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h11
import httptools

from sentinel_agent.proxy.wire.body import ChunkedBody
from sentinel_agent.proxy.wire.buffer import HeadBuffer
from sentinel_agent.proxy.wire.faults import Limits, WireError
from sentinel_agent.proxy.wire.head import RequestHead, ResponseHead, parse_request, parse_response

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass
class Message:
    """What matters of a message to whoever comes after the proxy."""

    method: bytes
    target: bytes
    body: bytes
    complete: bool


class Reader:
    """Requests, one after the other, from pieces."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._heads = HeadBuffer(self.limits.head, 431)
        self._chunks: ChunkedBody | None = None
        self._left = 0
        self.messages: list[Message] = []
        self.heads: list[RequestHead] = []

    def feed(self, data: bytes) -> None:
        while data:
            if self._chunks is not None:
                payload: list[bytes] = []
                at = self._chunks.feed(data, 0, payload)
                self.messages[-1].body += b"".join(payload)
                data = data[at:]
                if self._chunks.done:
                    self.messages[-1].complete = True
                    self._chunks = None
            elif self._left:
                self.messages[-1].body += data[: self._left]
                data, self._left = data[self._left :], max(0, self._left - len(data))
                self.messages[-1].complete = not self._left
            else:
                found = self._heads.take(data)
                if found is None:
                    return
                raw, data = found
                head = parse_request(raw, self.limits)
                self.heads.append(head)
                self._left = head.length or 0
                self._chunks = ChunkedBody(400) if head.chunked else None
                whole = not self._left and not head.chunked
                self.messages.append(Message(head.method, head.target, b"", whole))


def read(pieces: Iterable[bytes]) -> tuple[list[Message], int | None]:
    """The messages in a stream, and the status of the fault that ended it."""
    reader = Reader()
    try:
        for piece in pieces:
            reader.feed(piece)
    except WireError as error:
        return reader.messages, error.status
    return reader.messages, None


def bytewise(data: bytes) -> list[bytes]:
    """The same in pieces of one byte."""
    return [data[i : i + 1] for i in range(len(data))]


def h11_read(data: bytes) -> tuple[list[Message], bool]:
    """The messages that h11 sees, and whether it refused something."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    messages: list[Message] = []
    try:
        connection.receive_data(data)
        while True:
            event = connection.next_event()
            if event in (h11.NEED_DATA, h11.PAUSED) or isinstance(event, h11.ConnectionClosed):
                return messages, False
            if isinstance(event, h11.Request):
                messages.append(Message(event.method, event.target, b"", False))
            elif isinstance(event, h11.Data):
                messages[-1].body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                messages[-1].complete = True
                if connection.our_state is h11.SEND_RESPONSE:
                    connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                    connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE:
                    return messages, False
                connection.start_next_cycle()
    except h11.RemoteProtocolError:
        return messages, True


class _Judge:
    def __init__(self) -> None:
        self.messages: list[Message] = []

    def on_message_begin(self) -> None:
        self.messages.append(Message(b"", b"", b"", False))

    def on_url(self, url: bytes) -> None:
        self.messages[-1].target += url

    def on_body(self, body: bytes) -> None:
        self.messages[-1].body += body

    def on_message_complete(self) -> None:
        self.messages[-1].complete = True


def llhttp_read(data: bytes) -> tuple[list[Message], bool]:
    """The messages that llhttp sees (their methods left out), and whether it refused something."""
    judge = _Judge()
    parser = httptools.HttpRequestParser(judge)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        return judge.messages, False
    except httptools.HttpParserError:
        return judge.messages, True
    return judge.messages, False


def response(raw: bytes, method: bytes = b"GET") -> ResponseHead:
    """A response's head, read."""
    return parse_response(raw, method)


def request(raw: bytes, **limits: Any) -> RequestHead:
    """A request's head, read."""
    return parse_request(raw, Limits(**limits))
