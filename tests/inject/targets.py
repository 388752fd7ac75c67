"""Programs to run code of ours in, and plans that allow it."""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING, Any

from sentinel_agent.capture.base import Series, SeriesWindow
from sentinel_agent.core.rule import CaptureSpec
from tests.capture.targets import plan_for, target_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IDLE = """
import asyncio, sys, tracemalloc
{before}
async def main():
    print("ready", flush=True)
    while True:
        await asyncio.sleep(0.01)
        sys.stdin in ()
asyncio.run(main())
"""


@contextlib.contextmanager
def running(python: str, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A program that has said `ready`; what it writes to stderr afterwards fails the test."""
    process = subprocess.Popen(
        [python, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == "ready\n", process.communicate(timeout=5)
        yield process
        assert process.poll() is None, "the target has ended"
    finally:
        process.kill()
        _, errors = process.communicate(timeout=10)
    assert errors == ""


def plan_of(
    kind: str, pid: int, folder: Path, seconds: float, rss_limit: float = 20.0, **changes: Any
) -> Any:
    """A plan that allows it."""
    window = SeriesWindow(0.0, 1.0, 1.0, {"rss_limit": Series("percent", [1.0], [rss_limit])})
    spec = CaptureSpec(kind, duration=seconds)
    made = plan_for(target_of(pid), folder, spec, **({"allow_injection": True, "max_pause": 0.1} | changes))
    return type(made)(**{name: getattr(made, name) for name in made.__slots__} | {"series": lambda: window})
