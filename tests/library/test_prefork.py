"""`sentinel_agent.start()` in a pre-fork server: gunicorn with four workers."""

from __future__ import annotations

import json
import os
import signal
from subprocess import DEVNULL
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.e2e.support import HERE, SENTINEL, free_port, get, interpreter, listening, started, until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e

CONFIG = """
import sentinel_agent
def on_starting(server):
    sentinel_agent.start(service="shop", data_dir={data_dir!r}, command={command!r}, rules=[
        {{"name": "there", "metric": "threads", "trigger": {{"abs": 0}}, "cooldown": "1h", "capture": ["process"]}},
    ])
def post_worker_init(worker):
    sentinel_agent.start(command=["/nowhere"])
"""


def _gunicorn(folder: Path, port: int, command: list[str]) -> tuple[str, ...]:
    config = folder / "gunicorn.conf.py"
    config.write_text(CONFIG.format(data_dir=str(folder / "data"), command=command))
    return (
        *(interpreter("gunicorn"), "-m", "gunicorn", "-k", "uvicorn.workers.UvicornWorker", "-w", "4"),
        *("-c", str(config), "-b", f"127.0.0.1:{port}", "--no-control-socket", "spike_asgi:app"),
    )


def _environment() -> dict[str, str]:
    """The package's own source, without what it depends on: a service needs nothing else to call `start`."""
    return os.environ | {"PYTHONPATH": str(HERE.parent.parent)}


def _watched(folder: Path) -> set[int]:
    return {
        json.loads(path.read_bytes())["target"]["pid"]
        for path in folder.glob("data/incidents/2*/incident.json")
    }


def test_one_agent_watches_the_master_and_its_workers_and_may_be_killed(tmp_path: Path) -> None:
    """Started in the master, before the workers are forked; after `kill -9` of the agent all go on, and there is no zombie."""
    port = free_port()
    with started(
        _gunicorn(tmp_path, port, [*SENTINEL]), cwd=HERE / "proxies", env=_environment(), stderr=DEVNULL
    ) as master:
        until(lambda: listening(port), 20, "gunicorn")
        tree = psutil.Process(master.pid)

        def agents() -> list[psutil.Process]:
            return [each for each in tree.children() if "sentinel_agent" in each.cmdline()]

        (agent,) = until(agents, 10, "the agent")
        until(lambda: len(tree.children()) == 5, 20, "the workers")
        workers = {each.pid for each in tree.children() if each.pid != agent.pid}
        until(lambda: _watched(tmp_path) >= workers | {master.pid}, 60, "an incident of each process")
        agent.send_signal(signal.SIGKILL)
        until(lambda: not psutil.pid_exists(agent.pid), 10, "the end of the agent")
        assert get(f"http://127.0.0.1:{port}/") is not None
        assert {each.pid for each in tree.children()} == workers


def test_the_server_starts_where_the_agents_program_is_missing(tmp_path: Path) -> None:
    """It serves, with four workers and nothing else."""
    port = free_port()
    command = _gunicorn(tmp_path, port, ["/nowhere/sentinel-agent"])
    with started(command, cwd=HERE / "proxies", env=_environment(), stderr=DEVNULL) as master:
        until(lambda: listening(port), 20, "gunicorn")
        until(lambda: len(psutil.Process(master.pid).children()) == 4, 20, "the workers")
        assert get(f"http://127.0.0.1:{port}/") is not None
