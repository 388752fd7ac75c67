"""The health of the proxy's clusters, from what several workers say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.proxy.messages import VERSION, Batch, ClusterHealth, Hello
from sentinel_agent.tap.clusters import ClusterMeter
from sentinel_agent.tap.hub import WorkerView
from tests.proxy.support import bound
from tests.tap.test_tap import hub_on, until, worker_telling

if TYPE_CHECKING:
    from pathlib import Path

    from sentinel_agent.export.base import ClusterReading

NOW = 1_700_000_000.0


def saying(pid: int, *clusters: ClusterHealth) -> WorkerView:
    view = WorkerView(pid, Hello(VERSION, pid, "gateway", ()), None, 0.0)
    view.take(Batch(0.0, (), (), 0, 0, clusters=clusters), 0.0)
    return view


def test_a_server_is_as_the_worst_worker_sees_it() -> None:
    """Two workers differ: the server is out, the count is the lower one; a panic of one is a panic."""
    meter = ClusterMeter()
    well = ClusterHealth("back", 2, 2, False, (("a:1", True), ("b:1", True)))
    sick = ClusterHealth("back", 2, 1, True, (("a:1", True), ("b:1", False)))
    assert [each.healthy for each in meter.readings(saying(1, well), NOW, "here")] == [2]
    (reading,) = meter.readings(saying(2, sick), NOW + 1, "here")
    assert (reading.service, reading.cluster, reading.endpoints, reading.healthy) == ("gateway", "back", 2, 1)
    assert reading.panic
    assert reading.servers == (("a:1", True), ("b:1", False))


def test_once_a_second_and_nothing_of_workers_that_are_gone() -> None:
    """What comes sooner waits; a worker that has said nothing for ten seconds does not count."""
    meter = ClusterMeter()
    sick = ClusterHealth("back", 1, 0, False, (("a:1", False),))
    well = ClusterHealth("back", 1, 1, False, (("a:1", True),))
    assert list(meter.readings(saying(1, sick), NOW, "here"))
    assert not list(meter.readings(saying(2, well), NOW + 0.9, "here"))
    assert [each.healthy for each in meter.readings(saying(2, well), NOW + 1.1, "here")] == [0]
    assert [each.healthy for each in meter.readings(saying(2, well), NOW + 11, "here")] == [1]


def test_what_a_worker_says_is_bounded() -> None:
    """Thousands of clusters and servers with endless names."""
    servers = tuple((f"{n}" * 1000, True) for n in range(500))
    many = [ClusterHealth(f"c{n}" * 1000, 500, 500, False, servers) for n in range(1100)]
    found = list(ClusterMeter().readings(saying(1, *many), NOW, "here"))
    assert len(found) <= 1000
    assert all(len(each.cluster) <= 200 and len(each.servers) <= 64 for each in found)
    assert all(len(address) <= 200 for each in found for address, _ in each.servers)


async def test_a_real_worker_tells_the_health_of_its_clusters(tmp_path: Path) -> None:
    """One server, which is ejected."""
    path = tmp_path / "tap"
    meter, got = ClusterMeter(), list["ClusterReading"]()
    spare = bound()
    port = spare.getsockname()[1]
    spare.close()
    async with hub_on(path) as hub, worker_telling(path, port) as running:
        hub.on_records = lambda view, _: got.extend(meter.readings(view, NOW + len(got) + 1, "here"))
        await until(lambda: got)
        assert (got[-1].cluster, got[-1].endpoints, got[-1].healthy) == ("back", 1, 1)
        pool = running.worker.clusters["back"]
        pool.servers[0].record.until = running.worker.now() + 100
        pool.judge(running.worker.now())
        await until(lambda: got[-1].healthy == 0)
        assert got[-1].panic
        assert got[-1].servers == ((f"127.0.0.1:{port}", False),)
