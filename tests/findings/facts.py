"""Facts of made-up incidents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sentinel_agent.capture.base import Series, SeriesWindow
from sentinel_agent.findings.base import Facts
from sentinel_agent.profile.record import RecordBuilder
from tests.store.helpers import incident_of

if TYPE_CHECKING:
    from sentinel_agent.profile.record import ProfileRecord

LOOP = (("select", "/usr/lib/python3.11/selectors.py", 468),)
ROOTS = (
    ("_run_once", "/usr/lib/python3.11/asyncio/base_events.py", 1898),
    ("run_forever", "/usr/lib/python3.11/asyncio/base_events.py", 607),
    ("<module>", "app.py", 99),
)


def facts(metric: str = "cpu", **parts: Any) -> Facts:
    """Facts with these parts; all others are missing."""
    changes = parts.pop("incident", {})
    return Facts(incident=incident_of("an-id", metric=metric, **changes), **parts)


def readings(**metrics: list[float]) -> SeriesWindow:
    """One reading a second of each metric."""
    longest = max(len(values) for values in metrics.values())
    return SeriesWindow(
        0.0,
        float(longest),
        1.0,
        {
            name: Series("", [float(number) for number in range(len(values))], values)
            for name, values in metrics.items()
        },
    )


def timeline(*samples: tuple[tuple[tuple[str, str, int], ...], bool], period: float = 0.05) -> ProfileRecord:
    """Samples of one loop's thread, a period apart: the frames on top of the loop's own (innermost first), on a CPU or not."""
    builder = RecordBuilder(start=0.0, period=period)
    thread = builder.thread(1, "MainThread")
    for number, (frames, on_cpu) in enumerate(samples):
        stack = [builder.frame(*frame) for frame in (*frames, *ROOTS)]
        builder.add(thread, stack, offset=number * period, weight=period, on_cpu=on_cpu)
    return builder.build()
