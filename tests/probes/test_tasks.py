"""The count of asyncio tasks, against what the process itself counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.probes.base import Moment
from sentinel_agent.probes.live import ATTEMPTS, LiveReader
from sentinel_agent.probes.registry import build_probes, load_registry
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
