"""What workers are told of the agent's targets."""

from __future__ import annotations

from sentinel_agent.core.model import Reading, Role, TargetId
from sentinel_agent.probes.registry import ProbeSet
from sentinel_agent.proxy.messages import TargetLevel
from sentinel_agent.sampler import TargetSeries
from sentinel_agent.tap.levels import levels_of
from sentinel_agent.testing import make_target


def test_targets_are_told_as_shares_and_workers_are_not() -> None:
    """A reading that failed is none; another worker's load is not this one's."""
    shop, worker = (make_target(TargetId(pid, 1), Role("shop", "a")) for pid in (7, 8))
    series = [TargetSeries(each, ProbeSet((), None), 4096) for each in (shop, worker)]  # type: ignore[arg-type]  # no reader is needed
    for each in series:
        each.latest = {
            "cpu": Reading("cpu", 1.0, 93.0),
            "cpu_limit": Reading("cpu_limit", 1.0, None, "gone"),
            "rss": Reading("rss", 1.0, 1e9),
        }
    assert list(levels_of(series, frozenset({8}))) == [TargetLevel("shop (pid 7)", "cpu", 0.93)]
