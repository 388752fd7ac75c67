"""The store that most tests here use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sentinel_agent.store.store import Store
from tests.store.helpers import SETTINGS

if TYPE_CHECKING:
    from pathlib import Path

    from sentinel_agent.clock import Clock


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory that is not there yet."""
    return tmp_path / "state" / "sentinel-agent"


@pytest.fixture
def store(data_dir: Path, fake_clock: Clock) -> Store:
    """An open store without bounds that matter."""
    return Store(data_dir, SETTINGS, fake_clock).open()
