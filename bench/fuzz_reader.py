"""Replay spoilt images of real targets through the reader: `python bench/fuzz_reader.py [IMAGES] [PYTHON...]`.

For each interpreter and scene one target is recorded, then IMAGES copies with random damage are read. Prints how many
were refused, the slowest one and the most calls. Any exception but the reader's own ends the run with the seed that made it.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.cpython.images import Image, record, spoil, try_reading

PROGRAM = Path(__file__).resolve().parent.parent / "tests" / "cpython" / "target_program.py"
SCENES = ("sorted_with_key", "threads", "nested", "tasks", "loops")


def recorded(python: str, scene: str) -> Image:
    target = subprocess.Popen([python, str(PROGRAM), scene], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert target.stdout
        target.stdout.readline()
        return record(target.pid)
    finally:
        target.kill()
        target.communicate()


def main(images: int, pythons: list[str]) -> None:
    for python in pythons:
        for scene in SCENES:
            image = recorded(python, scene)
            refused = most_calls = 0
            slowest = 0.0
            for seed in range(images // (len(pythons) * len(SCENES))):
                started = time.perf_counter()
                try:
                    was_refused, calls = try_reading(image, spoil(image, random.Random(seed)))
                except BaseException:
                    print(f"{python} {scene}: seed {seed}")
                    raise
                refused += was_refused
                most_calls = max(most_calls, calls)
                slowest = max(slowest, time.perf_counter() - started)
            print(
                f"{python} {scene}: {seed + 1} images of {len(image.pages)} pages, {refused} refused, "
                f"slowest {slowest * 1000:.0f} ms, at most {most_calls} calls",
                flush=True,
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000, sys.argv[2:] or [sys.executable])
