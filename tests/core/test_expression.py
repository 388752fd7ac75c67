"""Trigger expressions in CEL: what they read, what is refused at load, what goes wrong at run time."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.core.expression import MAX_METRICS, Expression, ExpressionFaultError


@pytest.mark.parametrize(
    ("source", "metrics", "values", "answer"),
    [
        ("cpu > 80 && rss_limit > 70", ("cpu", "rss_limit"), {"cpu": 80.5, "rss_limit": 70.5}, True),
        ("cpu > 80 && rss_limit > 70", ("cpu", "rss_limit"), {"cpu": 80.5, "rss_limit": 70.0}, False),
        ("cpu + 1 > 3", ("cpu",), {"cpu": 2.5}, True),
        ("cpu * 2 - threads / 4 == 1", ("cpu", "threads"), {"cpu": 1.0, "threads": 4.0}, True),
        ("cpu > 1e1 && cpu < 1.5E2 && cpu > .5", ("cpu",), {"cpu": 11.0}, True),
        ("cpu in [1, 2, 3]", ("cpu",), {"cpu": 3.0}, True),
        (
            "[cpu, rss].all(x, x > 1 && x < limit)",
            ("cpu", "limit", "rss"),
            {"cpu": 2, "limit": 9, "rss": 3},
            True,
        ),
        ("cpu > 1 // 80 is too much", ("cpu",), {"cpu": 2.0}, True),
        ("'cpu 12 > fake' == \"cpu 12 > fake\" && rss > 1", ("rss",), {"rss": 2.0}, True),
        ("r'a\\1' == 'a\\\\1' && '''3\n4''' == '3\\n4' && rss > 1", ("rss",), {"rss": 2.0}, True),
        ("double(size('12')) == 2 && cpu > 0", ("cpu",), {"cpu": 2.0}, True),
        ("cpu > 80 ? rss > 1 : rss > 100", ("cpu", "rss"), {"cpu": 90.0, "rss": 2.0}, True),
        ("\n cpu >\n 1", ("cpu",), {"cpu": 2.0}, True),
    ],
)
def test_what_an_expression_reads_and_says(
    source: str, metrics: tuple[str, ...], values: dict[str, float], answer: bool
) -> None:
    """Names are metrics, except macro variables, field names and what is in strings; numbers are doubles."""
    expression = Expression(source)
    assert expression.metrics == metrics
    judgement = expression.judge(values)
    assert judgement.matched is answer
    assert judgement.test == ("expression" if answer else "no_match")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("cpu >", "Syntax error"),
        ("cpu", "gives a double, not a boolean"),
        ("cpu + 1", "gives a double, not a boolean"),
        ("dyn(cpu)", "gives a dyn, not a boolean"),
        ("true", "reads no metric"),
        ("cpu > 80u", "no matching overload"),
        ("cpu > 0x50", "no matching overload"),
        ("size('12') > 2 && cpu > 1", "no matching overload"),
        ("cpu > 'high'", "no matching overload"),
        ("math.greatest(cpu, 3) > 1", "undeclared reference to 'greatest'"),
        ("cpu.value > 1", "select operation"),
        ("cpu.exists(x, x > 1)", "comprehension"),
        (".cpu > 1", "undeclared reference to '.cpu'"),
        ("cpu > 1 \0", "Syntax error"),
        ("cpu > 1 && '\ud800' == 'a'", "cannot be used"),
        ("[cpu].all(x, [1].exists(y, x > y))", "more than one list macro"),
        ("cpu > 1 || " * 100 + "true", "at most 1000"),
        (" || ".join(f"a{n} > 1" for n in range(MAX_METRICS + 1)), "more than 32 metrics"),
    ],
)
def test_what_cannot_be_used_is_refused_at_load(source: str, words: str) -> None:
    """Types, syntax and bounds: all known before the first reading, in a message of bounded length."""
    with pytest.raises(ExpressionFaultError) as caught:
        Expression(source)
    assert words in caught.value.message
    assert len(caught.value.message) < 600


def test_a_fault_of_types_says_what_to_write() -> None:
    """The remedy is in the hint."""
    with pytest.raises(ExpressionFaultError) as caught:
        Expression("size('12') > 2 && cpu > 1")
    assert caught.value.hint is not None
    assert "double(...)" in caught.value.hint


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("int(cpu) / int(cpu) > int(1)", "divide by zero"),
        ("int(1 / cpu) > int(1)", "out of int64 range"),
        ("dyn(cpu) + dyn(int(1)) > 1", "No matching overload"),
    ],
)
def test_what_goes_wrong_at_run_time_is_data(source: str, words: str) -> None:
    """No exception, no match; the reason is `error` and the detail the library's."""
    judgement = Expression(source).judge({"cpu": 0.0})
    assert (judgement.matched, judgement.test) == (False, "error")
    assert words in judgement.detail


