"""A process that records and spools until it is killed; says on stdout what it has put on the disk.

python -m tests.recorder.child FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from sentinel_agent.recorder.spool import Spool
from tests.recorder.support import STACK, START, make_ring, sample, tick


def main(folder: Path) -> None:
    ring, spool = make_ring(spooled=True, max_age=20.0), Spool(folder, min_free_bytes=0)
    for number in range(1_000_000):
        ring.put(tick(number, [sample(((f"leaf_{number % 50}", "x.py", 1), *STACK)), sample(native_id=43)]))
        if number % 19 == 18:
            assert all(spool.write(batch, START) for batch in ring.take())
            print(number, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
