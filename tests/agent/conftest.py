"""The bench as a fixture, and a process to watch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.agent.bench import Bench
from tests.agent.support import sleeper

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Must be made in the running loop."""
    return Bench(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def pid() -> Iterator[int]:
    """A Python process that sleeps."""
    with sleeper() as process:
        yield process.pid
