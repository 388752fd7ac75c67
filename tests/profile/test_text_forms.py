"""Folded stacks, the flame graph and the text summary: nothing hostile gets out, nothing is lost."""

from __future__ import annotations

import re
import unicodedata
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sentinel_agent.profile import collapsed, svg, text
from sentinel_agent.profile.names import frame_label, printable, thread_label
from sentinel_agent.profile.record import Frame, ProfileRecord, RecordBuilder, Thread
from tests.profile.records import names, records

SVG = "{http://www.w3.org/2000/svg}"


def example(samples: int = 3) -> ProfileRecord:
    made = RecordBuilder(start=0, period=0.01)
    for _ in range(samples):
        made.add(
            made.thread(7, "busy"),
            [made.frame("hot", "/a.py", 5), made.frame("main", "/a.py", 1)],
            weight=0.01,
            on_cpu=True,
        )
    made.add(made.thread(8, "idle"), [made.frame("wait;ing", "/b.py", 9)], weight=0.01, on_cpu=False)
    return made.build()


def unescape(text: str) -> str:
    """Python's own reading of the escapes, for everything that is written as one."""
    return re.sub(
        r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|[\\nrt])",
        lambda found: found[0].encode("ascii").decode("unicode_escape"),
        text,
    )


@settings(deadline=None)  # the machine may be busy
@given(names)
def test_printable_text_can_be_turned_back_and_controls_nothing(name: str) -> None:
    shown = printable(name, also=";")
    assert ";" not in shown
    assert all(unicodedata.category(c) not in {"Cc", "Cf", "Zl", "Zp", "Cs"} for c in shown)
    assert unescape(shown) == name


def test_labels_leave_out_what_is_not_known() -> None:
    assert frame_label(Frame("f", "/a.py", 3)) == "f (/a.py:3)"
    assert frame_label(Frame("f", "/a.py")) == "f (/a.py)"
    assert frame_label(Frame("f")) == "f"
    assert thread_label(Thread(3, "x")) == 'Thread 3 "x"'
    assert thread_label(Thread(3)) == "Thread 3"


def test_folded_stacks_are_root_first_with_the_thread_in_front() -> None:
    assert collapsed.encode(example()).decode() == (
        'Thread 7 "busy";main (/a.py:1);hot (/a.py:5) 3\nThread 8 "idle";wait\\x3bing (/b.py:9) 1\n'
    )


@settings(deadline=None)  # the machine may be busy
@given(records())
def test_folded_stacks_can_be_read_back_whatever_the_names(record: ProfileRecord) -> None:
    """A reader that splits at line ends, the last space and `;` finds every stack with its count."""
    found: dict[tuple[str, ...], int] = {}
    for line in collapsed.encode(record).decode("utf-8").splitlines():
        stack, count = line.rsplit(" ", 1)
        found[tuple(unescape(name) for name in stack.split(";"))] = int(count)
    expected: dict[tuple[str, ...], int] = {}
    for sample in record.samples:
        labels = [frame_label(record.frames[index]) for index in reversed(sample.stack)]
        stack_key = (thread_label(record.threads[sample.thread]), *labels)
        expected[stack_key] = expected.get(stack_key, 0) + sample.count
    assert found == expected


def boxes(data: bytes) -> list[tuple[str, float, float, float]]:
    """(tooltip, x, y, width) of each frame, by another XML reader."""
    found = []
    for group in ElementTree.fromstring(data).iter(f"{SVG}g"):
        title, rect = group.find(f"{SVG}title"), group.find(f"{SVG}rect")
        assert title is not None
        assert rect is not None
        x, y, width = (float(rect.attrib[name]) for name in ("x", "y", "width"))
        found.append((title.text or "", x, y, width))
    return found


@settings(deadline=None)  # the machine may be busy
@given(records(), names)
def test_the_flame_graph_is_sound_xml_without_anything_active(record: ProfileRecord, title: str) -> None:
    data = svg.encode(record, title=title)
    root = ElementTree.fromstring(data)
    assert {element.tag for element in root.iter()} <= {
        SVG + tag for tag in ("svg", "title", "style", "text", "g", "rect")
    }
    attributes = {name for element in root.iter() for name in element.attrib}
    assert not [name for name in attributes if name.startswith("on") or "href" in name]
    assert b"url(" not in data
    assert data == svg.encode(record, title=title)


