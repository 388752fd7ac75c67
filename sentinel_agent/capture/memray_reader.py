"""Reads a capture file of memray, in a process of its own: memray and what it imports take memory, and the file is a stranger's.

Argument: the file. Standard output: one JSON object, the sites of the high-water mark and of what was not freed, the most bytes first.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

TOP = 1000
DEEPEST = 64


def sites(records: Any) -> list[list[Any]]:
    """[bytes, blocks, [[function, file, line], ...]] of the largest places, innermost first."""
    found: dict[tuple[tuple[str, str, int], ...], list[int]] = {}
    for record in records:
        stack = tuple(record.stack_trace(DEEPEST))
        entry = found.setdefault(stack, [0, 0])
        entry[0] += record.size
        entry[1] += record.n_allocations
    largest = sorted(found.items(), key=lambda item: -item[1][0])[:TOP]
    return [[size, blocks, [list(frame) for frame in stack]] for stack, (size, blocks) in largest]


def main(path: str) -> dict[str, Any]:
    """What is in the file."""
    memray = importlib.import_module("memray")
    reader = memray.FileReader(path)
    return {
        "peak_bytes": reader.metadata.peak_memory,
        "high_water": sites(reader.get_high_watermark_allocation_records(merge_threads=True)),
        "leaks": sites(reader.get_leaked_allocation_records(merge_threads=True)),
    }


if __name__ == "__main__":
    try:
        document = main(sys.argv[1])
    except Exception as error:  # noqa: BLE001 - a stranger's reader over a stranger's file
        document = {"error": f"{type(error).__name__}: {error}"[:500]}
    sys.stdout.write(json.dumps(document))
