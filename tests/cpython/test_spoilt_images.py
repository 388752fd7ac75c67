"""A corrupt or hostile target can make the reader fail, with an error of its own, and nothing worse."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from sentinel_agent.cpython.memory import ImageMemory
from sentinel_agent.cpython.process import Interpreter
from tests.cpython.images import read_all, record, spoil, try_reading

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cpython.conftest import StartTarget

IMAGES = 250
MOST_CALLS = 20_000


@pytest.mark.parametrize("scene", ["sorted_with_key", "tasks"])
def test_spoilt_images_end_in_bounds(python: Path, start_target: StartTarget, scene: str) -> None:
    """Flipped bits, cut pages, wild and circular pointers: no foreign exception, and a bounded number of calls."""
    target = start_target(python, scene)
    image = record(target.pid)
    chance = random.Random(f"{python} {scene}")
    refused = 0
    for _ in range(IMAGES):
        was_refused, calls = try_reading(image, spoil(image, chance))
        refused += was_refused
        assert calls <= MOST_CALLS
    assert 0 < refused < IMAGES, "some damage matters, and some does not"


def test_a_recorded_image_reads_like_its_target(python: Path, start_target: StartTarget) -> None:
    """An untouched image shows the stacks and tasks of the target it was recorded from."""
    target = start_target(python, "tasks")
    image = record(target.pid)
    reader = Interpreter(ImageMemory(image.pages), image.layout, image.location.runtime)
    frames, tasks = read_all(reader)
    assert frames >= sum(map(len, target.truth["stacks"].values()))
    assert tasks > 100
