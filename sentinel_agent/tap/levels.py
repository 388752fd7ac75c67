"""How loaded the agent's targets are, for the adaptive limit of the proxy's workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sentinel_agent.proxy.messages import TargetLevel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sentinel_agent.sampler import TargetSeries

METRICS: Final = ("cpu", "cpu_limit", "rss_limit", "throttled")
"""Readings in percent of what there is."""


def levels_of(targets: Iterable[TargetSeries], workers: frozenset[int]) -> Iterator[TargetLevel]:
    """The latest readings of each target as shares of 1; not of `workers`, which know their own, and are not to pay for another's."""
    for series in targets:
        if series.target.pid in workers:
            continue
        for metric in METRICS:
            reading = series.latest.get(metric)
            if reading is not None and reading.value is not None:
                target = series.target
                words = f"{target.service or target.name} (pid {target.pid})"
                yield TargetLevel(words, metric, reading.value / 100)
