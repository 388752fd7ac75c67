"""Our reading of generated and mutated streams against h11's and llhttp's: no bytes mean two things."""

from __future__ import annotations

import contextlib
from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from sentinel_agent.proxy.wire.faults import WireError
from tests.proxy.wire.messages import Message, Reader, bytewise, h11_read, llhttp_read, read

_NAMES = st.sampled_from(
    [
        b"X",
        b"x-a",
        b"Accept",
        b"Content-Length",
        b"Transfer-Encoding",
        b"Connection",
        b"Host",
        b"Te",
        b"Expect",
    ]
)
_VALUES = st.one_of(
    st.sampled_from(
        [
            b"",
            b"a",
            b"3",
            b"0",
            b"chunked",
            b"Chunked",
            b"close",
            b"keep-alive",
            b"x, y",
            b" 3 ",
            b"100-continue",
        ]
    ),
    st.binary(max_size=6),
)
_TARGETS = st.sampled_from([b"/", b"/a?b=c", b"*", b"http://h/x", b"/%41", b"a", b""])
_BREAKS = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n", b"\r\n ", b"\r\n\t", b" \r\n"])
_COLONS = st.sampled_from([b": "] * 12 + [b":", b" :", b":\t", b"", b"::"])


@st.composite
def _bodies(draw: st.DrawFn) -> tuple[list[tuple[bytes, bytes]], bytes]:
    body = draw(st.binary(max_size=12))
    kind = draw(st.sampled_from(["none", "length", "chunked", "wrong"]))
    if kind == "none":
        return [], b""
    if kind == "length":
        return [(b"Content-Length", b"%d" % len(body))], body
    if kind == "wrong":
        return [(b"Content-Length", b"%d" % draw(st.integers(0, 20)))], body
    sizes = draw(st.lists(st.integers(1, 5), max_size=4))
    end = draw(_BREAKS)
    text = b""
    for size in sizes:
        extension = draw(st.sampled_from([b""] * 6 + [b";a", b";a=b", b" ;a", b'; a="b"', b" "]))
        text += b"%x%b%b%b%b" % (size, extension, draw(_BREAKS), b"z" * size, draw(_BREAKS))
    trailer = draw(st.sampled_from([b""] * 6 + [b"T: v\r\n", b"Host: b\r\n", b"T : v\r\n"]))
    return [(b"Transfer-Encoding", b"chunked")], text + b"0\r\n" + trailer + end


@st.composite
def _streams(draw: st.DrawFn) -> bytes:
    text = b""
    for _ in range(draw(st.integers(1, 3))):
        method = draw(st.sampled_from([b"GET", b"POST", b"HEAD", b"PUT", b"OPTIONS"]))
        version = draw(st.sampled_from([b"HTTP/1.1"] * 8 + [b"HTTP/1.0", b"HTTP/0.9", b"http/1.1"]))
        framing, body = draw(_bodies())
        lines = [(b"Host", b"h"), *framing, *draw(st.lists(st.tuples(_NAMES, _VALUES), max_size=2))]
        text += b"%b %b %b%b" % (method, draw(_TARGETS), version, draw(_BREAKS))
        for name, value in lines:
            text += b"%b%b%b%b" % (name, draw(_COLONS), value, draw(_BREAKS))
        text += draw(_BREAKS) + body
    return text


@st.composite
def _mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(_streams()))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        piece = draw(
            st.one_of(
                st.sampled_from([b"\r", b"\n", b"\0", b" ", b":", b";", b"0", b"\r\n"]), st.binary(max_size=2)
            )
        )
        data[at : at + draw(st.integers(0, 2))] = piece
    return bytes(data)


def _seen(messages: list[Message]) -> list[tuple[bytes, bytes]]:
    return [(each.target, each.body) for each in messages if each.complete]


def _as_sent(data: bytes) -> list[tuple[bytes, bytes]]:
    """Our messages, with the targets as the sender wrote them."""
    reader = Reader()
    with contextlib.suppress(WireError):  # what was whole before the fault counts
        reader.feed(data)
    sent = [head.raw.split(b" ", 2)[1] for head in reader.heads]
    return [(target, m.body) for target, m in zip(sent, reader.messages, strict=True) if m.complete]


def _agree(ours: list[tuple[bytes, bytes]], theirs: list[tuple[bytes, bytes]]) -> bool:
    """Whether both see the same messages as far as both read."""
    return all(one == other for one, other in zip(ours, theirs, strict=False))


@settings(max_examples=600, deadline=None)
@given(_mutated())
@example(b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\nHost: h\r\n\r\n")
def test_whole_messages_are_the_same_to_every_parser(data: bytes) -> None:
    """Whatever we forward as one message, h11 and llhttp read as that message, with the same target and body."""
    ours = _as_sent(data)
    assert _agree(ours, _seen(h11_read(data)[0])), (ours, h11_read(data))
    assert _agree(ours, _seen(llhttp_read(data)[0])), (ours, llhttp_read(data))


@settings(max_examples=400, deadline=None)
@given(_mutated(), st.lists(st.integers(0, 200), max_size=6))
def test_where_the_stream_is_cut_does_not_matter(data: bytes, cuts: list[int]) -> None:
    """Whole, byte by byte, and cut anywhere: the same messages, and a fault or none."""
    whole = read([data])
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[a:b] for a, b in pairwise(edges)]
    expected = (_seen(whole[0]), whole[1] is None)
    for other in (read(pieces), read(bytewise(data))):
        assert (_seen(other[0]), other[1] is None) == expected


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_garbage_is_refused_or_waited_for_and_nothing_else(data: bytes) -> None:
    """Only WireError leaves the parser, whatever comes."""
    messages, _ = read([data])
    assert all(isinstance(each, Message) for each in messages)


@settings(max_examples=300, deadline=None)
@given(_streams())
def test_a_stream_that_all_accept_is_read_to_its_end(data: bytes) -> None:
    """Strictness costs no message that both oracles take: what they read and we refuse is one of the named forms."""
    messages, status = read([data])
    theirs, refused = h11_read(data)
    if status is None and not refused:
        assert _agree(_as_sent(data), _seen(theirs))
        assert len(_seen(messages)) >= len(_seen(theirs)) or b"HTTP/1.0" in data or b"close" in data
