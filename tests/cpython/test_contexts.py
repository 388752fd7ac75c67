"""The request contexts of tasks, read from outside."""

from __future__ import annotations

import asyncio
import random
import string
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sentinel_agent.request_context
from sentinel_agent.capture.task_groups import context_in_words, to_document
from sentinel_agent.cpython import contexts
from sentinel_agent.cpython.contexts import parse
from sentinel_agent.cpython.process import open_process
from sentinel_agent.request_context import CURRENT, MOST, context
from tests.capture.targets import started
from tests.cpython.conftest import MINORS, python_of, within
from tests.cpython.images import record, spoil, try_reading

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sentinel_agent.cpython.contexts import Labels

PROGRAM = Path(__file__).with_name("context_program.py")
SOURCE = Path(sentinel_agent.request_context.__file__)


@pytest.mark.parametrize("others", [0, 90])
@pytest.mark.parametrize("minor", MINORS)
def test_a_dump_shows_what_each_task_is_for(minor: int, others: int) -> None:
    """The labels of 20 requests, of what they created, and of no other task; whatever other variables are set beside them."""
    python = python_of(minor)
    with started(str(python), within(python, PROGRAM), within(python, SOURCE), str(others)) as process:
        dump = open_process(process.pid).tasks()
    found = Counter((task.coroutine, task.context) for task in dump.tasks)
    expected: Counter[tuple[str, Labels]] = Counter({("main", ()): 1, ("child", ()): 1})
    for number in map(str, range(20)):
        expected["child", (("route", "/pay"), ("trace_id", number))] += 1
        expected["handler", (("route", "/pay/card"), ("trace_id", number), ("step", "ç€"))] += 1
    assert found == expected
    group = next(each for each in to_document(dump).groups if each.coroutine == "handler")
    assert context_in_words(group).startswith("route=/pay/card; trace_id=")
    assert context_in_words(group).endswith(", ...; step=ç€")


def test_spoilt_contexts_end_in_bounds() -> None:
    """Flipped bits, cut pages, wild and circular pointers in tries of 90 variables: no foreign exception, and a bounded number of calls."""
    with started(sys.executable, str(PROGRAM), str(SOURCE), "90") as process:
        image = record(process.pid)
    chance = random.Random("contexts")
    refused, calls = zip(*(try_reading(image, spoil(image, chance)) for _ in range(40)), strict=True)
    assert 0 < sum(refused) < len(refused)
    assert max(calls) <= 20_000


def test_both_sides_agree_on_the_names() -> None:
    """The reader imports nothing of what runs in services: the module, the variable and the separators are written twice."""
    ours = sentinel_agent.request_context
    assert ours.__name__ == contexts.MODULE
    assert getattr(ours, contexts.VARIABLE) is CURRENT
    assert (contexts.BETWEEN_PAIRS, contexts.WITHIN_PAIR) == (ours.BETWEEN_PAIRS, ours.WITHIN_PAIR)


def test_leaving_gives_back_what_was_before_and_nothing_grows_without_bound() -> None:
    """A thousand nested blocks keep the newest labels within the bound; outside there are none."""
    blocks = [context(number=number, text="x" * 1000) for number in range(1000)]
    for block in blocks:
        block.__enter__()
    assert len(CURRENT.get()) <= MOST
    assert dict(parse(CURRENT.get()))["number"] == "999"
    for block in reversed(blocks):
        block.__exit__(None, None, None)
    assert CURRENT.get() == ""
    assert sentinel_agent.context is context


async def test_a_generator_that_another_task_closes_raises_nothing() -> None:
    """Its block is left in another context than it was entered in."""

    async def rows() -> AsyncGenerator[int, None]:
        with context(route="/rows"):
            yield 1

    opened = rows()
    assert await asyncio.create_task(opened.__anext__()) == 1
    await asyncio.create_task(opened.aclose())
    assert CURRENT.get() == ""


words = st.text(st.characters(exclude_characters="\x1e\x1f"), max_size=20)


@given(st.dictionaries(words.filter(bool), words, max_size=8))
def test_what_is_written_is_what_is_read(labels: dict[str, str]) -> None:
    """Any names and values without the separators."""
    with context(**labels):
        assert dict(parse(CURRENT.get())) == labels


@given(st.text(st.sampled_from(string.ascii_letters + "\x1e\x1f"), max_size=3000))
def test_any_text_of_a_target_is_parsed_within_bounds(text: str) -> None:
    """It is hostile: few, short labels come out, or none."""
    for name, value in parse(text):
        assert 0 < len(name) <= 60
        assert len(value) <= 200
    assert len(parse(text)) <= contexts.MAX_LABELS
