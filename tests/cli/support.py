"""The command line called in this process, and a store with something in it to look at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from sentinel_agent.cli import main
from sentinel_agent.core.model import CaptureReport
from sentinel_agent.profile import pprof
from sentinel_agent.profile.record import RecordBuilder
from sentinel_agent.store.store import Store
from sentinel_agent.testing import FakeClock
from tests.store.helpers import SETTINGS, START, save

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "evil\x1b[31mred\x9b2J\u202egnp\u2028.\x00\x07[red]markup[/red]\r"
"""A terminal escape, its one-character twin, a right-to-left override, a line separator, a NUL, a bell, markup."""

UNSAFE = ("\x1b", "\x9b", "\u202e", "\u2028", "\x00", "\x07", "\r")


@dataclass(frozen=True)
class Done:
    """How a call ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout; fails if there is more or less."""
        return json.loads(self.out)


class CommandLine:
    """Calls `sentinel-agent` in this process, with a data directory of its own."""

    def __init__(self, capsys: pytest.CaptureFixture[str], data: Path) -> None:
        self._capsys = capsys
        self.data = data

    def __call__(self, *words: str, check: int | None = 0, place: bool = True) -> Done:
        """Run it; `place` adds `--data-dir`. The exit code is checked unless `check` is None."""
        arguments = [*words, "--data-dir", str(self.data)] if place else list(words)
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        captured = self._capsys.readouterr()
        done = Done(int(ended.value.code or 0), captured.out, captured.err)
        assert check is None or done.code == check, (words, done)
        for text in (done.out, done.err):
            assert "Traceback" not in text
            assert not [char for char in UNSAFE if char in text], (words, text)
        return done


STACKS = {
    "threads": [
        {
            "native_id": 7,
            "name": HOSTILE,
            "state": "running",
            "gil": True,
            "frames": [{"function": f"hot_{HOSTILE}", "file": f"/srv/{HOSTILE}.py", "line": 3}],
        }
    ]
}
SERIES = {
    "start": START - 2,
    "end": START,
    "interval": 1.0,
    "metrics": {"cpu": {"unit": "percent", "times": [START - 2, START - 1, START], "values": [5, 6, 95]}},
    "errors": {},
}
PROCESS = {
    "memory": {"rss": 4096, "anonymous": 1024},
    "files": {
        "looked_at": 1,
        "by_kind": {f"socket{HOSTILE}": 1},
        "listed": [{"kind": "socket", "socket": {"protocol": "tcp", "remote": HOSTILE, "state": "open"}}],
    },
}


def files() -> dict[str, bytes]:
    """What an incident has."""
    return {
        "series.json": json.dumps(SERIES).encode(),
        "stacks.json": json.dumps(STACKS).encode(),
        "process.json": json.dumps(PROCESS).encode(),
        "profile.pb.gz": profile(),
    }


def profile() -> bytes:
    """A CPU profile of 0.2 s with a function of a hostile name."""
    builder = RecordBuilder(start=START, period=0.1, source="test", lost=0)
    hot, outer = (
        builder.frame(f"hot_{HOSTILE}", f"/srv/{HOSTILE}.py", 3),
        builder.frame("main", "/srv/app.py", 9),
    )
    thread = builder.thread(7, HOSTILE)
    for offset in (0.0, 0.1):
        builder.add(thread, [hot, outer], offset=offset, weight=0.1, on_cpu=True)
    return pprof.encode(builder.build())


def stored(folder: Path, content: dict[str, bytes] | None = None, **changes: Any) -> str:
    """Save one incident of a hostile target; its id."""
    store = Store(folder, SETTINGS, FakeClock()).open()
    facts: dict[str, Any] = {
        "summary": f"CPU 95%: {HOSTILE}",
        "captures": (CaptureReport("profile", "failed", HOSTILE),),
    }
    return save(store, files=files() if content is None else content, **(facts | changes))
