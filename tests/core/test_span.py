"""Spans: what may be said in one, and that it survives being written down."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.core.span import Endpoint, SegmentReference, SkyWalking, Span, SpanEvent

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


def make(**changes: Any) -> Span:
    given: dict[str, Any] = {
        "trace_id": TRACE,
        "span_id": SPAN,
        "name": "GET /",
        "start": 1_700_000_000_000_000_000,
        "duration": 1_500_000,
        "service": "gateway",
    }
    return Span(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"trace_id": TRACE.upper()}, "0AF765"),
        ({"trace_id": TRACE[:16]}, "trace id"),
        ({"trace_id": "0" * 32}, "trace id"),
        ({"trace_id": TRACE + "\n"}, "trace id"),
        ({"span_id": "0" * 16}, "span id"),
        ({"span_id": SPAN[:-1] + "g"}, "span id"),
        ({"parent_id": ""}, "parent id"),
        ({"duration": -1}, "-1 ns"),
    ],
)
def test_wrong_ids(changes: dict[str, Any], found: str) -> None:
    """An id that no backend would take is refused where the span is made, and the message shows it."""
    with pytest.raises(ValueError, match=found):
        make(**changes)


def test_a_root_span_has_no_parent() -> None:
    """Without a parent a span is the first of its trace; that is no fault."""
    assert make(parent_id=None).parent_id is None


@given(
    st.dictionaries(st.text(), st.text() | st.integers(-(2**63), 2**63 - 1) | st.booleans()),
    st.text(),
)
def test_written_and_read_back(attributes: dict[str, Any], text: str) -> None:
    """Every part of a span comes back from MessagePack as it was, whatever its texts hold."""
    span = make(
        parent_id=SPAN,
        kind="server",
        attributes=attributes,
        events=(SpanEvent(1, text, attributes),),
        remote=Endpoint(text, "::1", 65535),
        skywalking=SkyWalking(
            text, text, 1, 0, (SegmentReference(text, text, -1, text, text, text, text),), {text: text}
        ),
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(span), type=Span) == span


def test_a_span_read_back_is_checked_too() -> None:
    """What was spoiled on disk is refused when it is read, like a span that is made wrong."""
    written = msgspec.msgpack.encode(msgspec.structs.asdict(make()) | {"span_id": "x"})
    with pytest.raises(msgspec.ValidationError, match="span id"):
        msgspec.msgpack.decode(written, type=Span)
