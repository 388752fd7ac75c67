r"""Folded stacks: one line per distinct stack, `thread;root;...;leaf count`.

Format: Brendan Gregg, FlameGraph, `stackcollapse.pl` and the README's section "2. Fold stacks". It has no
escapes of its own, so `;` and whatever would break a line are written as Python escapes (`\x3b`, `\n`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.profile.names import frame_label, printable, thread_label
from sentinel_agent.profile.views import merged

if TYPE_CHECKING:
    from sentinel_agent.profile.record import ProfileRecord


def encode(record: ProfileRecord) -> bytes:
    """UTF-8 lines in order of name; the figure is how many samples had that stack."""
    frames = [printable(frame_label(frame), also=";") for frame in record.frames]
    threads = [printable(thread_label(thread), also=";") for thread in record.threads]
    counts: dict[str, int] = {}
    for sample in merged(record).samples:
        stack = ";".join([threads[sample.thread], *(frames[index] for index in reversed(sample.stack))])
        counts[stack] = counts.get(stack, 0) + sample.count
    return "".join(f"{stack} {counts[stack]}\n" for stack in sorted(counts)).encode("utf-8")