def test_a_missing_reading_matters_only_where_the_answer_depends_on_it() -> None:
    """`true || missing` is true, `false && missing` is false, the rest is no data and names what is missing."""
    either, both = Expression("cpu > 80 || stall > 1"), Expression("cpu > 80 && stall > 1")
    assert either.judge({"cpu": 90.0}).matched
    assert either.judge({"cpu": 10.0})[:2] == (False, "no_data")
    assert both.judge({"cpu": 10.0}).test == "no_match"
    assert both.judge({"cpu": 90.0}).detail == "no reading of stall"


@pytest.mark.parametrize(
    "source",
    [
        "(" * 490 + "cpu" + ")" * 490 + ">1",
        "-" * 990 + "cpu",
        "!" * 990 + "cpu",
        "cpu" + "[0]" * 300,
        "[" * 490 + "]" * 490,
        "{" * 490 + "}" * 490,
        "f(" * 330 + ")" * 330,
        "cpu" + ".a" * 480,
        "cpu ? " * 160 + "cpu",
        "cpu ? cpu : " * 80 + "cpu",
        "+".join(["cpu"] * 240) + ">1",
        "'" * 999,
        '"""' * 333,
        "\\" * 1000,
    ],
)
def test_a_hostile_expression_is_refused_and_does_not_hang_or_crash(source: str) -> None:
    """Deep nesting is refused by the library at 32 levels, the rest by its types or syntax."""
    with pytest.raises(ExpressionFaultError):
        Expression(source)


def test_the_steps_of_a_comprehension_are_bounded() -> None:
    """The largest list that fits, tested against a second list: an answer, or the library's own bound as data."""
    many = ",".join("1" * 440)
    judgement = Expression(f"[{many}].all(x, x + cpu > 1 && x in [1, 2, 3])").judge({"cpu": 1.0})
    assert judgement.test == "expression"


@given(st.text(st.sampled_from("cpu rs>&|!()[]{}.,:?+-*/%'\"\\0123456789eExubr\n\t\0é"), max_size=60))
def test_no_text_gives_anything_but_an_expression_or_a_fault(source: str) -> None:
    """And what compiles can be judged without an exception, with and without readings."""
    try:
        expression = Expression(source)
    except ExpressionFaultError:
        return
    assert expression.metrics
    for values in ({}, dict.fromkeys(expression.metrics, 1.0)):
        assert expression.judge(values).test in {"expression", "no_match", "no_data", "error"}


def test_an_exception_of_the_library_at_run_time_is_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its iteration budget is reported as a RuntimeError."""

    class Spent:
        def eval(self, data: object) -> object:
            raise RuntimeError("INTERNAL: Iteration budget exceeded [INTERNAL]")

    expression = Expression("cpu > 1")
    monkeypatch.setattr(expression, "_program", Spent())
    assert expression.judge({"cpu": 1.0}).detail == "INTERNAL: Iteration budget exceeded [INTERNAL]"


def test_without_the_extra_the_fault_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is optional."""
    monkeypatch.setitem(sys.modules, "cel_expr_python.cel", None)
    with pytest.raises(ExpressionFaultError, match=r"pip install 'sentinel-agent\[cel\]'"):
        Expression("cpu > 1")
