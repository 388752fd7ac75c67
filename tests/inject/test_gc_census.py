"""The gc capture on live services: what it counts, what it leaves behind, and when it is refused."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import msgspec
import pytest

from sentinel_agent.capture.gc_census import GcCapture
from sentinel_agent.capture.heap import HeapDocument
from sentinel_agent.errors import NotAllowedError, TargetError
from sentinel_agent.findings.base import Finding
from sentinel_agent.findings.judge import CHECKS
from tests.cpython.conftest import MINORS, python_of
from tests.findings.facts import facts
from tests.inject.targets import IDLE, plan_of, running

if TYPE_CHECKING:
    from pathlib import Path

LEAKS = """
import asyncio, gc
class Meta(type):
    def __hash__(cls): raise RuntimeError("nothing of the target is called")
    def __subclasses__(cls): raise RuntimeError("as above")
class Session(metaclass=Meta):
    def __init__(self): self.rows = [1, 2, 3]
    def __del__(self): print("a finalizer ran", flush=True)
tables = [{number: [] for number in range(1000)} for _ in range(100)]
kept = []
async def main():
    print("ready", flush=True)
    rounds = 0
    while True:
        kept.extend(Session() for _ in range(100))
        rounds += 1
        if rounds % 20 == 0: gc.collect()
        await asyncio.sleep(0.01)
asyncio.run(main())
"""


@pytest.mark.parametrize("minor", MINORS)
async def test_the_type_that_grows_is_named_and_tables_are_counted_in(minor: int, tmp_path: Path) -> None:
    """Sessions are what grows; 100 dicts of 1000 entries are megabytes, as `sys.getsizeof` has them; no method of the target is called."""
    with running(str(python_of(minor)), "-c", LEAKS) as process:
        result = await GcCapture().capture(plan_of("gc", process.pid, tmp_path, 3.0, max_pause=1.0))
    document = msgspec.json.decode((tmp_path / "gc.json").read_bytes(), type=HeapDocument)
    leaked = {each.name: each for each in document.growth}["Session"]
    assert leaked.count >= 100
    assert leaked.count % 100 == 0
    dicts = {each.name: each for each in document.before.types}["dict"]
    assert dicts.bytes > 100 * 30_000
    assert document.full_collection
    assert document.injection
    assert result.gil_hold_us == max(document.injection.holds_us.values()) > 0
    answer = CHECKS["object_growth"](facts("rss", gc=document))
    assert leaked.count < 1000 or (isinstance(answer, Finding) and answer.subject == "Session")


async def test_a_count_that_would_break_the_cap_is_not_begun(tmp_path: Path) -> None:
    """A million objects and 20 ms: the reason names both, and what counts without holding anything."""
    many = IDLE.format(before="kept = [[] for _ in range(1_000_000)]")
    words = "max_pause allows 20 ms; `heap` counts from outside"
    with running(sys.executable, "-c", many) as process, pytest.raises(TargetError, match=words):
        await GcCapture().capture(plan_of("gc", process.pid, tmp_path, 0.3, max_pause=0.02))


async def test_without_permission_or_near_the_limit_nothing_is_run(tmp_path: Path) -> None:
    """As with every capture that runs code in the target."""
    with pytest.raises(NotAllowedError):
        await GcCapture().capture(plan_of("gc", 1, tmp_path, 0.3, allow_injection=False))
    with pytest.raises(TargetError, match="92% of its memory limit"):
        await GcCapture().capture(plan_of("gc", 1, tmp_path, 0.3, rss_limit=92.0))
