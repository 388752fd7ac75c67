"""Programs that the tests run as real processes: `python -m tests.store.children VERB ARGUMENT...`.

`crash BASE SCENARIO` copies BASE/seed, if it is there, to BASE/0, BASE/1, ... and plays the scenario on each in a child that kills
itself at step 0, 1, ... until one gets through. BASE/trace.json then holds the names of the steps.
`write DATA_DIR COUNT`, `read DATA_DIR ROUNDS`: one of several processes on one data directory.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections import Counter
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from sentinel_agent.clock import SystemClock
from sentinel_agent.config.settings import StoreSettings
from sentinel_agent.errors import NoSuchIncidentError
from sentinel_agent.store.files import Files
from sentinel_agent.store.ids import new_id
from sentinel_agent.store.store import Store
from tests.store.helpers import START, save

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

KEEP = 3
SEEDS = [new_id(START + number, number) for number in range(KEEP)]
FRESH = new_id(START + 100, 100)
KEY = ("gateway/host-a/main", "cpu-spike")


class FixedClock(SystemClock):
    """The moment of the newest incident."""

    def wall(self) -> float:
        return START + 100


class CrashFiles(Files):
    """Kills its process with SIGKILL at one step: before, in the middle of, or after a change of the disk."""

    def __init__(self, fatal: int | None) -> None:
        self.fatal = fatal
        self.trace: list[str] = []

    def step(self, name: str) -> None:
        if self.fatal == len(self.trace):
            os.kill(os.getpid(), signal.SIGKILL)
        self.trace.append(name)

    @contextmanager
    def around(self, name: str, *paths: Path) -> Iterator[None]:
        what = " ".join([name, *(path.name for path in paths)]).replace(str(os.getpid()), "PID")
        self.step(f"before {what}")
        yield
        self.step(f"after {what}")

    def make_folder(self, path: Path) -> None:
        with self.around("make_folder", path):
            super().make_folder(path)

    def ensure_folder(self, path: Path) -> None:
        with self.around("ensure_folder", path):
            super().ensure_folder(path)

    def write(self, path: Path, data: bytes) -> None:
        with self.around("write", path):
            super().write(path, data[: len(data) // 2])
            self.step(f"amid write {path.name}")
            with path.open("ab") as file:
                file.write(data[len(data) // 2 :])

    def fsync(self, path: Path) -> None:
        with self.around("fsync", path):
            super().fsync(path)

    def rename(self, source: Path, destination: Path) -> None:
        with self.around("rename", source, destination):
            super().rename(source, destination)

    def remove(self, path: Path) -> None:
        with self.around("remove", path):
            if path.is_dir():
                for file in sorted(path.iterdir()):
                    file.unlink()
                    self.step(f"amid remove {path.name}")
            super().remove(path)

    def connect(self, path: Path, *, create: bool) -> sqlite3.Connection:
        with self.around("connect", path):
            db = super().connect(path, create=create)
        db.set_trace_callback(lambda sql: self.step(f"before sql {sql.split()[0]}"))
        return db


def open_store(data_dir: Path, files: Files | None = None, keep: int = KEEP) -> Store:
    settings = StoreSettings(min_free_bytes=0, max_incidents=keep)
    return Store(data_dir, settings, FixedClock(), files=files).open()


def scenario_save(data_dir: Path, files: CrashFiles) -> None:
    """A whole life: open, remember limits, save one incident (one more than is kept), delete another."""
    store = open_store(data_dir, files)
    store.put_limits({KEY: b"one"})
    save(store, START + 100, incident_id=FRESH)
    store.list()
    store.put_limits({KEY: b"two"})
    store.delete(SEEDS[2])
    store.list()


def scenario_first(data_dir: Path, files: CrashFiles) -> None:
    """The first incident of all."""
    store = open_store(data_dir, files)
    save(store, START + 100, incident_id=FRESH)
    store.list()


def scenario_recover(data_dir: Path, files: CrashFiles) -> None:
    """Opening after a crash, with leftovers and a damaged index."""
    open_store(data_dir, files).list()


def crash(base: Path, scenario: str) -> int:
    play = {"save": scenario_save, "first": scenario_first, "recover": scenario_recover}[scenario]
    for fatal in count():
        data_dir = base / str(fatal)
        if (base / "seed").exists():
            shutil.copytree(base / "seed", data_dir)
        pid = os.fork()
        if pid == 0:
            files = CrashFiles(fatal)
            play(data_dir, files)
            (base / "trace.json").write_text(json.dumps(files.trace))
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if os.waitstatus_to_exitcode(status) == 0:
            return 0
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            return 1
    return 1


def write(data_dir: Path, total: int) -> int:
    """Save incidents and one limit record of its own for each."""
    store = Store(data_dir, StoreSettings(min_free_bytes=0, max_incidents=20), SystemClock()).open()
    for number in range(total):
        save(store, SystemClock().wall())
        store.put_limits({(f"role-{os.getpid()}", f"rule-{number}"): b"%d" % number})
    statistics = store.statistics()
    sys.stdout.write(json.dumps({"dropped": statistics.dropped, "last_error": statistics.last_error}))
    return 0


def read(data_dir: Path, rounds: int) -> int:
    """List and read everything, many times; what is listed must be whole or gone, never in between."""
    store = Store(data_dir, StoreSettings(), SystemClock())
    seen: Counter[str] = Counter()
    for _ in range(rounds):
        for row in store.list():
            try:
                incident = store.read(row.id)
                sizes = [(store.path(row.id) / each.name).stat().st_size for each in incident.artifacts]
                seen["whole" if sizes == [each.bytes for each in incident.artifacts] else "torn"] += 1
            except (NoSuchIncidentError, FileNotFoundError):
                seen["gone"] += 1
        seen["unreadable"] += len(store.unreadable())
    sys.stdout.write(json.dumps(seen))
    return 0


if __name__ == "__main__":
    verb, where, argument = sys.argv[1:]
    if verb == "crash":
        sys.exit(crash(Path(where), argument))
    sys.exit({"write": write, "read": read}[verb](Path(where), int(argument)))
