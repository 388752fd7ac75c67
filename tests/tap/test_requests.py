"""All requests of the proxy's routes: what was counted between two seconds, and workers that begin anew."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.clock import SystemClock
from sentinel_agent.export.base import DURATION_BOUNDS, RequestDelta
from sentinel_agent.proxy.messages import VERSION, Batch, Hello
from sentinel_agent.proxy.stats import RouteStats, bucket, counts_of
from sentinel_agent.tap.hub import WorkerView
from sentinel_agent.tap.requests import RequestMeter
from tests.proxy.support import GET, OK, answering, upstream
from tests.tap.test_tap import hub_on, until, worker_telling

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1_700_000_000.0


class Worker:
    """A worker that is made up, and what was handed on of it."""

    def __init__(self, meter: RequestMeter, pid: int = 7) -> None:
        self.meter = meter
        self.view = WorkerView(pid, Hello(VERSION, pid, "gateway", ("all",)), None, 0.0)
        self.stats = RouteStats()

    def serve(self, *seconds: float, status: int = 200) -> None:
        for each in seconds:
            self.stats.requests += 1
            self.stats.classes[status // 100] += 1
            self.stats.latency[bucket(int(each * 1e6))] += 1

    def tell(self, at: float) -> list[RequestDelta]:
        self.view.take(Batch(at, (counts_of("web", "all", "back", self.stats),), (), 0, 0), at)
        return list(self.meter.deltas(self.view, NOW + at, "here"))


def test_differences_from_one_second_to_the_next() -> None:
    """The first batch only sets the mark; what comes sooner than a second waits for the next; no request is no item."""
    worker = Worker(RequestMeter())
    worker.serve(0.001)
    assert worker.tell(0.0) == []
    worker.serve(0.001, 0.3)
    assert worker.tell(0.5) == []
    worker.serve(20.0, status=504)
    (delta,) = worker.tell(1.25)
    assert (delta.service, delta.instance) == ("gateway", "here")
    assert (delta.listener, delta.route, delta.cluster) == ("web", "all", "back")
    assert (delta.since, delta.time) == (NOW, NOW + 1.25)
    assert delta.classes == (0, 0, 2, 0, 0, 1)
    assert sum(delta.buckets) == 3
    assert delta.buckets[0] == delta.buckets[-1] == 1
    assert 20.3 * 0.8 < delta.seconds < 20.3 * 1.2
    assert worker.tell(2.5) == []


def test_a_worker_that_begins_anew_sets_a_new_mark() -> None:
    """Its counters went back: nothing is handed on for that second, nothing negative ever."""
    meter = RequestMeter()
    worker = Worker(meter)
    worker.tell(0.0)
    worker.serve(*[0.001] * 10)
    assert sum(worker.tell(1.0)[0].buckets) == 10
    again = Worker(meter)
    again.serve(0.001)
    assert again.tell(2.0) == []
    again.serve(0.001)
    assert sum(again.tell(3.0)[0].buckets) == 1


@given(st.lists(st.floats(0, 4000), min_size=1, max_size=50))
def test_every_request_is_in_a_bucket_near_its_own(seconds: list[float]) -> None:
    """None is lost, and each is in the coarse bucket of its duration or of one at most 25 % longer."""
    worker = Worker(RequestMeter())
    worker.tell(0.0)
    worker.serve(*seconds)
    (delta,) = worker.tell(1.0)
    assert sum(delta.buckets) == len(seconds)
    below = 0
    for bound, count in zip(DURATION_BOUNDS, delta.buckets, strict=False):
        below += count
        assert (
            sum(each * 1.26 <= bound for each in seconds) <= below <= sum(each <= bound for each in seconds)
        )


def test_counts_of_a_hostile_worker() -> None:
    """Lists of any length and sign are nothing, or a sound item."""
    worker = Worker(RequestMeter())
    worker.tell(0.0)
    stats: Any = worker.stats
    worker.serve(1.0)
    stats.latency = [5] * 1000
    stats.classes = []
    (delta,) = worker.tell(1.0)
    assert len(delta.buckets) == 15
    stats.latency = [-1]
    assert worker.tell(2.0) == []


async def test_a_real_worker_is_counted_whole(tmp_path: Path) -> None:
    """Each request that was answered is in what is handed on, sampled or not."""
    path = tmp_path / "tap"
    meter, got = RequestMeter(), list[RequestDelta]()
    async with hub_on(path) as hub, upstream(answering(OK)) as port, worker_telling(path, port) as running:
        clock = SystemClock()
        hub.on_records = lambda view, _: got.extend(meter.deltas(view, clock.wall(), "here"))
        await until(lambda: meter._before)
        for _ in range(5):
            await running.ask(GET)
        await until(lambda: sum(sum(each.buckets) for each in got) == 5)
        assert hub.worker(os.getpid()) is not None
    assert {(each.listener, each.route) for each in got} == {("web", "all")}
    assert sum(each.classes[2] for each in got) == 5
