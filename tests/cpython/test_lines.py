"""Line tables decode to the lines that the interpreter itself gives."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.cpython.code import TORN, Code, decode_lines

if TYPE_CHECKING:
    from pathlib import Path

# Every code object of a few large modules: its table, its first line, and where the interpreter says that lines start.
DUMP = """
import json, sys, types, dis
import argparse, asyncio.tasks, decimal, inspect, typing, unittest.mock, _pydecimal
def codes(code):
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from codes(const)
out = []
for module in (argparse, asyncio.tasks, inspect, typing, unittest.mock, _pydecimal):
    with open(module.__file__, encoding="utf-8") as file:
        for code in codes(compile(file.read(), module.__file__, "exec")):
            if sys.version_info >= (3, 10):
                table, lines = code.co_linetable, [(s, l) for s, _, l in code.co_lines()]
            else:
                table, lines = code.co_lnotab, list(dis.findlinestarts(code))
            out.append([table.hex(), code.co_firstlineno, lines])
print(json.dumps([sys.version_info[1], out]))
"""


def test_lines_are_those_of_the_interpreter(python: Path) -> None:
    """For all code of large standard modules each stretch of bytecode has the line that the interpreter gives."""
    done = subprocess.run([python, "-I", "-c", DUMP], capture_output=True, check=True, timeout=60)
    minor, codes = json.loads(done.stdout)
    assert len(codes) > 500
    for table, first_line, lines in codes:
        code = Code(1, "f", "f.py", first_line, bytes.fromhex(table), minor)
        for start, line in lines:
            assert code.at(start).line == line


@given(st.binary(max_size=300), st.integers(8, 15), st.integers(-(2**31), 2**31))
def test_any_table_decodes_in_bounds(table: bytes, minor: int, first_line: int) -> None:
    """Damaged tables give at most one stretch per byte, in rising order."""
    starts = [start for start, _ in decode_lines(table, first_line, minor)]
    assert len(starts) <= len(table) + 1
    assert starts == sorted(starts)


def test_places_are_interned_and_bounded() -> None:
    """The same place is the same object, and a target cannot make a code keep places without end."""
    code = Code(1, "f", "f.py", 7, b"", 11)
    assert code.at(4) is code.at(4)
    assert code.at(-1).line == 7
    for lasti in range(10_000):
        code.at(lasti)
    assert len(code._places) <= 4096


def test_the_torn_mark_has_no_place() -> None:
    """What stands for frames that could not be read is no frame of the target."""
    assert (TORN.function, TORN.file, TORN.code.address) == ("<torn>", "", 0)
