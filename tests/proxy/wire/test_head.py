"""Request and response heads: what is taken, what is refused, and with which status."""

from __future__ import annotations

import pytest

from sentinel_agent.proxy.wire.faults import Limits, WireError
from sentinel_agent.proxy.wire.head import REQUEST_PATTERN, parse_request, remove_dot_segments
from tests.proxy.wire.messages import Reader, bytewise, read, request, response

GET = b"GET / HTTP/1.1\r\nHost: a\r\n"

# Everything by which two parsers on one way were ever made to see different messages, and what it is answered.
REFUSED: list[tuple[bytes, int]] = [
    (GET + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400),
    (GET + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 400),
    (GET + b"Content-Length: 1, 1\r\n\r\nx", 400),
    (GET + b"Content-Length: +1\r\n\r\nx", 400),
    (GET + b"Content-Length: -1\r\n\r\nx", 400),
    (GET + b"Content-Length: 0x1\r\n\r\nx", 400),
    (GET + b"Content-Length: 1 1\r\n\r\nx", 400),
    (GET + b"Content-Length: 1_0\r\n\r\nx", 400),
    (GET + b"Content-Length:\r\n\r\n", 400),
    (GET + b"Content-Length: 99999999999999999999\r\n\r\n", 400),
    (GET + "Content-Length: \u0661\r\n\r\n".encode(), 400),
    (GET + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (GET + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", 400),
    (GET + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (GET + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", 400),
    (GET + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
    (GET + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    (GET + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    (GET + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
    (GET + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
    (GET + b"Transfer-Encoding\r\n : chunked\r\n\r\n0\r\n\r\n", 400),
    (GET + b"X: a\r\nTransfer-Encoding\x00: chunked\r\n\r\n0\r\n\r\n", 400),
    (GET + b"X: a\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (GET + b"X: a\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (GET + b"X: a\r\n b\r\n\r\n", 400),
    (GET + b"X: a\r\n\tb\r\n\r\n", 400),
    (GET + b"X : a\r\n\r\n", 400),
    (GET + b" X: a\r\n\r\n", 400),
    (GET + b"X\r\n\r\n", 400),
    (GET + b": a\r\n\r\n", 400),
    (GET + b"X: a\x00b\r\n\r\n", 400),
    (GET + b"X: a\x01b\r\n\r\n", 400),
    (GET + b"X\xff: a\r\n\r\n", 400),
    (GET + b"(X): a\r\n\r\n", 400),
    (GET + b"Host: b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
    (GET + b"Connection: close, Content-Length\r\nContent-Length: 1\r\n\r\nx", 400),
    (GET + b"Connection: transfer-encoding\r\n\r\n", 400),
    (GET + b"Connection: host\r\n\r\n", 400),
    (GET + b"Connection: upgrade\r\n\r\n", 400),
    (GET + b"Expect: something\r\n\r\n", 417),
    (b"GET / HTTP/1.1\n\n", 400),
    (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
    (b"GET / http/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET /\r\n\r\n", 400),
    (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505),
    (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
    (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    (b"GET / RTSP/1.0\r\nHost: a\r\n\r\n", 400),
    (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"G?T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET /#a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET http://u@h/x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    (GET + b"Transfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n", 400),
    (GET + b"Transfer-Encoding: chunked\r\n\r\n 5\r\nhello\r\n0\r\n\r\n", 400),
    (GET + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", 400),
    (GET + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n", 400),
    (GET + b"Transfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n", 400),
    (GET + b"Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n", 400),
    (GET + b"Transfer-Encoding: chunked\r\n\r\n5;a\nhello\r\n0\r\n\r\n", 400),
    (GET + b"Transfer-Encoding: chunked\r\n\r\n5;a\rb\r\nhello\r\n0\r\n\r\n", 400),
    (GET + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n", 400),
    (GET + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n", 400),
    (GET + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n", 400),
    (GET + b"Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n", 400),
    (GET + b"Transfer-Encoding: chunked\r\n\r\n5;" + b"a" * 2000 + b"\r\n", 400),
    (GET + b"Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 3\r\n\r\n", 400),
    (GET + b"Transfer-Encoding: chunked\r\n\r\n0\r\nHost: b\r\n\r\n", 400),
    (GET + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: a\n\r\n", 400),
    (GET + b"Transfer-Encoding: chunked\r\n\r\n0\r\n X: a\r\n\r\n", 400),
    (GET + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 2000 + b"\r\n", 400),
    (GET + b"X: " + b"a" * 70_000 + b"\r\n\r\n", 431),
    (GET + b"X: a\r\n" * 150 + b"\r\n", 431),
    (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
]


@pytest.mark.parametrize(("data", "status"), REFUSED)
def test_what_could_be_read_in_two_ways_is_refused(data: bytes, status: int) -> None:
    """Each form of request smuggling and damage has its answer, and nothing after it is read."""
    follow_up = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
    messages, found = read([data, follow_up])
    assert found == status
    assert b"/smuggled" not in [message.target for message in messages]


@pytest.mark.parametrize(("data", "status"), [row for row in REFUSED if len(row[0]) < 5000])
def test_the_answer_is_the_same_byte_by_byte(data: bytes, status: int) -> None:
    """Where a network cuts a message changes nothing."""
    assert read(bytewise(data))[1] == status


def test_a_long_head_is_refused_before_it_ends() -> None:
    """No more than the limit is ever held."""
    reader = Reader()
    reader.feed(GET + b"X: " + b"a" * 65_000)
    with pytest.raises(WireError, match="longer than 65536") as caught:
        reader.feed(b"a" * 997)
    assert caught.value.status == 431


def test_two_requests_in_one_piece_are_two() -> None:
    """Pipelined requests come in order, with their bodies."""
    data = (
        b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"
        b"\r\nPOST /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n2;x=y\r\nde\r\n1\r\nf\r\n0\r\nT: v\r\n\r\n"
        b"GET /c HTTP/1.1\r\nHost: h\r\n\r\n"
    )
    for pieces in ([data], bytewise(data)):
        messages, status = read(pieces)
        assert status is None
        assert [(m.target, m.body, m.complete) for m in messages] == [
            (b"/a", b"abc", True),
            (b"/b", b"def", True),
            (b"/c", b"", True),
        ]


@pytest.mark.parametrize(
    ("lines", "minor", "keep"),
    [
        (b"", b"1", True),
        (b"Connection: close\r\n", b"1", False),
        (b"Connection: Keep-Alive\r\n", b"1", True),
        (b"Connection: foo, Close\r\n", b"1", False),
        (b"", b"0", False),
        (b"Connection: keep-alive\r\n", b"0", True),
    ],
)
def test_keep_alive(lines: bytes, minor: bytes, keep: bool) -> None:
    """RFC 9112 section 9.3."""
    assert request(b"GET / HTTP/1.%b\r\nHost: a\r\n%b\r\n" % (minor, lines)).keep_alive is keep


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/a/../b", b"/b"),
        (b"/a/./b", b"/a/b"),
        (b"/../../etc", b"/etc"),
        (b"/a/%2e%2E/b?x=/../y", b"/b?x=/../y"),
        (b"/a/..;p/b", b"/b"),
        (b"/a/..", b"/"),
        (b"/a//b", b"/a//b"),
        (b"/a/..b", b"/a/..b"),
        (b"/.well-known/x", b"/.well-known/x"),
        (b"http://h/a/../b", b"/b"),
        (b"http://h", b"/"),
    ],
)
def test_a_path_cannot_walk_around_a_route(target: bytes, path: bytes) -> None:
    """Dot segments, escaped ones too, are resolved before anything is matched."""
    assert request(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target).target == path


def test_dot_segments_of_rfc_3986() -> None:
    """The example of section 5.2.4."""
    assert remove_dot_segments(b"/a/b/c/./../../g") == b"/a/g"


def test_the_host_of_the_target_counts() -> None:
    """RFC 9112 section 3.2.2."""
    head = request(b"GET http://real:80/ HTTP/1.1\r\nHost: other\r\n\r\n")
    assert head.fields[b"host"] == b"real:80"
    assert not head.as_it_is


def test_fields_are_taken_in_any_case_and_lists_joined() -> None:
    """Only the fields that were asked for; two parents of a trace are none."""
    raw = (
        GET
        + b"X-FORWARDED-for: 1\r\nx-forwarded-For:2 \r\nX-Else: 3\r\ntraceparent: a\r\nTraceparent: b\r\n\r\n"
    )
    fields = parse_request(raw, Limits(), REQUEST_PATTERN).fields
    assert fields == {b"host": b"a", b"x-forwarded-for": b"1, 2", b"traceparent": b""}


@pytest.mark.parametrize(
    ("lines", "as_it_is"),
    [
        (b"", True),
        (b"Connection: keep-alive\r\n", True),
        (b"Connection: close\r\n", False),
        (b"Keep-Alive: timeout=5\r\n", False),
        (b"TE: trailers\r\n", False),
        (b"Upgrade: websocket\r\nConnection: Upgrade\r\n", False),
        (b"Connection: keep-alive\r\nConnection: x-secret\r\n", False),
        (b"Content-Length: 5\r\n", True),
        (b"Expect: 100-continue\r\nContent-Length: 5\r\n", True),
        (b"Proxy-Connection: keep-alive\r\n", False),
    ],
)
def test_what_ends_here_keeps_a_head_from_passing_unchanged(lines: bytes, as_it_is: bool) -> None:
    """The pass-through path never forwards a hop-by-hop field."""
    assert request(GET + lines + b"\r\n").as_it_is is as_it_is


RESPONSES_REFUSED = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX : a\r\n\r\n",
    b"HTTP/1.1 200 O\x00K\r\n\r\n",
    b"HTTP/1.1 20 OK\r\n\r\n",
    b"HTTP/1.1 999 OK\r\n\r\n",
    b"HTTP/1.1  200 OK\r\n\r\n",
    b"HTTP/2.0 200 OK\r\n\r\n",
    b"ICY 200 OK\r\n\r\n",
    b"SSH-2.0-OpenSSH\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 300 + b"\r\n",
    b"HTTP/1.1 200 OK\r\nConnection: content-length\r\nContent-Length: 3\r\n\r\n",
]


@pytest.mark.parametrize("raw", RESPONSES_REFUSED)
def test_an_answer_that_could_be_read_in_two_ways_is_a_bad_gateway(raw: bytes) -> None:
    """The client is answered 502; the upstream's connection is not used again."""
    with pytest.raises(WireError) as caught:
        response(raw)
    assert caught.value.status == 502


@pytest.mark.parametrize(
    ("raw", "method", "framing"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"GET", (5, False, False)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"HEAD", (0, False, False)),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b"GET", (0, False, False)),
        (b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n", b"GET", (0, False, False)),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: CHUNKED\r\n\r\n", b"GET", (None, True, False)),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"GET", (None, False, True)),
        (b"HTTP/1.1 200\r\n\r\n", b"GET", (None, False, True)),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"POST", (0, False, False)),
    ],
)
def test_the_length_of_an_answer(raw: bytes, method: bytes, framing: tuple[int | None, bool, bool]) -> None:
    """RFC 9112 section 6.3."""
    head = response(raw, method)
    assert (head.length, head.chunked, head.until_close) == framing
    if head.until_close:
        assert not head.keep_alive
