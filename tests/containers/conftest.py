"""The image, built once for all tests, and a root file system for targets."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.containers.build import ROOTFS, Image, Workshop, workshop
from tests.needs import missing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def rootfs() -> Path:
    """A Debian with Python, for targets."""
    if os.geteuid() != 0:
        pytest.skip("only root can make and run containers here")
    if not ROOTFS.exists():
        missing("no root file system: `make containers` makes it")
    return ROOTFS


@pytest.fixture(scope="session")
def works(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """Where images are built."""
    with workshop(tmp_path_factory.mktemp("images")) as made:
        yield made


@pytest.fixture(scope="session")
def built(works: Workshop) -> Image:
    """The Dockerfile's target `agent`."""
    return works.build("agent")


@pytest.fixture(scope="session")
def image(built: Image) -> Path:
    """Its root, as a registry would hand it out."""
    return built.root
