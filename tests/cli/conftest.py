"""The command line as a fixture, in a world that holds no settings of whoever runs the tests."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import pytest

from tests.cli.support import CommandLine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory that nobody has made yet."""
    return tmp_path / "data"


@pytest.fixture
def sentinel(
    capsys: pytest.CaptureFixture[str], data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[CommandLine]:
    """`sentinel("incidents", "list")`."""
    for name in [*os.environ]:
        if name.startswith(("SENTINEL_", "XDG_STATE", "FORCE_COLOR", "CLICOLOR")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SENTINEL_LISTEN", "off")  # the usual address may be somebody else's on this machine
    monkeypatch.chdir(tmp_path)
    log = logging.getLogger("sentinel_agent")
    before = (log.handlers[:], log.level, log.propagate)
    yield CommandLine(capsys, data)
    log.handlers[:], log.level, log.propagate = before