def test_widths_are_shares_and_children_lie_under_their_parents() -> None:
    found = {tip.split(":")[0]: (x, y, width) for tip, x, y, width in boxes(svg.encode(example()))}
    whole = found["all"]
    main, hot = found["main (/a.py)"], found["hot (/a.py)"]
    assert main[2] / whole[2] == pytest.approx(0.75, abs=0.001)
    assert main[2] == hot[2]
    assert main[0] == hot[0]
    assert main[1] < hot[1]


def test_the_tooltip_names_function_file_time_and_share() -> None:
    assert any(tip == "hot (/a.py): 30ms, 75.0 %" for tip, *_ in boxes(svg.encode(example())))


def test_what_is_too_narrow_to_see_is_left_out() -> None:
    made = RecordBuilder(start=0, period=0)
    made.add(made.thread(1), [made.frame("wide")], weight=100.0)
    made.add(made.thread(1), [made.frame("narrow")], weight=0.001)
    graph = svg.encode(made.build())
    assert b"wide" in graph
    assert b"narrow" not in graph


def test_a_graph_with_too_many_frames_keeps_the_widest_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svg, "_MAX_BOXES", 4)
    graph = svg.encode(example())
    assert [tip.split(":")[0] for tip, *_ in boxes(graph)] == [
        "all",
        'Thread 7 "busy"',
        "main (/a.py)",
        "hot (/a.py)",
    ]
    assert b"2 narrow frames left out" in graph


def test_a_deep_stack_needs_no_recursion() -> None:
    made = RecordBuilder(start=0, period=0)
    made.add(made.thread(1), [made.frame("f", "a.py", line) for line in range(1000)], weight=1.0)
    assert len(boxes(svg.encode(made.build()))) == 1002


def test_the_hottest_function_is_the_first_line_of_the_table() -> None:
    lines = text.format_hottest(example()).splitlines()
    assert lines[0] == "40ms in 4 samples, 0 lost"
    assert lines[2].split() == ["75.0%", "75.0%", "hot", "(/a.py:5)"]


def test_a_profile_without_samples_says_so() -> None:
    empty = RecordBuilder(start=0, period=0).build()
    assert text.format_hottest(empty) == "no thread was running while the profile was taken\n"
    assert text.format_stacks(empty) == "no stack was read\n"


def many(groups: int) -> ProfileRecord:
    made = RecordBuilder(start=0, period=0)
    for number in range(groups):
        for twin in range(2):
            made.add(made.thread(100 * number + twin), [made.frame("wait", "/a.py", number)])
    return made.build()


@pytest.mark.parametrize(("groups", "limit", "shown"), [(15, 10, 10), (15, None, 15), (1, 10, 1)])
def test_identical_stacks_are_grouped_and_trimmed_to_ten_unless_full(
    groups: int, limit: int | None, shown: int
) -> None:
    """Row P27 of the holmes reference: 15 groups -> 10, or 15 in full; 1 group -> 1."""
    written = text.format_stacks(many(groups), limit)
    assert len(re.findall(r"^2 x ", written, re.MULTILINE)) == shown
    assert ("more groups" in written) == (shown < groups)


def test_a_group_names_at_most_five_threads() -> None:
    made = RecordBuilder(start=0, period=0)
    for number in range(12):
        made.add(made.thread(number + 1), [made.frame("wait")])
    assert text.format_stacks(made.build()).splitlines()[0].endswith("Thread 5 and 7 more")


def test_a_deep_stack_is_shown_in_part() -> None:
    made = RecordBuilder(start=0, period=0)
    made.add(made.thread(1), [made.frame("f", "a.py", line) for line in range(100)])
    assert "... 60 more frames" in text.format_stacks(made.build())


@settings(deadline=None)  # the machine may be busy
@given(records(), st.sampled_from([1, 10, None]))
def test_nothing_in_the_text_can_steer_a_terminal(record: ProfileRecord, limit: int | None) -> None:
    for written in (text.format_hottest(record, limit or 100), text.format_stacks(record, limit)):
        for line in written.split("\n"):
            assert all(unicodedata.category(c) not in {"Cc", "Cf", "Zl", "Zp"} for c in line)
