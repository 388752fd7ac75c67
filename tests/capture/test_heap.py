"""The heap capture: the pair around a full collection, and its difference."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import msgspec

from sentinel_agent.capture.heap import HeapCapture, HeapCensus, HeapDocument, TypeTotal, grown
from sentinel_agent.core.rule import CaptureSpec
from sentinel_agent.findings.base import Finding
from sentinel_agent.findings.judge import CHECKS
from tests.capture.targets import plan_for, started, target_of
from tests.findings.facts import facts

if TYPE_CHECKING:
    from pathlib import Path

LEAKS = """
import gc, sys, time
class Session: pass
kept = []
print("ready", flush=True)
while True:
    kept += [Session() for _ in range(500)]
    time.sleep(0.02)
    if "collect" in sys.argv: gc.collect()
"""
QUIET = "import gc; gc.disable(); print('ready', flush=True); input()"


async def test_the_type_that_leaks_is_named_after_a_full_collection(tmp_path: Path) -> None:
    """25,000 sessions a second: the finding names the type, and that they outlived a collection."""
    with started(sys.executable, "-c", LEAKS, "collect") as process:
        plan = plan_for(target_of(process.pid), tmp_path, CaptureSpec("heap", duration=5.0))
        await HeapCapture().capture(plan)
    document = msgspec.json.decode((tmp_path / "heap.json").read_bytes(), type=HeapDocument)
    assert document.full_collection
    leaked = next(each for each in document.growth if each.name == "Session")
    assert leaked.count >= 500
    answer = CHECKS["object_growth"](facts("rss", heap=document))
    if leaked.count >= 1000:
        assert isinstance(answer, Finding)
        assert answer.subject == "Session"
    assert document.mappings["anonymous"] > 0


async def test_without_a_full_collection_it_says_so(tmp_path: Path) -> None:
    """The pair is taken all the same, and nothing is found to grow."""
    with started(sys.executable, "-c", QUIET) as process:
        plan = plan_for(target_of(process.pid), tmp_path, CaptureSpec("heap", duration=0.3))
        result = await HeapCapture().capture(plan)
    document = msgspec.json.decode((tmp_path / "heap.json").read_bytes(), type=HeapDocument)
    assert not document.full_collection
    assert "no full collection" in result.note
    assert CHECKS["object_growth"](facts("rss", heap=document)) is None


def test_only_what_there_is_more_of_is_growth() -> None:
    """By bytes, a new type with all it has."""
    before = HeapCensus(1.0, 30, (TypeTotal("a", 10, 100), TypeTotal("b", 20, 200)), 0, False)
    after = HeapCensus(
        2.0, 30, (TypeTotal("a", 12, 120), TypeTotal("b", 10, 100), TypeTotal("c", 8, 800)), 0, False
    )
    assert grown(before, after) == (TypeTotal("c", 8, 800), TypeTotal("a", 2, 20))
