"""The regular expressions of label selectors, against Python's own, which must agree on every expression that both know."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sentinel_agent.api.pattern import Pattern

ATOMS = st.sampled_from(["a", "b", "c", ".", "[ab]", "[^a]", r"\.", r"\w", r"[\w.]", "é"])
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]}|{pair[1]})"),
        st.tuples(inner, inner, inner).map(lambda each: f"(?:{each[0]}|{each[1]}|{each[2]}|)"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "{2}", "{1,2}", "{0,3}", "{2,}"])).map(
            lambda pair: f"({pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(EXPRESSIONS, min_size=1, max_size=3).map("|".join),
    st.lists(st.text("abc.é", max_size=6), max_size=8),
)
def test_it_says_what_pythons_own_says(text: str, subjects: list[str]) -> None:
    """Whatever is put together of what is known, both accept the same subjects."""
    ours, theirs = Pattern(text), re.compile(text, re.DOTALL)
    for subject in subjects:
        assert ours.fullmatch(subject) == (theirs.fullmatch(subject) is not None), (text, subject)


def test_what_makes_a_backtracking_engine_run_for_ever_is_answered_at_once() -> None:
    """Steps grow with the length of the subject, not with a power of it: this would take Python's longer than the world has."""
    assert not Pattern("(a|aa)+(a|aa)+(a*)*b").fullmatch("a" * 1000)


def test_flags_and_anchors_are_understood() -> None:
    """What people write around an expression out of habit changes nothing."""
    assert Pattern("(?i)^shop-[0-9]+$").fullmatch("SHOP-17")
    assert not Pattern("shop").fullmatch("shop-1")
    assert Pattern(r"cost\$").fullmatch("cost$")


@pytest.mark.parametrize(
    "text",
    ["(a", "a)", "*a", "[", "\\", "a{3,2}", "(?=a)", "(?!a)", r"\1", "((a{99}){99}){99}", "(" * 100, "a**"],
)
def test_what_is_not_known_is_refused(text: str) -> None:
    """By one error, never by another, and never by running out of memory."""
    with pytest.raises(ValueError, match="not a regular expression"):
        Pattern(text)


@given(st.text(max_size=30), st.text(max_size=10))
def test_anything_is_compiled_or_refused(text: str, subject: str) -> None:
    """Whatever comes in a request, only a ValueError comes out."""
    try:
        pattern = Pattern(text)
    except ValueError:
        return
    pattern.fullmatch(subject)
