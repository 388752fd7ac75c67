"""Parsers of /proc, with hostile content, and reads that no reused pid can fool."""

from __future__ import annotations

import os
import string
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.target.procfs import (
    ProcDir,
    ProcFormatError,
    parse_command,
    parse_keyed,
    parse_stat,
    parse_status,
    parse_switches,
    read_bounded,
)
from tests.target.fakeproc import FakeProc, line, running, wait_ended

if TYPE_CHECKING:
    from pathlib import Path


@given(st.binary(min_size=1, max_size=15))
def test_a_name_may_hold_spaces_parentheses_and_any_byte(name: bytes) -> None:
    """The name ends at the last parenthesis, whatever is in it."""
    raw = b"42 (%s) R 7 1 1 0 -1 2097152 0 0 0 0 5 6 0 0 20 0 3 0 99 0 0" % name
    stat = parse_stat(raw)
    assert (stat.pid, stat.state, stat.parent_pid, stat.cpu_ticks) == (42, "R", 7, 11)
    assert (stat.threads, stat.start_time, stat.kernel_thread) == (3, 99, True)
    stat.name.encode()  # can be printed


def test_ended_means_that_no_thread_is_left() -> None:
    """A zombie has ended; a main thread that ended before the others is no ended process."""
    line = b"42 (x) Z 7 1 1 0 -1 0 0 0 0 0 5 6 0 0 20 0 %d 0 99"
    assert parse_stat(line % 1).ended
    assert not parse_stat(line % 2).ended


@given(st.one_of(st.binary(max_size=300), st.text(string.digits + "() -RSZ\n", max_size=300).map(str.encode)))
def test_parsers_raise_only_their_own_error(raw: bytes) -> None:
    """No bytes make a parser fail in any other way."""
    for parse in (parse_stat, parse_status, parse_switches):
        with suppress(ProcFormatError):
            parse(raw)
    parse_keyed(raw)
    parse_keyed(raw, b":")
    for argument in parse_command(raw):
        argument.encode()


def test_a_command_line_keeps_what_is_no_utf8_readable() -> None:
    """Bytes that are no UTF-8 are shown as escapes; padding NULs are dropped, empty arguments kept."""
    assert parse_command(b"python\0\xff\xfex\0\0arg\0\0\0") == ("python", "\\xff\\xfex", "", "arg")
    assert parse_command(b"") == ()


def test_own_stat_and_status_agree_with_psutil() -> None:
    """Parent, threads, user and switches of this very process are what psutil reads."""
    own = psutil.Process()
    with ProcDir(os.getpid()) as proc:
        stat, status = proc.stat(), proc.status()
        assert stat.parent_pid == own.ppid()
        assert stat.threads == own.num_threads()
        assert status.uids[:3] == tuple(own.uids())
        assert stat.start_time / os.sysconf("SC_CLK_TCK") + psutil.boot_time() == pytest.approx(
            own.create_time(), abs=1.5
        )
        assert list(proc.command()) == [part[:4096] for part in own.cmdline()]


def test_reads_are_bounded(tmp_path: Path) -> None:
    """A file of any size is read to the limit, in as many reads as it takes."""
    big = tmp_path / "big"
    big.write_bytes(b"x" * 300_000)
    assert len(read_bounded(big, 1000)) == 1000
    assert len(read_bounded(big, 250_000)) == 250_000
    assert len(read_bounded(big, 400_000)) == 300_000


def test_an_ended_process_reads_as_gone() -> None:
    """After the exit every read says that the process is gone: a zombie still has its stat, a reaped one nothing."""
    with running("print('up', flush=True); input()") as child:
        line(child)
        with ProcDir(child.pid) as proc:
            child.kill()
            wait_ended(child.pid)
            assert proc.stat().ended
            child.wait()
            for read in (
                proc.stat,
                proc.command,
                lambda: proc.link("exe"),
                lambda: proc.info("fd"),
                lambda: proc.names("fd", 9),
            ):
                with pytest.raises(ProcessLookupError):
                    read()


def test_an_open_directory_never_reads_another_process(tmp_path: Path) -> None:
    """The pid was used again: what was opened before does not show the other process."""
    fake = FakeProc(tmp_path)
    fake.add(7, start=100)
    with ProcDir(7, tmp_path) as proc:
        fake.remove(7)
        fake.add(7, start=200)
        with pytest.raises(ProcessLookupError):
            proc.stat()


def test_a_file_that_is_missing_is_not_a_process_that_is_gone(tmp_path: Path) -> None:
    """While the process is there, a file the kernel does not have is reported as that."""
    FakeProc(tmp_path).add(7)
    with ProcDir(7, tmp_path) as proc, pytest.raises(FileNotFoundError):
        proc.read("io")


def test_a_closed_directory_says_so(tmp_path: Path) -> None:
    """Closing twice is harmless; reading after it raises and touches no other descriptor."""
    FakeProc(tmp_path).add(7)
    proc = ProcDir(7, tmp_path)
    proc.close()
    proc.close()
    with pytest.raises(ProcessLookupError, match="not watched"):
        proc.stat()
