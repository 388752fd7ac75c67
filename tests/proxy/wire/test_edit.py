"""Heads as they go on: what is cut out, what is put in, and what stays byte for byte."""

from __future__ import annotations

import pytest

from sentinel_agent.proxy.wire.edit import lines_pattern, request_head, response_head
from sentinel_agent.proxy.wire.reply import reply
from tests.proxy.wire.messages import request, response

PLAIN = b"GET /a HTTP/1.1\r\nhOST:  h \r\nX: 1\r\nX: 2\r\n\r\n"


def test_a_request_that_needs_no_change_is_the_same_bytes() -> None:
    """The very same object, in fact: nothing is copied."""
    assert request_head(request(PLAIN)) is not None
    head = request(PLAIN)
    assert request_head(head) is head.raw
    answer = response(b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n")
    assert response_head(answer, close=False) is answer.raw


def test_lines_are_added_at_the_end_and_the_rest_stays() -> None:
    """Order, case and spacing of the client's lines are kept."""
    assert request_head(request(PLAIN), added=b"Via: me\r\n") == PLAIN[:-2] + b"Via: me\r\n\r\n"


def test_what_ends_here_does_not_go_on() -> None:
    """Hop-by-hop fields and those that Connection names, in any case; the chunked coding goes on with its chunks."""
    raw = (
        b"POST /a HTTP/1.1\r\nHost: h\r\nConnection: close, X-Secret\r\nx-secret: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\n"
        b"Proxy-Connection: close\r\nUpgrade: h2c\r\nX-Secret-Too: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    assert request_head(request(raw)) == (
        b"POST /a HTTP/1.1\r\nHost: h\r\nX-Secret-Too: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
    )


def test_only_an_upgrade_that_is_allowed_goes_on() -> None:
    """Upgrade to h2c would open a tunnel around the routes; it is passed on only where the caller says so."""
    raw = b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n\r\n"
    head = request(raw)
    assert head.upgrade == b"websocket"
    assert b"pgrade" not in request_head(head)
    assert request_head(head, upgrade=head.upgrade) == (
        b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )


def test_target_and_host_are_replaced() -> None:
    """A rewrite changes the request line and leaves one Host."""
    out = request_head(request(PLAIN), target=b"/b?c", host=b"other")
    assert out == b"GET /b?c HTTP/1.1\r\nHost: other\r\nX: 1\r\nX: 2\r\n\r\n"


def test_the_absolute_form_becomes_a_path_with_its_host() -> None:
    """An upstream is no proxy."""
    out = request_head(request(b"GET http://real/a HTTP/1.1\r\nHost: other\r\n\r\n"))
    assert out == b"GET /a HTTP/1.1\r\nHost: real\r\n\r\n"


def test_http_1_0_is_spoken_as_1_1_upstream() -> None:
    """The request line is ours; what HTTP/1.0 lacks is put in by the caller."""
    assert request_head(request(b"GET / HTTP/1.0\r\nX: 1\r\n\r\n"), host=b"up") == (
        b"GET / HTTP/1.1\r\nHost: up\r\nX: 1\r\n\r\n"
    )


def test_named_lines_are_cut_and_their_likes_stay() -> None:
    """Only whole names match."""
    raw = b"GET / HTTP/1.1\r\nHost: h\r\nB3: 1\r\nb3: 2\r\nB33: 3\r\nX-B3: 4\r\n\r\n"
    out = request_head(request(raw), removed=lines_pattern([b"b3"]))
    assert out == b"GET / HTTP/1.1\r\nHost: h\r\nB33: 3\r\nX-B3: 4\r\n\r\n"


@pytest.mark.parametrize(
    ("raw", "close", "minor", "expected"),
    [
        (
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nA: b\r\n\r\n",
            False,
            1,
            b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n",
        ),
        (
            b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nA: b\r\n\r\n",
            True,
            1,
            b"HTTP/1.1 200 OK\r\nA: b\r\nConnection: close\r\n\r\n",
        ),
        (b"HTTP/1.0 200 OK\r\nA: b\r\n\r\n", False, 1, b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nKeep-Alive: 3\r\n\r\n", False, 1, b"HTTP/1.1 200 OK\r\n\r\n"),
        (
            b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n",
            False,
            0,
            b"HTTP/1.1 200 OK\r\nA: b\r\nConnection: keep-alive\r\n\r\n",
        ),
    ],
)
def test_an_answer_says_what_becomes_of_the_clients_connection(
    raw: bytes, close: bool, minor: int, expected: bytes
) -> None:
    """What the upstream does with its connection is not the client's business."""
    assert response_head(response(raw), close=close, minor=minor) == expected


def test_our_own_answers() -> None:
    """A HEAD gets the length and not the body; 204 has neither."""
    assert reply(503, b"busy\n", close=True) == (
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 5\r\n"
        b"Connection: close\r\n\r\nbusy\n"
    )
    assert reply(503, b"busy\n", close=False, head_only=True).endswith(b"Content-Length: 5\r\n\r\n")
    assert reply(204, b"x", close=False) == b"HTTP/1.1 204 No Content\r\n\r\n"
