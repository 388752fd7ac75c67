"""Whether what we sample is what runs: the distribution of leaf functions, ours and py-spy's: `python bench/leaf_distance.py [SECONDS] [PYTHON]`.

On the same busy targets, in turns of TURN seconds each: our reader, py-spy pausing (its samples are of one moment), and
py-spy pausing again. Printed is the total variation distance (half the sum of the differences of shares, 0 the same, 1 nothing in
common) of ours from py-spy's, beside that of py-spy's two halves from each other, which is what chance alone makes. Partial stacks of
ours count by their leaf where they have one; the shares of whole, partial and failed ones are printed with it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.reader_cost import TARGETS
from sentinel_agent.cpython.code import TORN
from sentinel_agent.cpython.process import open_process
from sentinel_agent.target.doctor import find_py_spy

RATE, TURN = 97, 5


def ours(pid: int, leaves: Counter[str], kinds: Counter[str]) -> None:
    """Take the samples of one turn."""
    reader = open_process(pid)
    began = time.perf_counter()
    for tick in range(RATE * TURN):
        time.sleep(max(0.0, began + tick / RATE - time.perf_counter()))
        for thread in reader.sample():
            kinds[thread.stack.kind] += 1
            frames = thread.stack.frames
            if frames and frames[0] is not TORN:
                leaves[frames[0].function.rpartition(".")[2]] += 1


def py_spy(pid: int, leaves: Counter[str], folder: Path) -> None:
    """The same by py-spy, which stops the target for each."""
    output = folder / "raw"
    options = ["-r", str(RATE), "-d", str(TURN), "--idle", "--full-filenames", "-f", "raw", "-o", str(output)]
    command = [find_py_spy() or "py-spy", "record", *options, "-p", str(pid)]
    subprocess.run(command, check=True, capture_output=True)
    for line in output.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        leaf = stack.rpartition(";")[2].partition(" (")[0]
        leaves[leaf.rpartition(".")[2]] += int(count)


def distance(one: Counter[str], other: Counter[str]) -> float:
    """Total variation."""
    names = one.keys() | other.keys()
    return sum(abs(one[name] / one.total() - other[name] / other.total()) for name in names) / 2


def main(seconds: int, python: str) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        for kind, arguments in TARGETS.items():
            target = subprocess.Popen([python, *arguments], stdout=subprocess.PIPE)
            try:
                assert target.stdout
                target.stdout.readline()
                mine, kinds, first, second = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
                for _ in range(max(1, seconds // (3 * TURN))):
                    ours(target.pid, mine, kinds)
                    py_spy(target.pid, first, Path(name))
                    py_spy(target.pid, second, Path(name))
                shares = ", ".join(f"{k} {number / kinds.total():.1%}" for k, number in kinds.most_common())
                print(
                    f"{kind}: distance {distance(mine, first + second):.3f}, py-spy from itself "
                    f"{distance(first, second):.3f}; {mine.total()} samples, {shares}",
                    flush=True,
                )
                for function, count in (first + second).most_common(6):
                    theirs = count / (first + second).total()
                    print(f"    {function}: ours {mine[function] / mine.total():.1%}, py-spy {theirs:.1%}")
            finally:
                target.kill()
                target.communicate()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60, sys.argv[2] if len(sys.argv) > 2 else sys.executable)
