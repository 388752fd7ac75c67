"""Several real processes on one data directory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentinel_agent.store.store import Store
from tests.store.helpers import SETTINGS

if TYPE_CHECKING:
    from sentinel_agent.clock import Clock

ROOT = Path(__file__).parents[2]
WRITERS, EACH = 3, 15


def start(verb: str, data_dir: Path, count: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.store.children", verb, str(data_dir), str(count)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err.decode()
    assert not err, err.decode()
    answer: dict[str, Any] = json.loads(out)
    return answer


def test_writers_with_retention_and_readers_do_not_disturb_each_other(
    data_dir: Path, fake_clock: Clock
) -> None:
    """Every incident is saved, readers see only whole ones, and no limit record is lost, from the first moment on."""
    writers = [start("write", data_dir, EACH) for _ in range(WRITERS)]
    readers = [start("read", data_dir, 20) for _ in range(2)]
    written = [finish(process) for process in writers]
    seen = [finish(process) for process in readers]
    assert written == [{"dropped": 0, "last_error": None}] * WRITERS
    for each in seen:
        assert each.get("torn", 0) == 0
        assert each["unreadable"] == 0
    store = Store(data_dir, SETTINGS, fake_clock)
    assert len(store.list()) == 20
    assert not store.unreadable()
    assert len(store.limits()) == WRITERS * EACH
    assert not (data_dir / "index.sqlite3.damaged").exists()
    assert not [path for path in (data_dir / "incidents").iterdir() if path.name.startswith(".")]
