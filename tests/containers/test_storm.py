"""A storm of captures does not end an agent with little memory, and every answer is accounted for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.containers.storm import CONFIG, storm

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(300)

MIB = 1024**2


@pytest.mark.containers
def test_more_captures_than_64_mib_have_room_for(image: Path, rootfs: Path, tmp_path: Path) -> None:
    """40 incidents of four services with 5000 tasks each within 8 s: none ends the agent, each is saved or refused."""
    outcome = storm(image, rootfs, tmp_path, asked=40, seconds=8, tasks=5000)
    assert outcome.oom_kills == 0
    assert outcome.answers.total() == 40
    assert set(outcome.answers) <= {"sealed", "failed", "429 busy"}, outcome
    assert outcome.listed == outcome.answers["sealed"] > 0
    assert outcome.captures["stacks ok"] > 0, outcome
    assert all("memory limit" in reason for reason in outcome.skipped), outcome.skipped


@pytest.mark.interop
def test_a_small_volume_is_never_over_its_limit(image: Path, rootfs: Path, tmp_path: Path) -> None:
    """Incidents and recorded stacks have a MiB each: the volume, looked at many times a second, never holds three."""
    bounds = "store: {max_bytes: 1MiB}\nrecorder: {spool_bytes: 1MiB}\n"
    outcome = storm(image, rootfs, tmp_path, asked=60, seconds=20, tasks=500, config=CONFIG + bounds)
    assert outcome.answers["sealed, removed since"] > 0
    assert outcome.listed > 0
    assert MIB < outcome.disk < 3 * MIB
