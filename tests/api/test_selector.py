"""Label selectors as Grafana's editor, variables and Drilldown write them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.api.selector import MAX_SELECTOR, parse

LABELS = {
    "service_name": "shop",
    "rule": "cpu-spike",
    "dump_id": "20261124T084733.093Z-5b15",
    "a.b": 'say "hi"',
}


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("", True),
        ("{}", True),
        (" { } ", True),
        ('{service_name="shop"}', True),
        ('{service_name="shop",}', True),
        ('{service_name!="shop"}', False),
        ('{service_name=~"sh.p|x"}', True),
        ('{service_name=~"sho"}', False),
        ('{service_name!~"sho"}', True),
        ('{service_name="shop", rule=~"cpu.*", dump_id!=""}', True),
        (r'{dump_id=~"20261124T084733\\.093Z-5b15|other"}', True),
        ("{service_name=`shop`}", True),
        ("{service_name='shop'}", True),
        (r'{"a.b"="say \"hi\""}', True),
        (r'{service_name="\x73h\u006fp"}', True),
        ('{missing=""}', True),
        ('{missing!=""}', False),
        ('{missing=~".*"}', True),
        ('{missing=~".+"}', False),
    ],
)
def test_what_passes(text: str, passes: bool) -> None:
    """Every operator, quoting and escape; a label that is not there is an empty one, as in Prometheus."""
    assert parse(text).matches(LABELS) is passes


def test_a_profile_type_may_stand_before_the_brace() -> None:
    """Dashboard variables send it there."""
    found = parse('process_cpu:cpu:nanoseconds:cpu:nanoseconds{service_name="shop"}')
    assert found.prefix == "process_cpu:cpu:nanoseconds:cpu:nanoseconds"
    assert found.matches(LABELS)
    assert parse("process_cpu:cpu:nanoseconds:cpu:nanoseconds").matchers == ()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "}",
        '{a="b"',
        'a="b"',
        '{a="b" c="d"}',
        "{a=b}",
        '{a=="b"}',
        '{="b"}',
        '{a=~"("}',
        '{a="b}',
        "{,}",
        '{a="b",,}',
        "{a=1}",
        r'{a="\UFFFFFFFF"}',
        "x" * (MAX_SELECTOR + 1),
    ],
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    """In words, by ValueError."""
    with pytest.raises(ValueError, match="label selector"):
        parse(text)


@given(st.text(st.sampled_from("{}=\"~!\\,ab`'. "), max_size=30))
def test_anything_is_parsed_or_refused(text: str) -> None:
    """Only a ValueError comes out."""
    with contextlib.suppress(ValueError):
        parse(text).matches(LABELS)
