"""What a sampler hands over: one look at one target's threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

Place = tuple[str, str, int]
"""Function, file, line; line 0 where it is not known. The same place should be the same object: it is found faster."""


class ThreadSample(msgspec.Struct, frozen=True):
    """One thread's stack, leaf first. A failed reading is none of these, it is counted in `Tick.failed`.

    `native_id` is the kernel's, or whatever else tells the thread from others where that is not known. `on_cpu`
    is None where it cannot be told. A `partial` stack has an explicit frame where it is torn.
    """

    native_id: int
    name: str
    on_cpu: bool | None
    kind: Literal["whole", "partial"]
    frames: tuple[Place, ...]


class Tick(msgspec.Struct, frozen=True):
    """Every thread of a target at one moment.

    `wall` is in seconds since the epoch, `monotonic` orders the ticks, `period` is the planned number of seconds
    to the next one, `late` how many seconds after its planned moment it came, `failed` how many threads could not be read.
    `lead` is for how many seconds the one thread on a CPU had been there when it was looked at, as the kernel tells: 0 where
    none was, or several were, or one was at the look before.
    """

    wall: float
    monotonic: float
    period: float
    threads: Sequence[ThreadSample]
    failed: int = 0
    late: float = 0.0
    lead: float = 0.0
