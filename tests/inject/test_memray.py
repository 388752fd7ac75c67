"""The memray capture: what it finds, that nothing is left, and what it says where memray is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest

from sentinel_agent.capture import memray
from sentinel_agent.capture.memray import MemrayCapture, MemrayDocument
from sentinel_agent.errors import NotAllowedError, PeerError, TargetError
from sentinel_agent.findings.base import Finding
from sentinel_agent.findings.judge import CHECKS
from tests.findings.facts import facts
from tests.inject.targets import IDLE, plan_of, running
from tests.needs import missing
from tests.profile.test_pprof import read

MIB = 1024**2
LEAKS = """
import asyncio, threading, time
kept = []
def remember():
    kept.append(bytearray(64 * 1024))  # line 5
    return [bytearray(1024) for _ in range(100)]
def elsewhere():
    while True:
        time.sleep(0.01); kept.append(bytes(1000))
threading.Thread(target=elsewhere, daemon=True).start()
async def main():
    print("ready", flush=True)
    while True:
        remember()
        await asyncio.sleep(0.005)
asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def _memray() -> None:
    if find_spec("memray") is None:
        missing("memray is not installed: `make .venv/.test` installs it")


def _left() -> list[Path]:
    return [*Path("/tmp").glob("sentinel-agent-*.memray")]


async def test_the_leaking_line_comes_first_in_both_views_and_nothing_is_left(tmp_path: Path) -> None:
    """64 KiB every few milliseconds: as pprof, as flame graph and in the finding; no file and no tracker stays behind."""
    with running(sys.executable, "-c", LEAKS) as process:
        result = await MemrayCapture().capture(plan_of("memray", process.pid, tmp_path, 1.0))
        document = msgspec.json.decode((tmp_path / "memray.json").read_bytes(), type=MemrayDocument)
        first = document.leaks[0]
        assert (first.lines[0].function, first.lines[0].line) == ("remember", 5)
        assert first.bytes == pytest.approx(first.blocks * 64 * 1024, rel=0.2)
        assert document.leaked_bytes >= first.bytes > MIB
        assert document.peak_bytes >= first.bytes
        assert any(site.lines[0].function == "elsewhere" for site in document.leaks)
        await MemrayCapture().capture(plan_of("memray", process.pid, tmp_path, 0.2))
    assert _left() == []
    assert {file.name for file in result.files} == {path.name for path in tmp_path.iterdir()}
    profile = read((tmp_path / "memray.high-water.pb.gz").read_bytes())
    assert "remember" in profile.string_table
    assert b"remember" in (tmp_path / "memray.leaks.svg").read_bytes()
    answer = CHECKS["allocations"](facts("rss", memray=document))
    assert isinstance(answer, Finding)
    assert answer.subject == "remember (<string>:5)"
    assert "memray saw grow" in answer.text
    assert result.gil_hold_us > 0


async def test_a_target_that_tracks_already_keeps_its_tracker(tmp_path: Path) -> None:
    """memray allows one tracker: ours is refused with memray's words, theirs goes on and can be ended."""
    before = f"import memray; tracker = memray.Tracker({str(tmp_path / 'theirs.bin')!r}); tracker.__enter__()"
    program = IDLE.format(before=before)
    with (
        running(sys.executable, "-c", program) as process,
        pytest.raises(TargetError, match="No more than one Tracker"),
    ):
        await MemrayCapture().capture(plan_of("memray", process.pid, tmp_path, 0.3))
    assert _left() == []
    assert (tmp_path / "theirs.bin").stat().st_size > 0


async def test_a_target_without_memray_is_told_how_to_get_it(tmp_path: Path) -> None:
    """It is never brought along: what runs in the target is the target's."""
    bare = subprocess.run(
        [sys.executable, "-c", "import sys; print(sys._base_executable)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    with running(bare, "-I", "-c", IDLE.format(before="")) as process:
        with pytest.raises(TargetError, match="cannot import memray") as caught:
            await MemrayCapture().capture(plan_of("memray", process.pid, tmp_path, 0.3))
        assert caught.value.hint == "pip install memray in the environment of the target"


async def test_without_memray_here_or_permission_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remedy is named before anything is done to the target."""
    with pytest.raises(NotAllowedError):
        await MemrayCapture().capture(plan_of("memray", 1, tmp_path, 0.3, allow_injection=False))
    monkeypatch.setattr(memray, "find_spec", lambda _: None)
    with pytest.raises(PeerError) as caught:
        await MemrayCapture().capture(plan_of("memray", 1, tmp_path, 0.3))
    assert caught.value.hint == "pip install 'sentinel-agent[memray]'"


async def test_a_file_that_is_none_of_memrays_is_refused(tmp_path: Path) -> None:
    """It lies in the target's /tmp, so it may be anything: nonsense, a link, a pipe."""
    nonsense = tmp_path / "nonsense"
    nonsense.write_bytes(b"memray" * 100)
    with pytest.raises(PeerError, match="memray cannot read"):
        await memray._read(nonsense)
    link = tmp_path / "link"
    link.symlink_to(nonsense)
    with pytest.raises(TargetError, match="cannot be read"):
        memray._fetch(link, tmp_path / "copy")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TargetError, match="memray's file"):
        memray._fetch(tmp_path / "pipe", tmp_path / "copy")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.symlink_to(tmp_path)
    with pytest.raises(TargetError, match="cannot be read"):
        memray._fetch(elsewhere / "nonsense", tmp_path / "copy")
    assert nonsense.exists()
