"""The count of asyncio tasks, against what the process itself counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from sentinel_agent.probes.base import Moment, Subject
from sentinel_agent.probes.live import ATTEMPTS, LiveReader
from sentinel_agent.probes.registry import build_probes, load_registry
from sentinel_agent.probes.tasks import BUDGET, TasksProbe
from sentinel_agent.target.identity import identify
from tests.probes.subjects import target_of
from tests.target.fakeproc import line, running, started, tell

if TYPE_CHECKING:
    from sentinel_agent.core.model import Reading

NOW = Moment(1.0, 1.0)
SERVICE = """
import asyncio, sys
async def wait(): await asyncio.Event().wait()
async def main():
    kept = []
    while True:
        kept += [asyncio.create_task(wait()) for _ in range(100)]
        await asyncio.sleep(0)
        print(len(asyncio.all_tasks()), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
asyncio.run(main())
"""


def tasks_reading(pid: int, *, opened: bool = True) -> list[Reading]:
    """What the probe answers, with the reader opened or not."""
    with build_probes(target_of(pid), load_registry([])) as found:
        if opened:
            found.subject.reader.open()
        (probe,) = (probe for probe in found.probes if probe.metrics == ("tasks",))
        return list(probe.read(NOW))


def test_the_count_is_that_of_the_process_itself() -> None:
    """Before and after a hundred more tasks the reading equals `len(asyncio.all_tasks())`."""
    with running(SERVICE) as child:
        own = int(line(child))
        assert [reading.value for reading in tasks_reading(child.pid)] == [own]
        tell(child, "more")
        more = int(line(child))
        assert more == own + 100
        assert [reading.value for reading in tasks_reading(child.pid)] == [more]


def test_without_asyncio_there_is_no_reading() -> None:
    """A process that never loaded asyncio has neither zero tasks nor an error."""
    with running("print('up', flush=True); input()") as child:
        line(child)
        assert tasks_reading(child.pid) == []


def test_until_the_reader_is_open_the_reading_says_so() -> None:
    """The probe waits for nobody and invents nothing."""
    with running("print('up', flush=True); input()") as child:
        line(child)
        (reading,) = tasks_reading(child.pid, opened=False)
    assert reading.value is None
    assert reading.error == "the reader of its memory is not open yet"


def test_what_is_no_python_is_given_up_with_the_reason() -> None:
    """A process without CPython is tried a few times, since it may be starting, and then left alone."""
    with started(["sleep", "60"]) as other:
        reader = LiveReader(identify(other.pid))
        attempts = 0
        while reader.wanted:
            reader.open()
            attempts += 1
        assert attempts == ATTEMPTS
        assert reader.interpreter is None
        assert "CPython" in reader.why_not


def test_a_process_that_is_gone_is_not_tried_again() -> None:
    """The end of a process is final."""
    with started(["sleep", "60"]) as other:
        reader = LiveReader(identify(other.pid))
        other.kill()
        other.wait()
        reader.open()
        assert not reader.wanted
        reader.close()
        assert reader.why_not == "the process has ended"


class _Walked:
    """A reader of a target that has many tasks, of which each costs `cost` seconds to walk over."""

    def __init__(self, tasks: int, cost: float) -> None:
        self.tasks, self.cost = tasks, cost
        self.spent = 0.0
        self.task_steps = 0
        self._reached = 0

    def task_count(self, most: int) -> int | None:
        self.task_steps = min(most, self.tasks - self._reached)
        self.spent += self.task_steps * self.cost
        self._reached += self.task_steps
        if self._reached < self.tasks:
            return None
        self._reached = 0
        return self.tasks


def walked_probe(target: _Walked) -> TasksProbe:
    """A probe of that target; its CPU clock is what the target's reading has cost."""
    proc = SimpleNamespace(stat=lambda: SimpleNamespace(ended=False))
    subject = SimpleNamespace(reader=SimpleNamespace(interpreter=target), proc=proc)
    return TasksProbe(cast(Subject, subject), lambda: target.spent)


@pytest.mark.parametrize("cost", [2e-7, 1e-6, 5e-6])
@pytest.mark.parametrize("interval", [0.1, 1.0, 5.0])
def test_counting_keeps_to_its_budget_however_many_tasks_there_are(cost: float, interval: float) -> None:
    """A hundred thousand tasks cost no more CPU a second than BUDGET, once their cost is known."""
    target = _Walked(100_000, cost)
    probe = walked_probe(target)
    probe.read(Moment(0.0, 0.0))
    first, ticks = target.spent, 200
    for tick in range(1, ticks + 1):
        probe.read(Moment(tick * interval, tick * interval))
    least = 500 * cost / interval  # some are always counted, so that a count ends
    assert (target.spent - first) / (ticks * interval) <= max(BUDGET, least) * 1.001


def test_between_two_counts_the_last_one_is_given_with_its_age() -> None:
    """No reading before the first count is done; then at every tick, late by the time since it was."""
    target = _Walked(5000, 1e-6)
    probe = walked_probe(target)
    seen: list[tuple[float, float] | None] = []
    for tick in range(8):
        readings = probe.read(Moment(float(tick), float(tick)))
        seen += [(one.value or 0.0, one.late) for one in readings] or [None]
    assert seen == [None, None, (5000, 0.0), (5000, 1.0), (5000, 2.0), (5000, 0.0), (5000, 1.0), (5000, 2.0)]
