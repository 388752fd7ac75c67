"""Trace context in three header formats: read, written, and the same after a round."""

from __future__ import annotations

import base64
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.proxy.config import Tracing
from sentinel_agent.proxy.tracing import Tracer
from sentinel_agent.proxy.wire.trace import (
    Decision,
    Format,
    SwPlace,
    TraceContext,
    read_context,
    read_decision,
    sw_span,
    write_context,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

ALL: tuple[Format, ...] = ("tracecontext", "b3", "b3multi", "sw8")
W3C = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE, SPAN = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7


def fields(lines: bytes) -> dict[bytes, bytes]:
    """Header lines as the head reader gives them."""
    pairs = (line.split(b": ", 1) for line in lines.split(b"\r\n")[:-1])
    return {name.lower(): value for name, value in pairs}


def test_the_example_of_the_w3c() -> None:
    """Trace Context, section 3.2.2.3."""
    found = read_context({b"traceparent": W3C, b"tracestate": b"a=1"}, ALL)
    assert found == TraceContext(TRACE, SPAN, True, b"a=1")


@pytest.mark.parametrize(
    "value",
    [
        b"",
        W3C.upper(),
        W3C + b"-x",
        b"ff" + W3C[2:],
        W3C[:-1],
        b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01",
        b"00-4bf92f3577b34da6a3ce929d0e0e4736-" + b"0" * 16 + b"-01",
        b"00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
    ],
)
def test_a_malformed_parent_is_none(value: bytes) -> None:
    """Zero ids, wrong case, wrong length, version ff."""
    assert read_context({b"traceparent": value}, ALL) is None


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    """Trace Context, section 3.2.4: more fields may follow."""
    found = read_context({b"traceparent": b"cc" + W3C[2:] + b"-what-ever"}, ALL)
    assert found is not None
    assert found.trace_id == TRACE


@pytest.mark.parametrize(
    ("headers", "sampled"),
    [
        ({b"b3": b"%032x-%016x-1" % (TRACE, SPAN)}, True),
        ({b"b3": b"%032x-%016x-d" % (TRACE, SPAN)}, True),
        ({b"b3": b"%032x-%016x-0-%016x" % (TRACE, SPAN, 1)}, False),
        ({b"b3": b"%032x-%016x" % (TRACE, SPAN)}, None),
        ({b"x-b3-traceid": b"%032x" % TRACE, b"x-b3-spanid": b"%016x" % SPAN, b"x-b3-flags": b"1"}, True),
        ({b"x-b3-traceid": b"%032x" % TRACE, b"x-b3-spanid": b"%016x" % SPAN, b"x-b3-sampled": b"0"}, False),
        ({b"x-b3-traceid": b"%032x" % TRACE, b"x-b3-spanid": b"%016x" % SPAN}, None),
    ],
)
def test_b3(headers: dict[bytes, bytes], sampled: bool | None) -> None:
    """openzipkin/b3-propagation: one header, several, and a decision that is left open; debug is more than sampled."""
    debug = headers.get(b"b3", b"").endswith(b"-d") or b"x-b3-flags" in headers
    assert read_context(headers, ALL) == TraceContext(TRACE, SPAN, sampled, debug=debug)


@pytest.mark.parametrize(
    ("headers", "decision"),
    [
        ({b"b3": b"0"}, Decision(False)),
        ({b"b3": b"1"}, Decision(True)),
        ({b"b3": b"d"}, Decision(True, debug=True)),
        ({b"b3": b"true"}, None),
        ({b"b3": b""}, None),
        ({b"x-b3-sampled": b"0"}, Decision(False)),
        ({b"x-b3-sampled": b"true"}, Decision(True)),
        ({b"x-b3-sampled": b"d"}, None),
        ({b"x-b3-flags": b"1", b"x-b3-sampled": b"0"}, Decision(True, debug=True)),
        ({b"x-b3-flags": b"0"}, None),
        ({b"b3": b"0", b"x-b3-sampled": b"1"}, Decision(False)),
    ],
)
def test_a_decision_without_a_trace(headers: dict[bytes, bytes], decision: Decision | None) -> None:
    """openzipkin/b3-propagation, "Sampling State": deny, accept and debug may come alone; debug goes before sampled."""
    assert read_context(headers, ALL) is None
    assert read_decision(headers, ALL) == decision
    assert read_decision(headers, ("tracecontext", "sw8")) is None


@pytest.mark.parametrize(
    ("headers", "sampled", "debug"),
    [({b"b3": b"0"}, False, False), ({b"b3": b"d"}, True, True), ({b"x-b3-sampled": b"1"}, True, False)],
)
def test_a_trace_that_begins_with_a_decision_keeps_it(
    headers: dict[bytes, bytes], sampled: bool, debug: bool
) -> None:
    """Whatever share is kept of the others; a decision that is left open is made by the share, once."""
    for share in (0.0, 100.0):
        tracer = Tracer(Tracing(sampling=share), "s", "i", Random(1))
        place = tracer.begin(headers)
        assert (place.context.sampled, place.context.debug, place.parent) == (sampled, debug, 0)
        left_open = tracer.begin({b"b3": b"%032x-%016x" % (TRACE, SPAN)})
        assert (left_open.context.sampled, left_open.parent) == (share == 100.0, SPAN)
        denied = tracer.begin({b"b3": b"%032x-%016x-0" % (TRACE, SPAN)})
        assert denied.context.sampled is False
        assert denied.context.trace_id == TRACE


def test_a_decision_alone_is_no_context() -> None:
    """`b3: 0` names no trace."""
    assert read_context({b"b3": b"0"}, ALL) is None


def sw8(trace: str, segment: str, number: int = 0, sample: str = "1") -> bytes:
    """A header as SkyWalking's agents write it."""
    texts = [trace, segment]
    names = ["svc", "inst", "/e", "addr:1"]
    one, two, *rest = [base64.b64encode(text.encode()).decode() for text in (*texts, *names)]
    return "-".join([sample, one, two, str(number), *rest]).encode()


def test_sw8_of_skywalking_keeps_its_text() -> None:
    """Its trace id is free text: known by its digest here, passed on as it came."""
    found = read_context({b"sw8": sw8("5b2e.72.16", "seg.1", 3)}, ALL)
    assert found is not None
    assert found.sw_trace == "5b2e.72.16"
    assert found.span_id == sw_span("seg.1", 3)
    out = fields(write_context(found._replace(span_id=9), 0, ("sw8",), SwPlace("s", "i", "e", "a")))
    again = read_context(out, ALL)
    assert again == TraceContext(found.trace_id, 9, True, b"", "5b2e.72.16")


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"1-x",
        sw8("", "s"),
        sw8("t", ""),
        sw8("t", "s", sample="2"),
        sw8("t" * 3000, "s"),
        b"1-!-!-0-a-b-c-d",
    ],
)
def test_a_malformed_sw8_is_none(value: bytes) -> None:
    """Wrong counts, no Base64, too long."""
    assert read_context({b"sw8": value}, ALL) is None


@given(
    st.integers(1, 2**128 - 1),
    st.integers(1, 2**64 - 1),
    st.booleans(),
    st.integers(0, 2**64 - 1),
    st.lists(st.sampled_from(ALL), min_size=1, max_size=4, unique=True).map(tuple),
)
def test_what_is_written_is_read_back(
    trace: int, span: int, sampled: bool, parent: int, formats: Sequence[Format]
) -> None:
    """One trace, one parent, one decision, in each format and in all at once."""
    context = TraceContext(trace, span, sampled)
    lines = fields(write_context(context, parent, formats, SwPlace("s", "i", "/e", "a:1")))
    for each in formats:
        assert read_context(lines, (each,)) == context


@given(
    st.dictionaries(
        st.sampled_from([b"traceparent", b"b3", b"x-b3-traceid", b"x-b3-spanid", b"sw8"]), st.binary()
    )
)
def test_garbage_is_no_context_and_no_fault(headers: dict[bytes, bytes]) -> None:
    """What a client sends never raises."""
    found = read_context(headers, ALL)
    assert found is None or found.trace_id
