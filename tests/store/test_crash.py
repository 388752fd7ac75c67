"""A process that is killed with SIGKILL at any step of its work leaves every incident whole or not there."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from tests.store.children import FRESH, KEEP, KEY, SEEDS, open_store
from tests.store.helpers import FILES, START, names, save

if TYPE_CHECKING:
    from sentinel_agent.store.store import Store

ROOT = Path(__file__).parents[2]


def seed(data_dir: Path) -> None:
    store = open_store(data_dir)
    for number, incident_id in enumerate(SEEDS):
        save(store, START + number, incident_id=incident_id)
    store.put_limits({KEY: b"zero"})


def crash(base: Path, scenario: str) -> list[str]:
    """Run the scenario once per step; the names of the steps. The last run, number `len`, got through."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.store.children", "crash", str(base), scenario],
        cwd=ROOT,
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    trace: list[str] = json.loads((base / "trace.json").read_bytes())
    assert (base / str(len(trace))).exists()
    return trace


def assert_sound(data_dir: Path, store: Store, listed: list[str]) -> None:
    """What is listed is whole by its own sums, nothing else lies there, and the index says the same."""
    for incident_id in listed:
        incident = store.read(incident_id)
        assert {artifact.name for artifact in incident.artifacts} == set(FILES)
        for artifact in incident.artifacts:
            content = (store.path(incident_id) / artifact.name).read_bytes()
            assert hashlib.sha256(content).hexdigest() == artifact.sha256
    assert not store.unreadable()
    assert names(data_dir / "incidents") == sorted(listed)
    with closing(sqlite3.connect(data_dir / "index.sqlite3")) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert {row[0] for row in db.execute("SELECT id FROM incidents")} == set(listed)


def position(trace: list[str], start: str, end: str) -> int:
    return next(n for n, name in enumerate(trace) if name.startswith(start) and name.endswith(end))


def test_saving_survives_a_kill_at_every_step(tmp_path: Path) -> None:
    """0 half incidents, 0 sealed ones lost, leftovers gone, limits kept; an index is never damaged by a kill."""
    seed(tmp_path / "seed")
    trace = crash(tmp_path, "save")
    sealed = position(trace, "after rename .tmp-", f" {FRESH}")
    deleted = position(trace, f"after rename {SEEDS[2]}", "")
    written = position(trace, "before make_folder", "")
    rewritten = position(trace, f"before rename {SEEDS[2]}", "")
    for fatal in range(len(trace) + 1):
        data_dir = tmp_path / str(fatal)
        store = open_store(data_dir)
        listed = [row.id for row in store.list()]
        wanted = {SEEDS[1]}
        wanted |= {FRESH} if fatal >= sealed else {SEEDS[0]}
        wanted |= {SEEDS[2]} if fatal < deleted else set()
        step = trace[fatal] if fatal < len(trace) else "none"
        assert set(listed) == wanted, f"killed at step {fatal}, {step}"
        assert_sound(data_dir, store, listed)
        assert not (data_dir / "index.sqlite3.damaged").exists()
        allowed = {b"zero", b"one"} if fatal < written else {b"one", b"two"}
        if fatal >= rewritten:
            allowed = {b"two"}
        assert store.limits().get(KEY) in allowed, f"killed at step {fatal}, {step}"


def test_the_first_use_of_a_directory_survives_a_kill_at_every_step(tmp_path: Path) -> None:
    """As above where nothing exists: folders and index are made by the process that is killed."""
    trace = crash(tmp_path, "first")
    sealed = position(trace, "after rename .tmp-", f" {FRESH}")
    for fatal in range(len(trace) + 1):
        data_dir = tmp_path / str(fatal)
        store = open_store(data_dir)
        listed = [row.id for row in store.list()]
        assert listed == ([FRESH] if fatal >= sealed else []), f"killed at step {fatal}"
        assert_sound(data_dir, store, listed)
        assert not (data_dir / "index.sqlite3.damaged").exists()


def test_recovering_survives_a_kill_at_every_step(tmp_path: Path) -> None:
    """A crash while the leftovers of a crash are removed and a damaged index is replaced."""
    seed(tmp_path / "seed")
    incidents = tmp_path / "seed" / "incidents"
    for name in (f".tmp-{FRESH}-999999999-1", f".trash-{SEEDS[0]}-999999999-1"):
        (incidents / name).mkdir()
        (incidents / name / "series.json").write_bytes(b"[")
        (incidents / name / "stacks.json").write_bytes(b"[")
    (tmp_path / "seed" / "index.sqlite3").write_bytes(b"SQLite format 3\0 but not really" * 1000)
    trace = crash(tmp_path, "recover")
    assert any(name.startswith("amid remove .trash-") for name in trace)
    assert any(name.startswith("after rename index.sqlite3 index.sqlite3.damaged") for name in trace)
    for fatal in range(len(trace) + 1):
        data_dir = tmp_path / str(fatal)
        store = open_store(data_dir)
        listed = [row.id for row in store.list()]
        assert listed == SEEDS[::-1], f"killed at step {fatal}"
        assert len(listed) == KEEP
        assert_sound(data_dir, store, listed)
        assert (data_dir / "index.sqlite3.damaged").exists()
