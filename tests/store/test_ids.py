"""Ids and artifact names: what is made is accepted and sorts by time; nothing that can leave a folder is accepted."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sentinel_agent.store.ids import is_artifact_name, is_id, is_id_start, new_id

TIMES = st.floats(min_value=0, max_value=4e9)


def test_an_id_is_the_utc_time_to_the_millisecond_and_sixteen_random_bits() -> None:
    moment = datetime(2026, 11, 23, 4, 15, 0, 123456, tzinfo=UTC)
    assert new_id(moment.timestamp(), 0x51A2B) == "20261123T041500.123Z-1a2b"


@given(TIMES, TIMES, st.integers(0, 2**64), st.integers(0, 2**64))
def test_ids_sort_by_time(one: float, other: float, random: int, another: int) -> None:
    """Of two times at least a millisecond apart, the earlier has the smaller id, whatever the random part."""
    early, late = sorted((one, other))
    if late - early > 0.001:
        assert new_id(early, random) < new_id(late, another)


@given(st.floats(allow_nan=False), st.integers(0))
def test_every_time_gives_a_valid_id(now: float, random: int) -> None:
    """Also one before 1970, after the year 9999 or infinite."""
    text = new_id(now, random)
    assert is_id(text)
    assert all(is_id_start(text[:length]) for length in range(1, len(text) + 1))


HOSTILE = st.text(alphabet="0123456789TZabcdef.-/\\\0\n\u0661 ~*", max_size=30) | st.text(max_size=30)


@given(HOSTILE)
@example("../../../../etc/passwd")
@example("20261123T041500.123Z-1a2b\n")
@example("20261123T041500.123Z-1a2b/..")
@example("..")
@example("\u0662\u0660261123T041500.123Z-1a2b")
def test_what_is_taken_for_an_id_is_one_plain_ascii_name(text: str) -> None:
    if is_id(text):
        assert text.isascii()
        assert len(text) == 25
        assert PurePosixPath(text).parts == (text,)
    if is_id_start(text):
        assert "/" not in text
        assert text.isascii()


@given(HOSTILE)
@example("incident.json")
@example(".tmp-x")
@example("a/b")
def test_what_is_taken_for_an_artifact_is_one_visible_name(text: str) -> None:
    if is_artifact_name(text):
        assert PurePosixPath(text).parts == (text,)
        assert not text.startswith((".", "-"))
        assert text != "incident.json"


@pytest.mark.parametrize("name", ["series.json", "stacks.pb.gz", "stacks.speedscope.json", "profile_2.svg"])
def test_the_names_of_the_design_are_artifact_names(name: str) -> None:
    assert is_artifact_name(name)
