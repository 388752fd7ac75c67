"""Thousands of requests with random sizes, chunkings, aborts and keep-alive."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from tests.proxy.soak import soak

if TYPE_CHECKING:
    from pathlib import Path


async def test_no_body_is_ever_wrong_and_no_answer_mixed_up(tmp_path: Path) -> None:
    """Every whole answer has the number and the hash of its request; what broke off did so visibly."""
    seed = random.randrange(1 << 30)
    tally = await soak(2000, seed, tmp_path)
    assert tally.wrong == [], f"seed {seed}"
    assert tally.whole > 1600
    assert tally.aborted > 0
    assert tally.broken > 0
    assert tally.whole + tally.broken + tally.aborted == 2000
