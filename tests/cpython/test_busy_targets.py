"""In a target that never stands still no stack shows a call that its program cannot make."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from sentinel_agent.cpython.code import TORN, Frame
from sentinel_agent.cpython.process import open_process
from tests.cpython.conftest import BUSY_PROGRAM

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cpython.conftest import StartTarget

SAMPLES = 1000
# Entered before the program could watch itself, or not from that line then: what they call is not in its list.
BEFORE_THE_WATCH = ("<module>", "_bootstrap", "Thread._bootstrap", "main")


def place(frame: Frame) -> str:
    return f"{frame.function} {frame.file}"


@pytest.mark.parametrize("kind", ["sync", "threads", "asyncio"])
def test_no_stack_holds_a_call_that_never_happens(python: Path, start_target: StartTarget, kind: str) -> None:
    """Every caller and callee that stand beside each other were seen by the target's own profiler to do so.

    A leaf that stands alone before what is torn is a function that runs in the target, too. From 3.11 on the line from which the call is made is one of those that were seen, too: caller and callee are of one moment.
    """
    target = start_target(python, BUSY_PROGRAM, kind, "60")
    reader = open_process(target.pid)
    with_line = reader.layout.minor >= 11
    calls = {(caller, with_line and line, callee) for caller, line, callee in target.truth["edges"]}
    functions = {place for caller, _, callee in target.truth["edges"] for place in (caller, callee)}
    useful = total = 0
    for _ in range(SAMPLES):
        for thread in reader.sample():
            total += 1
            frames = thread.stack.frames
            useful += bool(frames)
            for frame in frames[:1]:
                assert frame is TORN or place(frame) in functions or frame.function in BEFORE_THE_WATCH
            assert (TORN in frames) == (thread.stack.kind == "partial")
            for callee, caller in pairwise(frames):
                if TORN not in (callee, caller) and caller.function not in BEFORE_THE_WATCH:
                    call = place(caller), with_line and caller.line, place(callee)
                    assert call in calls, f"{thread.stack.kind}: {frames}"
    assert useful / total >= 0.98
