"""The backlog and its spool: bounded bytes, first in first out, an exact account, and disks that fail."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from sentinel_agent.export.backlog import Backlog, Losses
from sentinel_agent.export.spool import Batch, Spool

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def batch(number: int, size: int = 100, items: int = 1) -> Batch:
    return Batch(number.to_bytes(4, "big") * (size // 4), items, float(number), float(number))


def numbers(backlog: Backlog) -> list[int]:
    """Deliver everything; the numbers of the batches in the order in which they came out."""
    found = []
    while (head := backlog.head()) is not None:
        found.append(int.from_bytes(head.body[:4], "big"))
        backlog.done()
    return found


def test_memory_first_then_disk_then_the_oldest_goes(tmp_path: Path) -> None:
    """The newest are whole, the loss is counted item by item, and its stretch of time is known."""
    losses = Losses()
    backlog = Backlog(300, Spool(tmp_path, 500), losses)
    for number in range(20):
        backlog.put(batch(number, items=10))
        assert backlog.bytes <= 300 + 500
    assert backlog.items == 80
    assert numbers(backlog) == list(range(12, 20))
    counts, (stretch,) = losses.known()
    assert counts == {"spool_full": 120}
    assert (stretch.items, stretch.since, stretch.until) == (120, 0.0, 11.0)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["put", "done", "lose"]), st.integers(1, 60)), max_size=60))
def test_what_goes_in_comes_out_or_is_counted(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    """Whatever is put, delivered and given up: put = delivered + lost + waiting, in items, and in order."""
    losses = Losses()
    backlog = Backlog(300, Spool(tmp_path_factory.mktemp("spool"), 600), losses)
    put = delivered = 0
    last = -1
    for number, (step, items) in enumerate(steps):
        if step == "put":
            backlog.put(batch(number, items * 8, items))
            put += items
        elif (head := backlog.head()) is not None:
            found = int.from_bytes(head.body[:4], "big")
            assert found > last
            last = found
            if step == "done":
                delivered += head.items
                backlog.done()
            else:
                backlog.lose("given up")
        assert backlog.spooled_bytes <= 600
        assert put == delivered + sum(losses.known()[0].values()) + backlog.items
    assert len(losses.known()[1]) <= 16


def test_the_spool_is_taken_up_after_a_crash(tmp_path: Path) -> None:
    """What a killed agent had on disk is there; half a file and a spoilt one are not delivered, and the latter is counted."""
    spool = Spool(tmp_path / "spool", 10_000)
    spool.open()
    for number in range(4):
        spool.put(batch(number))
    (tmp_path / "spool" / "0000000000000009.part").write_bytes(b"half")
    (tmp_path / "spool" / "notes.txt").write_bytes(b"a stranger's")
    second = sorted((tmp_path / "spool").glob("*.batch"))[1]
    second.write_bytes(b"x" * 100)
    losses = Losses()
    backlog = Backlog(1000, Spool(tmp_path / "spool", 10_000), losses)
    backlog.put(batch(7))
    assert numbers(backlog) == [0, 2, 3, 7]
    assert losses.known()[0] == {"spool_damaged": 1}
    assert [path.name for path in (tmp_path / "spool").iterdir()] == ["notes.txt"]


def test_a_full_disk_costs_batches_not_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be written is counted as `disk_error`, the error is shown, memory stays bounded."""
    losses = Losses()
    backlog = Backlog(250, Spool(tmp_path, 10_000), losses)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Spool, "put", full)
    for number in range(5):
        backlog.put(batch(number))
    assert losses.known()[0] == {"disk_error": 3}
    assert backlog.disk_error == "no space left on the disk"
    assert numbers(backlog) == [3, 4]


def test_a_folder_that_cannot_be_made_means_no_spool(tmp_path: Path) -> None:
    """The exporter works from memory alone and says so."""
    (tmp_path / "file").write_bytes(b"")
    backlog = Backlog(250, Spool(tmp_path / "file" / "spool", 10_000), Losses())
    backlog.put(batch(1))
    assert "nothing is spooled" in backlog.disk_error
    assert numbers(backlog) == [1]


def test_a_batch_larger_than_the_memory_is_still_tried(tmp_path: Path) -> None:
    """Without a disk a batch that is too large for the bound alone is kept until a newer one comes."""
    losses = Losses()
    backlog = Backlog(100, None, losses)
    backlog.put(batch(1, 400))
    assert backlog.head() is not None
    backlog.put(batch(2, 40))
    assert numbers(backlog) == [2]
    assert losses.known()[0] == {"backlog_full": 1}


def test_a_spool_removed_by_hand_is_made_again(tmp_path: Path) -> None:
    """Somebody cleans the data directory while a backend is down: the batches there are counted, later ones are kept."""
    losses = Losses()
    backlog = Backlog(100, Spool(tmp_path / "spool", 10_000), losses)
    for number in range(3):
        backlog.put(batch(number))
    for path in (tmp_path / "spool").iterdir():
        path.unlink()
    (tmp_path / "spool").rmdir()
    backlog.put(batch(3))
    assert numbers(backlog) == [2, 3]
    assert losses.known()[0] == {"spool_damaged": 2}
