"""The recording on disk: outlives a kill, keeps its bounds, gives up on a bad disk without a word to the ring."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.core.model import Role
from sentinel_agent.recorder.ring import Ring
from sentinel_agent.recorder.spool import FOLDER, Spool, folder_name
from sentinel_agent.recorder.window import window
from tests.recorder.support import (
    PERIOD,
    ROLE,
    STACK,
    START,
    TARGET,
    make_ring,
    put_in,
    recorded,
    sample,
    tick,
)

if TYPE_CHECKING:
    from sentinel_agent.recorder.ring import Batch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder that is not there yet."""
    return tmp_path / "state" / "recorder"


def batches(seconds: int, *, run: int = 1, role: Role = ROLE, wide: int = 1) -> list[Batch]:
    """What a ring gives out in some seconds, about one segment a second; `wide` threads with new names all the time."""
    ring, answer = Ring(role, TARGET, run, max_age=8.0, spooled=True), []
    for n in range(seconds * 19):
        ring.put(tick(n, [sample(((f"leaf_{n}_{w}", "x.py", w), *STACK), w) for w in range(wide)]))
        answer += ring.take() if n % 19 == 18 else []
    return answer


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def bytes_in(root: Path) -> int:
    return sum(path.stat().st_size for path in files(root))


def write_all(spool: Spool, given: list[Batch], now: float = 0.0) -> list[bool]:
    return [spool.write(batch, now) for batch in given]


def test_what_was_written_is_read_back(root: Path) -> None:
    """Every sample, by a spool that did not write it; folders and files are the owner's alone."""
    ring, ticks = (
        make_ring(spooled=True, max_age=8.0),
        [tick(n, [sample(STACK[n % 5 :])]) for n in range(190)],
    )
    spool = Spool(root)
    for one in ticks:
        ring.put(one)
        assert all(write_all(spool, ring.take()))
    assert recorded(Spool(root).read(ROLE)) == put_in(ticks)
    assert list(Spool(root).read(Role("other", "host-1"))) == []
    assert {stat.S_IMODE(path.stat().st_mode) for path in files(root)} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (root, *root.iterdir())} == {0o700}
    assert spool.statistics().bytes == bytes_in(root)


