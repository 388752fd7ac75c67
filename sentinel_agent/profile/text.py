"""A record in words, for `incidents show`: the hottest functions, and identical stacks grouped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sentinel_agent.core.units import format_duration
from sentinel_agent.profile.names import frame_label, printable, thread_label
from sentinel_agent.profile.views import hottest

if TYPE_CHECKING:
    from collections.abc import Callable

    from sentinel_agent.profile.record import ProfileRecord

_WIDEST = 160  # characters of a name that is shown
_LEAST_SHARE = 0.0005  # rounds to 0.1 %
_DEEPEST = 40  # frames of a stack that are shown


@dataclass(frozen=True, slots=True)
class StackGroup:
    """Samples with one stack: `frames` and `threads` are labels, safe to show; frames are innermost first."""

    count: int
    threads: tuple[str, ...]
    frames: tuple[str, ...]


def grouped(record: ProfileRecord) -> tuple[StackGroup, ...]:
    """Identical stacks, whichever thread has them, the most frequent first."""
    counts: dict[tuple[int, ...], int] = {}
    threads: dict[tuple[int, ...], set[int]] = {}
    for sample in record.samples:
        counts[sample.stack] = counts.get(sample.stack, 0) + sample.count
        threads.setdefault(sample.stack, set()).add(sample.thread)
    frames = [_label(frame_label(frame)) for frame in record.frames]
    names = [_label(thread_label(thread)) for thread in record.threads]
    return tuple(
        StackGroup(
            count=counts[stack],
            threads=tuple(names[index] for index in sorted(threads[stack])),
            frames=tuple(frames[index] for index in stack),
        )
        for stack in sorted(counts, key=lambda stack: (-counts[stack], stack))
    )


def format_hottest(
    record: ProfileRecord, limit: int = 10, worth: Callable[[str], bool] = lambda _: True
) -> str:
    """A table of the hottest functions: own share, share with callees, name with its hottest line.

    A function that only calls others is left out unless its file is `worth` it.
    """
    if not record.samples:
        return "no thread was running while the profile was taken\n"
    head = f"{format_duration(record.seconds)} in " if record.seconds > 0 else ""
    readings = sum(sample.count for sample in record.samples)
    lines = [f"{head}{readings} samples, {record.lost} lost", "  self  total  function"]
    shown = [hot for hot in hottest(record, 10 * limit) if hot.self_share >= _LEAST_SHARE or worth(hot.file)]
    for hot in shown[:limit]:
        place = f" ({hot.file}:{hot.line})" if hot.line else f" ({hot.file})" if hot.file else ""
        name = _label(f"{hot.function}{place}")
        lines.append(f"{100 * hot.self_share:5.1f}% {100 * hot.total_share:5.1f}%  {name}")
    return "\n".join(lines) + "\n"


def format_stacks(record: ProfileRecord, limit: int | None = 10) -> str:
    """The `limit` most frequent stacks (None: all), each once with its count and whose it is."""
    groups = grouped(record)
    shown = groups if limit is None else groups[:limit]
    lines: list[str] = []
    for group in shown:
        whose = ", ".join(group.threads[:5]) + (
            f" and {len(group.threads) - 5} more" if group.threads[5:] else ""
        )
        lines.append(f"{group.count} x {whose}")
        lines += [f"    {frame}" for frame in group.frames[:_DEEPEST]]
        if len(group.frames) > _DEEPEST:
            lines.append(f"    ... {len(group.frames) - _DEEPEST} more frames")
    if len(shown) < len(groups):
        lines.append(f"... {len(groups) - len(shown)} more groups")
    return "\n".join(lines) + "\n" if lines else "no stack was read\n"


def _label(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"
