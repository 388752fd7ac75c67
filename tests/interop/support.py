"""Real backends for the interop tests: found where `make interop` puts them, started on free ports of loopback, ended."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sentinel_agent.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

FOLDER = Path(os.environ.get("SENTINEL_INTEROP", Path(__file__).parents[2] / ".cache" / "interop"))
CLOCK = SystemClock()


def artifact(name: str) -> Path:
    """A file that `make interop` fetches or builds; without it the test is skipped, with the reason that was found."""
    path = FOLDER / name
    if not path.exists():
        why = FOLDER / f"{name.partition('/')[0]}.why"
        pytest.skip(why.read_text().strip() if why.exists() else f"`make interop` fetches {name}")
    return path


@contextmanager
def started(
    command: Sequence[str | Path],
    folder: Path,
    ready: Callable[[], bool],
    environment: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """A server, from when it is ready (within three minutes) until the end of the block."""
    log = folder / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **(environment or {})},
        )
    try:
        end = CLOCK.monotonic() + 180
        while not ready():
            assert server.poll() is None, f"the server has ended:\n{log.read_text()[-3000:]}"
            assert CLOCK.monotonic() < end, f"the server is not ready:\n{log.read_text()[-3000:]}"
            time.sleep(0.3)
        yield
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(20)


def get(url: str, **query: Any) -> Any:
    """JSON from a server."""
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
        return json.load(answer)


def answers(url: str) -> bool:
    """Whether a GET succeeds."""
    with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(url, timeout=2) as answer:
        return bool(answer.status == 200)
    return False


def wait_for(find: Callable[[], Any]) -> Any:
    """What `find` finds, asked for up to a minute; a server stores later than it answers."""
    end = CLOCK.monotonic() + 60
    while True:
        with contextlib.suppress(OSError, ValueError):
            if found := find():
                return found
        assert CLOCK.monotonic() < end, "the server does not have it within a minute"
        time.sleep(0.3)