@pytest.mark.parametrize("already", [3, 40])
def test_the_window_survives_a_kill(root: Path, already: int) -> None:
    """A process that records is killed with SIGKILL: all that it had reported as written is there, and a new ring goes on."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.recorder.child", str(root)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    with child, child.stdout:
        lines = [child.stdout.readline() for _ in range(already)]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.readlines()
    assert child.returncode == -signal.SIGKILL
    reported = int([line for line in lines if line.endswith(b"\n")][-1])
    spool = Spool(root, min_free_bytes=0)
    held = recorded(spool.read(ROLE))
    assert len({entry[0] for entry in held}) > reported
    assert len(held) == 2 * len({entry[0] for entry in held})
    ring = make_ring(run=2, spooled=True)
    until = START + (reported + 20_000) * PERIOD
    ring.put(msgspec.structs.replace(tick(0, [sample()]), wall=until - 1))
    assert all(write_all(spool, ring.take()))
    made = window([*ring.snapshot(), *spool.read(ROLE)], START, until)
    assert made.damaged == 0
    assert made.record.seconds == pytest.approx(2 * len(held) / 2 * PERIOD + PERIOD)


def test_a_torn_last_record_is_skipped(root: Path) -> None:
    """A file that ends amid a block, as a kill or a lost machine leaves it: the blocks before it are there."""
    ring, spool = make_ring(spooled=True), Spool(root)
    for second in range(3):
        for n in range(second * 19, second * 19 + 19):
            ring.put(tick(n, [sample()]))
        write_all(spool, ring.take())
    (path,) = files(root)
    path.write_bytes(path.read_bytes()[:-7])
    assert len(recorded(Spool(root).read(ROLE))) == 38


def test_a_role_keeps_its_bytes(root: Path) -> None:
    """The oldest segments go, the newest stay, and at no moment is there more than allowed."""
    spool = Spool(root, max_role_bytes=64 * 1024)
    given = batches(60, wide=4)
    for batch in given:
        assert spool.write(batch, 0.0)
        assert bytes_in(root) <= 64 * 1024
    assert spool.statistics().removed > 10
    assert bytes_in(root) > 32 * 1024
    assert next(iter(spool.read(ROLE))).endswith(given[-1].data)


def test_a_segment_that_grows_keeps_the_bytes_too(root: Path) -> None:
    """Segments of 50 s, appended to each second: what went before makes room, at no moment is there too much."""
    spool, ring = Spool(root, max_role_bytes=128 * 1024), make_ring(spooled=True, max_age=400.0)
    for n in range(19 * 120):
        ring.put(tick(n, [sample(((f"leaf_{n}", "x.py", 1), *STACK))]))
        if n % 19 == 18:
            write_all(spool, ring.take())
            assert bytes_in(root) <= 128 * 1024
    assert spool.statistics().removed > 0
    assert list(spool.read(ROLE))


def test_all_roles_together_keep_their_bytes(root: Path) -> None:
    """Twenty roles, written in turn: together never over the bound; a folder that is empty goes too."""
    roles = [Role("gateway", "host-1", f"worker-{n}") for n in range(20)]
    spool = Spool(root, max_bytes=64 * 1024)
    for n, role in enumerate(roles):
        write_all(spool, batches(4, role=role))
        for path in files(root):
            if folder_name(role) in str(path):
                os.utime(path, (n, n))
        assert bytes_in(root) <= 64 * 1024
    assert list(spool.read(roles[-1]))
    assert not list(spool.read(roles[0]))
    assert len(list(root.iterdir())) < 20


def test_old_segments_go(root: Path) -> None:
    """A role that was never seen again leaves nothing behind for ever, not even its folder."""
    spool, gone = Spool(root, max_age=100.0), Role("gone", "host-1")
    write_all(spool, batches(3, role=gone))
    for path in files(root):
        os.utime(path, (1000.0, 1000.0))
    assert list(spool.read(gone, since=1000.0))
    assert not list(spool.read(gone, since=1010.0))
    write_all(spool, batches(1), now=1101.0)
    assert [path.name for path in root.iterdir()] == [folder_name(ROLE)]


def test_a_batch_larger_than_the_bound_is_not_written(root: Path) -> None:
    """Said so and counted; nothing of it stays."""
    spool = Spool(root, max_role_bytes=100)
    assert write_all(spool, batches(1)) == [False]
    assert bytes_in(root) == 0
    assert "leave no room" in str(spool.statistics().error)


def test_a_disk_without_space_stops_spooling_only(root: Path) -> None:
    """Below the free bytes nothing is written; each batch is counted."""
    spool = Spool(root, min_free_bytes=2**62)
    assert not any(write_all(spool, batches(3)))
    assert spool.statistics().failed == len(batches(3))
    assert files(root) == []


def test_a_write_that_fails_half_way_is_undone_and_the_next_segment_is_tried(root: Path) -> None:
    """The kernel refuses to make a file longer (EFBIG): what was there stays readable, the rest of it is given up."""
    spool, ring = Spool(root), make_ring(spooled=True, max_age=400.0)
    for n in range(19):
        ring.put(tick(n, [sample()]))
    (begin,) = ring.take()
    assert spool.write(begin, 0.0)
    ring.put(tick(19, [sample(tuple((f"name_{n}", "x.py", n) for n in range(300)))]))
    (more,) = ring.take()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(begin.data) + 100, limits[1]))
    try:
        assert not spool.write(more, 0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert bytes_in(root) == len(begin.data)
    assert not spool.write(more, 0.0), "a gap inside a segment would leave names out"
    assert len(recorded(spool.read(ROLE))) == 19
    assert spool.statistics().failed == 2
    assert "File too large" in str(spool.statistics().error)
    assert all(write_all(spool, batches(2, run=2)))


def test_a_folder_that_is_removed_comes_back(root: Path) -> None:
    """An operator clears the data directory: the rest of the segment fails, the next one is there."""
    spool, given = Spool(root), batches(3)
    assert spool.write(given[0], 0.0)
    shutil.rmtree(root)
    continued = replace(given[0], first=False)
    assert not spool.write(continued, 0.0)
    assert spool.write(given[1], 0.0)


def test_what_is_not_ours_is_left_alone(root: Path, tmp_path: Path) -> None:
    """Other files, folders, links, pipes and garbage under our names are neither read, followed nor removed for links."""
    spool = Spool(root, max_age=1.0)
    write_all(spool, batches(2))
    folder, precious = root / folder_name(ROLE), tmp_path / "precious"
    precious.write_bytes(b"x" * 100)
    (root / "notes.txt").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    (folder / f"{3:016x}-{0:08x}.seg").symlink_to(precious)
    os.mkfifo(folder / f"{4:016x}-{0:08x}.seg")
    (folder / f"{5:016x}-{0:08x}.seg").write_bytes(b"garbage")
    (root / ("link-" + "0" * 16)).symlink_to(tmp_path)
    assert len(recorded(spool.read(ROLE))) == 38
    write_all(spool, batches(1, run=9), now=1e12)
    assert precious.read_bytes() == b"x" * 100
    assert (root / "notes.txt").exists()
    assert (folder / "notes.txt").exists()
    assert len(recorded(spool.read(ROLE))) == 19


def test_a_link_in_the_place_of_a_role_is_not_followed(root: Path, tmp_path: Path) -> None:
    """Nothing is written where it points to."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    root.mkdir(parents=True)
    (root / folder_name(ROLE)).symlink_to(elsewhere)
    assert write_all(Spool(root), batches(1)) == [False]
    assert files(elsewhere) == []


TEXT = st.text(min_size=1, max_size=100)


@given(TEXT, TEXT, TEXT)
def test_a_folder_name_is_safe(service: str, instance: str, worker: str) -> None:
    """One part of a path, of bounded length, for whatever a service is called; other roles have other names."""
    name = folder_name(Role(service, instance, worker))
    assert "/" not in name
    assert name.isascii()
    assert len(name) <= 97
    assert name != folder_name(Role(service + "/" + instance, worker, "main"))
    assert FOLDER.fullmatch(name)
