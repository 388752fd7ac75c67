"""What the requests of the embedded proxy say: who holds the event loop, which route grew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sentinel_agent.core.model import CaptureReport
from sentinel_agent.findings.base import Finding, NotKnown
from sentinel_agent.findings.judge import CHECKS, judge
from sentinel_agent.findings.requests import RequestsDocument, RouteRate, UnderWay, in_words
from sentinel_agent.profile.record import RecordBuilder
from tests.findings.facts import facts

if TYPE_CHECKING:
    from sentinel_agent.profile.record import ProfileRecord

HOLDER = UnderWay("GET /report?seconds=3", "report", 0.934, "8a" * 16, on_loop=True)
WAITER = UnderWay("GET /", "all", 2.0, "")


def hot(function: str, file: str, line: int) -> ProfileRecord:
    """Half a second on a CPU at one place."""
    builder = RecordBuilder(start=0.0, period=0.05)
    thread = builder.thread(1, "MainThread")
    for number in range(10):
        builder.add(
            thread, [builder.frame(function, file, line)], offset=number * 0.05, weight=0.05, on_cpu=True
        )
    return builder.build()


def test_the_request_that_holds_the_loop_comes_first_with_its_route_its_trace_and_the_line() -> None:
    """It is the answer of a CPU spike of the proxy: before the hottest function, which it names too."""
    answer = judge(
        facts(
            requests=RequestsDocument((WAITER, HOLDER), ()),
            during=hot("checksum", "faults.py", 34),
        )
    )
    assert answer.headline == (
        "the event loop is held for 934ms by GET /report?seconds=3 (route report): checksum (faults.py:34)"
    )
    assert f"trace {HOLDER.trace}" in answer.findings[0].evidence
    assert answer.findings[0].subject == "route report"
    assert "1 other request under way in this worker" in answer.findings[0].evidence


@pytest.mark.parametrize(
    "under_way", [(), (WAITER,), (UnderWay("GET /", "all", 0.2, "", on_loop=True),)], ids=len
)
def test_a_request_that_waits_or_is_quick_holds_nothing(under_way: tuple[UnderWay, ...]) -> None:
    """A request under way for long waits for its upstream; a filter of 200 ms is no stall yet."""
    assert CHECKS["held_loop"](facts(requests=RequestsDocument(under_way, ()))) is None


def test_the_route_that_grew_the_most_is_named() -> None:
    """By how many times as much it has: a new one before a busy one that fluctuates; the steady ones not at all."""
    rates = (RouteRate("steady", 50.0, 45.0), RouteRate("busy", 30.0, 12.0), RouteRate("new", 7.0, 0.0))
    document = RequestsDocument((), (*rates, RouteRate("unknown", 9.0, None)))
    assert [line.split(":")[0] for line in in_words(document)] == ["route new", "route busy"]
    answer = CHECKS["busier_route"](facts("rps", requests=document))
    assert isinstance(answer, Finding)
    assert answer.text == "route new gets 7.0 requests a second, 0.0 before"
    assert answer.evidence == ("route busy: 30.0 requests a second, 12.0 before",)


@pytest.mark.parametrize("check", ["held_loop", "busier_route"])
def test_a_capture_that_failed_is_not_known_and_a_target_without_one_is_none_of_it(check: str) -> None:
    """Only where requests were to be captured is their absence something to say."""
    failed = CaptureReport("requests", "failed", "the worker was not heard")
    answer = CHECKS[check](
        facts(
            incident={"captures": (failed,)},
            missing={"requests": "requests failed: the worker was not heard"},
        )
    )
    assert answer == NotKnown(check, "requests failed: the worker was not heard")
    assert CHECKS[check](facts()) is None
