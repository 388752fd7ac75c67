"""Who is fit to be sent requests: active checks, ejection by what requests came to, and panic. Pure state machines.

Three verdicts on a server, each with its own flag, in Envoy's words for host health:

    active check   healthy --unhealthy_threshold failures in a row--> failed_active_health_check
                           <--healthy_threshold successes in a row---
    ejection       in --rate too high in a window--> failed_outlier_check --its time is over--> in
    panic          fewer than healthy_panic_threshold percent are fit: all are sent requests (Envoy, "Panic threshold")

The first active check decides alone: a server that answers it is in at once, one that does not is out. Ejection is that
of MOSN's fault tolerance (pkg/filter/stream/faulttolerance/regulator/measure_model.go): the share of failures of a server
over that of all, in windows of time, servers with too few requests left out; at most a share of the servers is out. Its
time grows as in Envoy's outlier detection: by one base time with every ejection, and shrinks with every window in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from sentinel_agent.proxy.config_upstream import HealthCheck, OutlierDetection


class ActiveHealth:
    """What the active checks say of one server."""

    __slots__ = ("_known", "_row", "healthy")

    def __init__(self) -> None:
        self.healthy = True
        self._known = False
        self._row = 0

    def checked(self, good: bool, spec: HealthCheck) -> bool:
        """Take the outcome of a check; whether the verdict changed."""
        if not self._known:
            self._known = True
            changed, self.healthy = good != self.healthy, good
            return changed
        if good == self.healthy:
            self._row = 0
            return False
        self._row += 1
        if self._row < (spec.healthy_threshold if good else spec.unhealthy_threshold):
            return False
        self._row = 0
        self.healthy = good
        return True


def next_check(spec: HealthCheck, random: Random, *, first: bool = False) -> float:
    """Seconds until the next check; the first ones are spread over the interval's start, at most a second."""
    if first:
        return min(1.0, spec.interval) * random.random()
    return spec.interval + spec.interval_jitter * random.random()


@dataclass(slots=True)
class Record:
    """What ejection remembers of a server: requests and failures of this window, and what became of it."""

    calls: int = 0
    failures: int = 0
    ejections: int = 0
    until: float | None = None

    @property
    def ejected(self) -> bool:
        """Whether it is out."""
        return self.until is not None


def end_window(records: Sequence[Record], spec: OutlierDetection, now: float) -> bool:
    """A window of time is over: let back whose time is over, eject who failed too often; whether anything changed."""
    changed = let_back(records, now)
    measured = [each for each in records if not each.ejected and each.calls >= spec.request_volume]
    calls = sum(each.calls for each in measured)
    failures = sum(each.failures for each in measured)
    out = sum(each.ejected for each in records)
    most = max(1, len(records) * spec.max_ejection_percent // 100) if len(records) > 1 else 0
    for each in sorted(measured, key=lambda each: each.failures / each.calls, reverse=True):
        bad = _too_often(each, failures / calls, spec)
        if bad and out < most:
            each.ejections += 1
            each.until = now + min(spec.base_ejection_time * each.ejections, spec.max_ejection_time)
            out += 1
            changed = True
        elif not bad:
            each.ejections = max(0, each.ejections - 1)
    for each in records:
        each.calls = each.failures = 0
    return changed


def _too_often(record: Record, mean: float, spec: OutlierDetection) -> bool:
    rate = record.failures / record.calls
    return (
        rate > 0
        and 100 * rate >= spec.failure_percentage_threshold
        and rate >= spec.exception_rate_multiple * mean
    )


def let_back(records: Sequence[Record], now: float) -> bool:
    """End the ejections whose time is over; whether there were any."""
    back = [each for each in records if each.until is not None and each.until <= now]
    for each in back:
        each.until = None
    return bool(back)


class Judged(Protocol):
    """A server as its fitness is decided. `usable` is what balancers go by."""

    usable: bool

    @property
    def fit(self) -> bool:
        """Neither failed a check nor ejected."""
        ...


def judge(servers: Sequence[Judged], panic_percent: float) -> bool:
    """Set `usable` of all servers; whether it is panic: too few are fit, and all are used."""
    fit = sum(each.fit for each in servers)
    panic = fit < len(servers) and 100 * fit < panic_percent * len(servers)
    for each in servers:
        each.usable = panic or each.fit
    return panic
