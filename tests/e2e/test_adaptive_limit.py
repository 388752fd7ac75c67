"""The adaptive limit end to end: a real service, `sentinel-agent proxy`, and the agent that reads the service's CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench.limiter_bench import Plan, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e


async def test_the_route_that_burns_is_held_and_the_other_is_not(tmp_path: Path) -> None:
    """A step of one route by five: it alone is answered 429, soon after `hold` seconds; the other route loses nothing.

    The level is of the service, which is no process of the proxy: only the agent can have told it. `bench/limiter_bench.py`
    has the figures, which need a longer run and a quiet machine.
    """
    plan = Plan(threshold=0.1, hold=2, rate=10, burn=0.003, wait=0.5, before=5, during=12, after=1)
    outcome = await run(plan, tmp_path)
    if sum(level > 1.1 * plan.threshold for level in outcome.levels) < plan.hold + 3:
        pytest.skip(f"this machine gave the service too little CPU to be overloaded: {outcome.levels}")
    assert outcome.limited is not None
    assert plan.hold <= outcome.limited < plan.during
    assert outcome.heavy.get(429, 0) > 0
    assert outcome.heavy.get(200, 0) > outcome.heavy[429] / 10  # held, not shut
    assert outcome.light_failed <= outcome.light / 1000
