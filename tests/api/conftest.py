"""The store that the API's tests read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sentinel_agent.store.store import Store
from tests.store.helpers import SETTINGS

if TYPE_CHECKING:
    from pathlib import Path

    from sentinel_agent.clock import Clock


@pytest.fixture
def store(tmp_path: Path, fake_clock: Clock) -> Store:
    """An open, empty store."""
    return Store(tmp_path / "data", SETTINGS, fake_clock).open()
